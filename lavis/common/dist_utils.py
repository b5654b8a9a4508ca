"""Several processes, or one: every function here is a no-op (or the identity) where there is no process
group.

Under torchrun the group is gloo for CPU tensors and nccl for CUDA tensors, so that counting rows or passing
objects never makes the host wait for the GPU. Gradients are averaged explicitly rather than by
DistributedDataParallel: in a step of one modality the adapters of the others have no gradient, and must not
get one.

W: number of processes (world size). N_r: rows on rank r.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lavis.common.errors import ConfigError

T = TypeVar("T")
_alone = False  # set by single_process()


def is_distributed() -> bool:
    """True where collectives reach other processes."""
    return not _alone and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def get_rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def get_world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def is_main_process() -> bool:
    """Rank 0, or the only process; inside ``single_process`` every process is."""
    return get_rank() == 0


@contextmanager
def single_process() -> Iterator[None]:
    """Inside, this process works alone: no collective is entered. For evaluation, where ranks hold unequal
    numbers of batches and a gather within a forward pass would wait for ever."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether FSDP holds parameters of the module in shards, so that its forward pass is collective."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(isinstance(part, (FSDPModule, FullyShardedDataParallel)) for part in module.modules())


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process. Collective, also inside ``single_process``: for loops over a sharded module,
    which every process must leave after the same number of rounds."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return flag
    count = torch.tensor(int(flag))
    dist.all_reduce(count, op=dist.ReduceOp.MAX)
    return bool(count)


def pick_device(name: str | None) -> torch.device:
    """``run.device``: null means CUDA where there is one, else the CPU; asking for CUDA without one gives the
    CPU, so that one YAML serves both."""
    if name not in (None, "cpu") and torch.device(str(name)).type != "cuda":
        return torch.device(str(name))
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device(name or "cuda")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if device.index is None else device


def init_distributed(cfg: Any) -> torch.device:
    """Join the process group that torchrun announces (RANK, WORLD_SIZE) and return this process's device.

    ``cfg``: the ``run`` configuration (device, dist_url, distributed, dist_timeout_minutes). With one process
    no group is made. Raises ConfigError where several processes were started with ``run.distributed: false``.
    """
    device = pick_device(cfg.get("device"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size == 1 or dist.is_initialized():
        return device
    if not cfg.get("distributed", True):
        raise ConfigError(f"run.distributed is false, but {world_size} processes were started; start one, or set it to true")
    # The functions of this module have the default group as a default argument. The first optimizer step imports it;
    # were that after the group is made, they would keep the group and its threads past shutdown_distributed, and a
    # thread that lets go of a tensor while Python ends aborts the process (seen in torch 2.15).
    from torch.distributed.nn import functional  # noqa: F401

    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=cfg.get("dist_url") or "env://",
        rank=int(os.environ["RANK"]),
        world_size=world_size,
        timeout=timedelta(minutes=float(cfg.get("dist_timeout_minutes") or 30)),
    )
    return device


def shutdown_distributed() -> None:
    """Leave the process group, if there is one.

    The pause is for the group's threads: to let go of the tensors of the last collective they need Python's lock, and some
    versions of torch hold that lock while they wait for the threads.
    """
    if dist.is_available() and dist.is_initialized():
        time.sleep(0.25)
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every process."""
    if is_distributed():
        dist.all_reduce(torch.zeros(1))


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process runs the block first, the others once it is through (also when it failed)."""
    if not is_main_process():
        barrier()
    try:
        yield
    finally:
        if is_main_process():
            barrier()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over processes, as a new tensor without gradient."""
    total = tensor.detach().clone()
    if is_distributed():
        dist.all_reduce(total)
    return total


def all_gather_objects(obj: T) -> list[T]:
    """Every process's object (picklable), in rank order, on every process."""
    if not is_distributed():
        return [obj]
    gathered: list[Any] = [None] * get_world_size()
    dist.all_gather_object(gathered, obj)
    return gathered


def all_gather_tensors(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Every process's tensors in rank order, on the CPU of every process. They may differ in number, shape and type; one at a
    time is on its way, so that main memory holds each once."""
    own = [tensor.detach().cpu().contiguous() for tensor in tensors]
    if not is_distributed():
        return own
    gathered = []
    for rank, forms in enumerate(all_gather_objects([(tuple(tensor.shape), tensor.dtype) for tensor in own])):
        for number, (shape, dtype) in enumerate(forms):
            tensor = own[number] if rank == get_rank() else torch.empty(shape, dtype=dtype)
            if tensor.numel():
                dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=rank)
            gathered.append(tensor)
    return gathered


def broadcast_object(obj: T) -> T:
    """The main process's object, on every process."""
    if not is_distributed():
        return obj
    holder: list[Any] = [obj]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite each tensor by the main process's, in place."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def gather_sizes(rows: int) -> list[int]:
    """Rows (or another whole number) held by every rank, in rank order."""
    if not is_distributed():
        return [rows]
    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(get_world_size())]
    dist.all_gather(sizes, torch.tensor([rows]))
    return [int(size) for size in sizes]


def _all_gather_rows(tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
    padded[: tensor.shape[0]] = tensor
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _GatherRows(torch.autograd.Function):
    """Backward sums over ranks what each of them asks of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        ctx.start, ctx.rows = sum(sizes[: get_rank()]), tensor.shape[0]
        return _all_gather_rows(tensor, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = all_reduce_sum(grads[0].contiguous())
        return total[ctx.start : ctx.start + ctx.rows], None


def gather_with_grad(tensor: torch.Tensor, *, sizes: Sequence[int] | None = None) -> torch.Tensor:
    """``[N_r, ...]`` on each rank -> ``[sum of N_r, ...]`` in rank order, differentiable; N_r may differ,
    even be 0.

    The backward pass sums the gradient over ranks. Together with ``average_gradients`` (which divides by W)
    the update is that of one process holding all rows, both where every rank computes the whole loss and
    where each computes the mean over an equal share. ``sizes``: the N_r where they are known
    (``gather_sizes``), which saves asking for them.
    """
    if tensor.dim() == 0:
        raise ValueError("gather_with_grad needs at least one dimension, got a scalar")
    if not is_distributed():
        return tensor
    sizes = gather_sizes(tensor.shape[0]) if sizes is None else sizes
    if tensor.dtype == torch.bool:
        return _all_gather_rows(tensor.to(torch.uint8), sizes).bool()
    if not tensor.is_floating_point():
        return _all_gather_rows(tensor, sizes)
    return _GatherRows.apply(tensor, list(sizes))


def sum_with_grad(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's tensor of one shape, differentiable as ``gather_with_grad`` is."""
    return gather_with_grad(tensor.unsqueeze(0), sizes=[1] * get_world_size()).sum(dim=0)


@torch.no_grad()
def average_gradients(params: Iterable[torch.nn.Parameter], *, flag: bool = False) -> bool:
    """Replace every gradient by its mean over ranks: one flat all-reduce per dtype, the same bits on every
    rank. Returns whether any rank raised its ``flag``, which travels along.

    A gradient missing on some ranks counts as zero there; a parameter without gradient on every rank keeps
    ``grad = None``, so that the optimizer leaves it alone. Every rank must pass the same parameters in the
    same order.
    """
    if not is_distributed():
        return flag
    wanted = [param for param in params if param.requires_grad]
    present = torch.tensor([*(param.grad is not None for param in wanted), flag], dtype=torch.uint8)
    dist.all_reduce(present, op=dist.ReduceOp.MAX)
    *anywhere_of, raised = present.tolist()
    groups: dict[tuple[torch.dtype, torch.device], list[torch.nn.Parameter]] = {}
    for param, anywhere in zip(wanted, anywhere_of, strict=True):
        if anywhere:
            groups.setdefault((param.dtype, param.device), []).append(param)
    for group in groups.values():
        grads = [torch.zeros_like(param) if param.grad is None else param.grad for param in group]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        flat /= get_world_size()
        parts = flat.split([param.numel() for param in group])
        for param, part in zip(group, parts, strict=True):
            param.grad = part.view_as(param)
    return bool(raised)
