"""What one process will hold on its device: a sum over the parameters of a model, sharded or not.

    frozen weights      whole, or ceil(n / W) of the n rows of each tensor in a sharded layer (as FSDP2 cuts and pads them)
    trained weights     whole, float32
    AdamW's moments     two float32 numbers for each trained weight that ever gets a gradient
    gradients           float32, of the task that has the most; of all tasks together where batches are accumulated
    all-reduce          the gradients once more, in one flat tensor (dist_utils.average_gradients), where W > 1
    gathered layers     3 times the largest sharded layer: the one that runs, the one gathered ahead, and the buffer between
    activations         what autograd keeps of one batch, of the task that keeps the most (models/dry_run.py)

Activations are gone when gradients are averaged and weights updated, so the most held at once is that of the larger of two
phases: a pass (all but all-reduce) or an update (all but gathered layers and activations). Not in the sum: the
allocator's gaps, what lives within one operation, and what CUDA and NCCL take for themselves (RESERVE).

W: number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from lavis.runners.sharding import stacks_to_shard

GIB = 2**30
CARDS = (24, 40, 80)  # GiB
RESERVE = 2 * GIB
GATHERED = 3  # layers
SMALL = 2**24  # bytes


@dataclass(frozen=True)
class Weights:
    """Parameters of one part and type; `held`: bytes on one process."""

    part: str
    dtype: str
    trained: bool
    sharded: bool
    numbers: int
    whole: int
    held: int


@dataclass
class Account:
    """Bytes on one process. `weights` are there all the time."""

    weights: list[Weights]
    buffers: int
    moments: int = 0
    gradients: int = 0
    bucket: int = 0
    gathered: int = 0
    activations: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def frozen(self) -> int:
        return sum(row.held for row in self.weights if not row.trained)

    @property
    def trained(self) -> int:
        return sum(row.held for row in self.weights if row.trained)

    @property
    def always(self) -> int:
        return self.frozen + self.trained + self.buffers + self.moments

    @property
    def in_pass(self) -> int:
        return self.always + self.gradients + self.gathered + self.activations

    @property
    def in_update(self) -> int:
        return self.always + self.gradients + self.bucket

    @property
    def most(self) -> int:
        return max(self.in_pass, self.in_update)

    @property
    def while_building(self) -> int:
        """Main memory of one process that has built the model and sharded nothing yet."""
        return sum(row.whole for row in self.weights) + self.buffers


def shard_bytes(param: nn.Parameter, world_size: int) -> int:
    """Bytes of a parameter's shard, the same on every process: FSDP2 cuts the first dimension, and pads the last pieces."""
    rows = -(-param.shape[0] // world_size)
    return rows * (param.numel() // param.shape[0]) * param.element_size()


def account(
    model: nn.Module,
    *,
    world_size: int,
    shard: str,
    learning: Mapping[str, Iterable[str]] | None = None,
    accumulate: bool = False,
) -> Account:
    """What a process holds of a model that is whole so far (its numbers may be on the meta device).

    `learning`: {task: names of the parameters that get a gradient}; None: all trainable ones, {}: nothing is trained.
    `accumulate`: gradients of several tasks come together. Activations are the caller's to add. ConfigError as in
    `stacks_to_shard`.
    """
    stacks = stacks_to_shard(model, shard) if world_size > 1 else []
    layers = [[p for p in layer.parameters() if not p.requires_grad] for stack in stacks for layer in stack.layers]
    in_layers = {param for layer in layers for param in layer}
    sizes = {name: param.numel() * 4 for name, param in model.named_parameters() if param.requires_grad}
    tasks = [set(sizes)] if learning is None else [set(names) for names in learning.values()]
    together = set().union(*tasks)
    live = [sum(sizes[name] for name in names) for names in ([together] if accumulate else tasks)]
    gradients = max(live, default=0)
    return Account(
        weights=_weights(model, in_layers, world_size),
        buffers=sum(buffer.nbytes for buffer in model.buffers()),
        moments=2 * sum(sizes[name] for name in together),
        gradients=gradients,
        bucket=gradients if world_size > 1 else 0,
        gathered=GATHERED * max((sum(param.nbytes for param in layer) for layer in layers), default=0),
    )


def _weights(model: nn.Module, in_layers: set[nn.Parameter], world_size: int) -> list[Weights]:
    """One row for each part, type, and whether it is trained and sharded."""
    groups: dict[tuple[str, str, bool, bool], list[nn.Parameter]] = {}
    for name, param in model.named_parameters():
        kind = str(param.dtype).removeprefix("torch.")
        groups.setdefault((name.split(".")[0], kind, param.requires_grad, param in in_layers), []).append(param)
    return [
        Weights(
            *key,
            numbers=sum(param.numel() for param in params),
            whole=sum(param.nbytes for param in params),
            held=sum(shard_bytes(param, world_size) if key[-1] else param.nbytes for param in params),
        )
        for key, params in groups.items()
    ]


def table(found: Account, *, world_size: int) -> str:
    """The account as text, in GiB, and which cards it fits. Weights of less than SMALL are shown together."""
    rows = sorted(found.weights, key=lambda row: (row.trained, -row.whole))
    lines = [f"{'':<36}{'type':<10}{'numbers':>12}{'whole':>10}{'one process':>13}"]
    for row in (row for row in rows if row.whole >= SMALL):
        what = f"{row.part}, {_kind(row.trained)}" + (f", in {world_size} shards" if row.sharded else "")
        lines.append(f"{what:<36}{row.dtype:<10}{_count(row.numbers):>12}{row.whole / GIB:>10.2f}{row.held / GIB:>13.2f}")
    for trained in (False, True):
        small = [row for row in rows if row.whole < SMALL and row.trained == trained]
        whole, held = sum(row.whole for row in small), sum(row.held for row in small)
        numbers = _count(sum(row.numbers for row in small))
        lines.append(f"{'smaller ones, ' + _kind(trained):<46}{numbers:>12}{whole / GIB:>10.2f}{held / GIB:>13.2f}")
    rest = {
        "buffers": found.buffers,
        "AdamW's moments": found.moments,
        "gradients": found.gradients,
        "all-reduce of gradients": found.bucket,
        "gathered layers": found.gathered,
        "activations": found.activations,
        "most in a pass": found.in_pass,
        "most in an update": found.in_update if found.gradients else 0,
    }
    lines += [f"{what:<68}{held / GIB:>13.2f}" for what, held in rest.items() if held]
    needed = found.most + RESERVE
    lines += ["", f"{needed / GIB:.1f} GiB with {RESERVE // GIB} GiB for CUDA and NCCL: " + ", ".join(_fits(needed))]
    lines.append(f"main memory while the model is built: {found.while_building / GIB:.1f} GiB for each process of a node")
    return "\n".join(lines + found.notes)


def _kind(trained: bool) -> str:
    return "trained" if trained else "frozen"


def _count(numbers: int) -> str:
    return f"{numbers / 1e6:,.1f} M" if numbers >= 1e5 else str(numbers)


def _fits(needed: int) -> list[str]:
    return [f"{card} GB card {'yes' if needed <= card * GIB else 'no'}" for card in CARDS]
