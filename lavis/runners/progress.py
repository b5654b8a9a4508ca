"""Where a run is, and what it has seen on the way; everything here goes into a checkpoint and comes back from
it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lavis.common import dist_utils

NAMED = 10  # row names shown per reason
REMEMBERED = 1000  # distinct row names kept per reason


class SkipCounts:
    """Rows that could not be used, by reason (the part before a colon): how often, and which."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.names: dict[str, list[str]] = {}

    def add(self, skipped: Iterable[tuple[str, str]]) -> None:
        """``skipped``: (row name, reason) pairs."""
        for name, reason in skipped:
            reason = reason.partition(":")[0]
            self.counts[reason] = self.counts.get(reason, 0) + 1
            known = self.names.setdefault(reason, [])
            if len(known) < REMEMBERED and str(name) not in known:
                known.append(str(name))

    def merge(self, state: Mapping[str, Any]) -> None:
        for reason, count in state["counts"].items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            known = self.names.setdefault(reason, [])
            known.extend(name for name in state["names"][reason] if name not in known)

    def state_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts), "names": {reason: list(names) for reason, names in self.names.items()}}

    def summary(self) -> dict[str, dict[str, Any]]:
        """Over all processes: {reason: {"count", "first"}}. Collective."""
        total = SkipCounts()
        for state in dist_utils.all_gather_objects(self.state_dict()):
            total.merge(state)
        return {
            reason: {"count": total.counts[reason], "first": sorted(total.names[reason])[:NAMED]}
            for reason in sorted(total.counts)
        }


class LossSums:
    """Running sums of losses per key, kept on the device; nothing waits for it until ``means`` is asked
    for. A step with a loss that is not finite is left out."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.sums: dict[str, torch.Tensor] = {}  # float64 [number of losses, plus 1 for the count of steps]

    def add(self, key: str, losses: Mapping[str, torch.Tensor]) -> None:
        if key not in self.sums:
            self.names[key] = list(losses)
            device = next(iter(losses.values())).device
            self.sums[key] = torch.zeros(len(losses) + 1, dtype=torch.float64, device=device)
        values = [losses[name].double() for name in self.names[key]]
        row = torch.stack([*values, torch.ones_like(values[0])])
        self.sums[key] += torch.where(row.isfinite().all(), row, torch.zeros_like(row))

    def means(self) -> dict[str, dict[str, float]]:
        """Mean of every loss per key, over steps and processes. Collective."""
        result = {}
        for key in sorted(self.sums):
            *sums, count = dist_utils.all_reduce_sum(self.sums[key]).tolist()
            result[key] = {name: total / count if count else math.nan for name, total in zip(self.names[key], sums, strict=True)}
        return result

    def state_dict(self) -> dict[str, Any]:
        return {key: {"names": self.names[key], "sums": self.sums[key].cpu()} for key in self.sums}

    def merge(self, state: Mapping[str, Any], *, weight: float, device: torch.device) -> None:
        for key, part in state.items():
            sums = part["sums"].to(device) * weight
            self.names[key] = list(part["names"])
            self.sums[key] = self.sums[key] + sums if key in self.sums else sums


@dataclass
class Progress:
    """Counters of a run. ``step`` counts batches from the start of the run, ``step_in_epoch`` and
    ``task_steps`` (per key) from the start of the epoch; each is the number already done."""

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    task_steps: dict[str, int] = field(default_factory=dict)
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped_updates: int = 0  # of the run: updates that were not finite
    losses: LossSums = field(default_factory=LossSums)
    skipped_in_epoch: SkipCounts = field(default_factory=SkipCounts)
    skipped_in_run: SkipCounts = field(default_factory=SkipCounts)

    def advance(self, key: str, losses: Mapping[str, torch.Tensor], skipped: list[tuple[str, str]]) -> None:
        """One step is done."""
        self.step += 1
        self.step_in_epoch += 1
        self.task_steps[key] = self.task_steps.get(key, 0) + 1
        self.losses.add(key, losses)
        self.skipped_in_epoch.add(skipped)
        self.skipped_in_run.add(skipped)

    def next_epoch(self) -> None:
        self.epoch += 1
        self.step_in_epoch = 0
        self.task_steps = {}
        self.losses, self.skipped_in_epoch = LossSums(), SkipCounts()

    def schedule_step(self, key: str, lr_schedule: str) -> int:
        """The step that the learning rate follows: of this task in this epoch (``per_task``, published), or of the whole
        run (``global``)."""
        return self.task_steps.get(key, 0) if lr_schedule == "per_task" else self.step

    def state_dict(self) -> dict[str, Any]:
        """Counters, and in ``ranks`` what each process summed by itself. Collective."""
        own = {
            "losses": self.losses.state_dict(),
            "skipped_in_epoch": self.skipped_in_epoch.state_dict(),
            "skipped_in_run": self.skipped_in_run.state_dict(),
        }
        return {
            "epoch": self.epoch,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "task_steps": dict(self.task_steps),
            "best": {name: dict(entry) for name, entry in self.best.items()},
            "skipped_updates": self.skipped_updates,
            "ranks": dist_utils.all_gather_objects(own),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, device: torch.device) -> None:
        """With as many processes as before each takes its own sums again; otherwise the main process takes them all,
        weighted so that a step done before counts as much as one done after."""
        self.epoch, self.step, self.step_in_epoch = state["epoch"], state["step"], state["step_in_epoch"]
        self.task_steps = dict(state["task_steps"])
        self.best = {name: dict(entry) for name, entry in state["best"].items()}
        self.skipped_updates = state.get("skipped_updates", 0)
        self.losses, self.skipped_in_epoch, self.skipped_in_run = LossSums(), SkipCounts(), SkipCounts()
        rank, world_size, parts = dist_utils.get_rank(), dist_utils.get_world_size(), state["ranks"]
        same = len(parts) == world_size
        for number, part in enumerate(parts):
            mine = number == rank if same else rank == 0
            weight = (1.0 if same else world_size / len(parts)) if mine else 0.0  # 0 keeps the keys alike on every process
            self.losses.merge(part["losses"], weight=weight, device=device)
            if mine:
                self.skipped_in_epoch.merge(part["skipped_in_epoch"])
                self.skipped_in_run.merge(part["skipped_in_run"])
