"""Loaders that know where they are.

An epoch's order is a permutation that follows from (seed, epoch) alone (`orders`); a position in it counts samples of
all processes together. So a run can stop in the middle of an epoch and go on with other workers, another
batch size or another number of processes, and no sample of the epoch is repeated or lost (but for a rest of
fewer samples than there are processes, which is logged).

Letters: N samples, W processes, B samples per process and batch, G = B * W samples per global batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from lavis.common.modalities import task_name_of
from lavis.common.seeding import mix
from lavis.datasets.batches import Batch
from lavis.datasets.orders import Order, order_of
from lavis.datasets.workers import WatchedLoader

logger = logging.getLogger(__name__)

Key = tuple[int, int]  # (epoch, sample index)
Bounds = tuple[int, int]  # the first position of a global batch, and the one after its last

ORDERS = ("sequential", "round_robin", "sampled")
_MIXTURE_STREAM = 12  # kept apart from the streams of samples, steps and orders


def count_batches(samples: int, *, batch_size: int, world_size: int) -> int:
    """The number of global batches that `samples` make (see `batch_bounds`)."""
    full, rest = divmod(samples, batch_size * world_size)
    return full + (rest >= world_size)


def batch_bounds(start: int, end: int, *, batch_size: int, world_size: int) -> Iterator[Bounds]:
    """Positions [start, end) cut into global batches of B * W; a rest is one shorter batch, spread over W.

    A rest of fewer samples than processes joins the batch before it, since a process without a sample cannot
    take part in a step; with no batch before it, it is left.
    """
    count = count_batches(end - start, batch_size=batch_size, world_size=world_size)
    for number in range(count):
        low = start + number * batch_size * world_size
        yield low, end if number == count - 1 else low + batch_size * world_size


def share(bounds: Bounds, *, rank: int, world_size: int) -> Bounds:
    """The part of a global batch that process `rank` takes; parts differ by one sample at most."""
    low, high = bounds
    return low + (high - low) * rank // world_size, low + (high - low) * (rank + 1) // world_size


class _PlannedBatches(Sampler[list[Key]]):
    """A batch sampler that yields what was planned last: ranges [low, high) of an order of indices."""

    def __init__(self) -> None:
        self.epoch = 0
        self.order: Order | range = range(0)
        self.bounds: Callable[[], Iterator[Bounds]] = lambda: iter(())

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = self.epoch, self.order
        for low, high in self.bounds():
            yield [(epoch, int(index)) for index in order[low:high]]


def _data_loader(dataset: Dataset[Any], batches: Sampler[list[Key]], *, num_workers: int, keep_workers: bool) -> DataLoader[Any]:
    """A torch DataLoader over planned batches, whose errors name the sample. It has a generator of its own, so
    making one draws nothing from the global one. Each worker computes on one thread, as torch sets it."""
    collate: Callable[[Any], Any] = getattr(dataset, "collater", default_collate)
    return WatchedLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=keep_workers and num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


class TaskLoader:
    """Training batches of one dataset for one process.

    `drop_last` leaves out the rest of an epoch that does not fill a global batch, unless the epoch is shorter
    than one. Otherwise the last global batch is shorter and spread over the processes. The loader's seed
    becomes the dataset's.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
    ) -> None:
        self._size = len(dataset)  # type: ignore[arg-type]
        if batch_size < 1 or num_workers < 0 or not 0 <= rank < world_size:
            given = f"batch_size {batch_size}, num_workers {num_workers}, rank {rank} of {world_size}"
            raise ValueError(f"{given}; accepted: 1 or more, 0 or more, a rank below the number of processes")
        if self._size < world_size:
            name = getattr(dataset, "name", type(dataset).__name__)
            raise ValueError(f"dataset {name} has {self._size} samples, fewer than the {world_size} processes")
        if hasattr(dataset, "set_seed"):
            dataset.set_seed(seed)
        self.dataset, self.batch_size, self.seed, self.drop_last = dataset, batch_size, seed, drop_last
        self.grouped = bool(getattr(dataset, "grouped", False))
        self.rank, self.world_size = rank, world_size
        self._planned = _PlannedBatches()
        self._loader = _data_loader(dataset, self._planned, num_workers=num_workers, keep_workers=True)
        self._epoch, self._done, self._end = 0, 0, self._full_end()
        self._restored = False

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._count(self._full_end())

    @property
    def remaining(self) -> int:
        """Batches left of the current epoch."""
        return self._count(self._end - self._done)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch; after `load_state_dict` those that the saved position had left of it.

        The state moves on as a batch is handed out. One iterator at a time: a new one ends the one before.
        """
        if not (self._restored and epoch == self._epoch):
            self._epoch, self._done, self._end = epoch, 0, self._full_end()
        self._restored = False
        if self._done < self._end and not self.remaining:
            left = self._end - self._done
            logger.warning("%d samples left of the epoch, fewer than the %d processes", left, self.world_size)
        return self._run()

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: `samples_done` of the `epoch`, counted over all processes."""
        return {
            "epoch": self._epoch,
            "samples_done": self._done,
            "epoch_end": self._end,
            "dataset_size": self._size,
            "seed": self.seed,
            "grouped": self.grouped,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a state was taken, by any number of processes and workers. ValueError when its order
        cannot be followed: another seed, another number of samples, or rows grouped by image in one of both."""
        theirs = {"grouped": False, **state}
        for key, mine in (("dataset_size", self._size), ("seed", self.seed), ("grouped", self.grouped)):
            if theirs[key] != mine:
                raise ValueError(f"the saved loader position has {key} {theirs[key]}, this run {mine}")
        self._epoch, self._done, self._end = state["epoch"], state["samples_done"], state["epoch_end"]
        self._restored = True

    def _full_end(self) -> int:
        global_batch = self.batch_size * self.world_size
        drop = self.drop_last and self._size >= global_batch
        return self._size - self._size % global_batch if drop else self._size

    def _count(self, samples: int) -> int:
        return count_batches(samples, batch_size=self.batch_size, world_size=self.world_size)

    def _run(self) -> Iterator[Batch]:
        rank, world_size = self.rank, self.world_size  # not self: a cycle would keep the workers alive
        sizes = {"batch_size": self.batch_size, "world_size": world_size}
        bounds = partial(batch_bounds, self._done, self._end, **sizes)
        self._planned.epoch = self._epoch
        self._planned.order = order_of(self.dataset, seed=self.seed, epoch=self._epoch)
        self._planned.bounds = lambda: (share(bound, rank=rank, world_size=world_size) for bound in bounds())
        for batch, (_, high) in zip(self._loader, bounds(), strict=True):
            self._done = high
            yield batch


class MixedLoader:
    """Batches of several loaders, one loader per step, the same one in every process.

    `sequential`: in sorted order of the published task names, each to the end of its epoch (as published; image
    regions come before images). `round_robin`: one batch each in that order, until all are at their end.
    `sampled`: every step draws a key with a probability proportional to its remaining batches.
    """

    def __init__(self, loaders: Mapping[str, TaskLoader], *, seed: int, order: str = "sequential") -> None:
        if order not in ORDERS:
            raise ValueError(f"order is {order!r}; accepted: {', '.join(ORDERS)}")
        if not loaders:
            raise ValueError("a mixture needs at least one loader")
        self.loaders = dict(sorted(loaders.items(), key=lambda item: task_name_of(item[0])))
        self.order, self.seed = order, seed
        self._epoch, self._step, self._last = 0, 0, ""
        self._restored = False

    def __len__(self) -> int:
        """Batches of a whole epoch, over all loaders."""
        return sum(len(loader) for loader in self.loaders.values())

    @property
    def remaining(self) -> int:
        """Batches left of the current epoch."""
        return sum(loader.remaining for loader in self.loaders.values())

    def upcoming(self, steps: int) -> dict[str, float]:
        """How many of the next `steps` batches come from each loader, through as many epochs as it takes; of a part of an epoch
        whose order is drawn, the expected number."""
        left = {key: loader.remaining for key, loader in self.loaders.items()}
        whole = {key: len(loader) for key, loader in self.loaders.items()}
        if steps <= sum(left.values()) or not len(self):
            return self._first(left, steps)
        epochs, rest = divmod(steps - sum(left.values()), len(self))
        part = self._first(whole, rest)
        return {key: left[key] + epochs * whole[key] + part[key] for key in whole}

    def _first(self, counts: Mapping[str, int], steps: int) -> dict[str, float]:
        """The part of each loader in the first `steps` of so many batches."""
        if self.order != "sequential":
            share = min(steps / max(sum(counts.values()), 1), 1.0)
            return {key: count * share for key, count in counts.items()}
        taken: dict[str, float] = {}
        for key, count in counts.items():
            taken[key] = float(min(count, steps))
            steps -= int(taken[key])
        return taken

    def epoch(self, epoch: int) -> Iterator[tuple[str, Batch]]:
        """(key, batch) of an epoch; after `load_state_dict` those that the saved position had left of it."""
        if not (self._restored and epoch == self._epoch):
            self._epoch, self._step, self._last = epoch, 0, ""
        self._restored = False
        return self._run({key: loader.epoch(epoch) for key, loader in self.loaders.items()})

    def state_dict(self) -> dict[str, Any]:
        """Where the mixture and each of its loaders are."""
        return {
            "epoch": self._epoch,
            "step": self._step,
            "last": self._last,
            "order": self.order,
            "seed": self.seed,
            "loaders": {key: loader.state_dict() for key, loader in self.loaders.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken. ValueError when it is of another mixture."""
        mine = {"order": self.order, "seed": self.seed, "loaders": sorted(self.loaders)}
        theirs = {"order": state["order"], "seed": state["seed"], "loaders": sorted(state["loaders"])}
        for key in mine:
            if mine[key] != theirs[key]:
                raise ValueError(f"the saved loader position has {key} {theirs[key]}, this run {mine[key]}")
        for key, loader in self.loaders.items():
            loader.load_state_dict(state["loaders"][key])
        self._epoch, self._step, self._last = state["epoch"], state["step"], state["last"]
        self._restored = True

    def _run(self, batches: Mapping[str, Iterator[Batch]]) -> Iterator[tuple[str, Batch]]:
        while left := {key: n for key, loader in self.loaders.items() if (n := loader.remaining)}:
            key = self._pick(left)
            batch = next(batches[key])
            self._step, self._last = self._step + 1, key
            yield key, batch

    def _pick(self, left: Mapping[str, int]) -> str:
        """The key of the next step, of those with batches left (sorted; the values are how many)."""
        if self.order == "sequential":
            return next(iter(left))
        if self.order == "round_robin":
            order = list(self.loaders)
            after = order.index(self._last) + 1 if self._last else 0
            return next((key for key in order[after:] if key in left), next(iter(left)))
        rng = np.random.RandomState(mix(_MIXTURE_STREAM, self.seed, self._epoch, self._step) & 0xFFFFFFFF)
        ends = np.cumsum(list(left.values()))
        return list(left)[int(np.searchsorted(ends, rng.randint(ends[-1]), side="right"))]


def eval_bounds(samples: int, *, batch_size: int) -> list[Bounds]:
    """The batches of an evaluation: runs of `batch_size` neighbours, the last may be shorter. They do not depend
    on the number of processes, so that neither does what a batch decides: padding, draws, losses over its samples."""
    return [(low, min(low + batch_size, samples)) for low in range(0, samples, batch_size)]


def eval_loader(
    dataset: Dataset[Any], *, batch_size: int, num_workers: int = 0, batches: Sequence[int] | None = None
) -> DataLoader[Any]:
    """The batches of `eval_bounds` in order, each sample once, or only those whose numbers are in `batches`."""
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}; accepted: 1 or more")
    bounds = eval_bounds(len(dataset), batch_size=batch_size)  # type: ignore[arg-type]
    planned = _PlannedBatches()
    planned.order = range(len(dataset))  # type: ignore[arg-type]
    planned.bounds = lambda: iter(bounds if batches is None else [bounds[number] for number in batches])
    return _data_loader(dataset, planned, num_workers=num_workers, keep_workers=False)
