"""Stacks of like layers: what is sharded, recomputed and counted layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Stack:
    """`owner` runs `layers` one after the other; `name` is the owner's, below the module that was searched."""

    name: str
    owner: nn.Module
    layers: list[nn.Module]


def layer_stacks(module: nn.Module, name: str = "") -> Iterator[Stack]:
    """Every outermost list of layers of one class (`nn.ModuleList` or `nn.Sequential`) at or below a module.

    Lists inside of layers are part of these. T5 has two stacks, other language models, ViTs and Q-Formers have one.
    """
    for child_name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and len({type(layer) for layer in child}) == 1:
            yield Stack(name, module, list(child))
        else:
            yield from layer_stacks(child, f"{name}.{child_name}" if name else child_name)
