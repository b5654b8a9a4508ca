"""Activation checkpointing of any stack of layers, put on from outside: a layer keeps its inputs, and runs again in backward.

Hugging Face recomputes in train mode only, so a frozen language model without dropout (eval mode) would keep all. Here a layer is
recomputed whenever a graph is recorded, whatever its mode; without one (generation, a frozen ViT) nothing is kept anyway. Names
and classes stay, and hooks stay outside: FSDP gathers a layer once for its recomputation and its backward together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from lavis.common.stacks import layer_stacks
from lavis.models.qformer.lora import CheckpointContexts


def recompute_layers(module: nn.Module, context_fn: CheckpointContexts = noop_context_fn) -> None:
    """Recompute every layer of the stacks below `module` in backward, inside the second context that `context_fn` gives."""
    for stack in layer_stacks(module):
        for layer in stack.layers:
            layer.forward = partial(_run, layer.forward, context_fn)


def _run(forward: Callable[..., Any], context_fn: CheckpointContexts, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=context_fn, **kwargs)
