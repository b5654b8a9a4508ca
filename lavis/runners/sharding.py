"""Frozen layers in shards (`run.shard`), and a model on its device.

FSDP2 (`torch.distributed.fsdp.fully_shard`) does the work: each process holds 1 / W of a layer's frozen weights; a layer is
gathered when it runs, forward or backward, and let go behind it. Trainable weights stay whole on every process: their gradients
are averaged explicitly, and a checkpoint holds them alone, so that it is the same whatever `run.shard` says. What is in no layer
(embeddings, language heads, patch embeddings, last norms) stays whole too: it is needed when memory is fullest in any case.

A pass of a sharded model is collective: every process must take the same number of them (see runners/evaluation.py).

W: number of processes.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from typing import Any

import torch
from torch import nn

from lavis.common import dist_utils
from lavis.common.errors import ConfigError, unknown
from lavis.common.stacks import Stack, layer_stacks

logger = logging.getLogger(__name__)

SHARDS = ("none", "llm", "all")


def place(model: Any, *, shard: str, device: torch.device, autocast: torch.dtype = torch.float32) -> Any:
    """The model on its device, its frozen layers in shards where `shard` asks for it and there are several processes.

    Weights wait in main memory until they are sharded, so that no device ever holds more of a sharded stack than its shards and
    one layer. ConfigError where the installed torch cannot shard, or where there is nothing to shard.
    """
    model = model.float() if device.type == "cpu" and autocast == torch.float32 else model
    stacks = stacks_to_shard(model, shard)
    if stacks and dist_utils.get_world_size() == 1:
        logger.info("run.shard is %s, but there is one process: nothing is sharded", shard)
    elif stacks:
        shard_layers(stacks, device=device)
    return model.to(device)


def frozen_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [param for param in module.parameters() if not param.requires_grad]


def stacks_to_shard(model: nn.Module, shard: str) -> list[Stack]:
    """The stacks of layers that `run.shard` means: of the part `llm`, or of all parts; those that hold frozen weights.

    ConfigError where it means none, or is unknown.
    """
    if shard not in SHARDS:
        raise ConfigError(unknown("run.shard", shard, SHARDS))
    if shard == "none":
        return []
    parts = [(name, part) for name, part in model.named_children() if shard == "all" or name == "llm"]
    stacks = [stack for name, part in parts for stack in layer_stacks(part, name)]
    stacks = [stack for stack in stacks if any(frozen_parameters(layer) for layer in stack.layers)]
    if not stacks:
        what = "no frozen language model" if shard == "llm" else "no frozen layers"
        raise ConfigError(f"run.shard is {shard}, but {type(model).__name__} has {what}; accepted: none")
    return stacks


def check_torch() -> None:
    """ConfigError where the installed torch cannot shard frozen weights and leave trainable ones whole.

    FSDP2 of torch 2.6 knows no `ignored_params`; that of 2.7 keeps the weights of what is called by itself; both need a GPU.
    """
    from torch.distributed.fsdp import fully_shard

    known = inspect.signature(fully_shard).parameters
    if "ignored_params" not in known or known["reshard_after_forward"].default is not None:
        raise ConfigError(f"run.shard needs torch 2.8 or newer, this is {torch.__version__}; accepted here: none")


def shard_layers(stacks: list[Stack], *, device: torch.device) -> None:
    """Shard the frozen weights of every layer over all processes, in place; a layer's shards move to the device."""
    check_torch()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # A Q-Former's layer returns views (its keys and values); nothing here writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    world = dist_utils.get_world_size()
    mesh = init_device_mesh(device.type, (world,))
    for stack in stacks:
        numbers = 0
        for layer in stack.layers:
            numbers += sum(param.numel() for param in frozen_parameters(layer))
            trainable = {param for param in layer.parameters() if param.requires_grad}
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trainable)
        if type(stack.owner).forward is not nn.Module.forward:  # what runs the layers; it lets one be gathered ahead of time
            fully_shard(stack.owner, mesh=mesh, reshard_after_forward=True, ignored_params=set(own_parameters(stack)))
        logger.info("%s: %.1f M frozen numbers of %d layers in %d shards", stack.name, numbers / 1e6, len(stack.layers), world)


def own_parameters(stack: Stack) -> list[nn.Parameter]:
    """Parameters of the owner that are in none of its layers."""
    within = {param for layer in stack.layers for param in layer.parameters()}
    return [param for param in stack.owner.parameters() if param not in within]
