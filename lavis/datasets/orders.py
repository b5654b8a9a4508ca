"""The orders in which the samples of an epoch are read.

An order is a permutation of the sample indices that follows from (seed, epoch) alone, and is asked for slices [low, high) of
its positions. That of a small dataset is one array. Data in shards is shuffled so that what is read at one time lies close
together, and its order is computed part by part: a position in the middle of an epoch costs no more than one at its start, and
100 million samples no more memory than one part.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lavis.common.seeding import mix

Indices = NDArray[np.int64]

# apart from the streams of samples and steps
_ORDER_STREAM, _SHARD_STREAM, _WINDOW_STREAM, _BLOCK_STREAM, _GROUP_STREAM = 11, 13, 14, 15, 16
BLOCK = 65_536  # positions of an interleaved order that are worked out together


class Order(Protocol):
    """A permutation of sample indices, by slices."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: slice, /) -> Any:
        """The indices at a slice of positions (int64)."""


def permutation(size: int, *, seed: int, epoch: int) -> Indices:
    """The order of an epoch of `size` samples, in one array."""
    return _rng(_ORDER_STREAM, seed, epoch).permutation(size).astype(np.int64)


def group_numbers(names: Iterable[Hashable], *, repeat: int = 1) -> Indices:
    """Numbers from 0 that are equal where the names are, for each of `repeat` readings of them by itself."""
    known: dict[Hashable, int] = {}
    once = np.fromiter((known.setdefault(name, len(known)) for name in names), dtype=np.int64)
    return np.concatenate([once + number * len(known) for number in range(repeat)])


def grouped_permutation(groups: Indices, *, seed: int, epoch: int) -> Indices:
    """The order of an epoch in which samples of one group (their numbers [N], from 0) are neighbours: the groups are permuted,
    and the samples of each. Parts of a global batch are stretches of it, so a process has a group to itself but at its edges."""
    rng = _rng(_GROUP_STREAM, seed, epoch)
    draws = rng.random_sample(len(groups))
    place = rng.permutation(int(groups.max()) + 1)
    return np.lexsort((draws, place[groups])).astype(np.int64)


def order_of(dataset: Any, *, seed: int, epoch: int) -> Order:
    """The order of an epoch of a dataset: its own, where it has one."""
    own = own_order(dataset, seed=seed, epoch=epoch)
    return permutation(len(dataset), seed=seed, epoch=epoch) if own is None else own


def own_order(dataset: Any, *, seed: int, epoch: int) -> Order | None:
    """The order that a dataset itself gives an epoch; None where it leaves that to the loader."""
    order: Order | None = dataset.epoch_order(seed=seed, epoch=epoch) if hasattr(dataset, "epoch_order") else None
    return order


class PartialOrder:
    """An order made of parts, each worked out when a position in it is asked for; the last two are kept."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: dict[int, Indices] = {}

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, positions: slice, /) -> Indices:
        low, high, _ = positions.indices(self._size)
        pieces = []
        while low < high:
            number, start, end = self.find(low)
            pieces.append(self._part(number)[low - start : min(high, end) - start])
            low = min(high, end)
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def find(self, position: int) -> tuple[int, int, int]:
        """The part that a position is in, the part's first position, and the one after its last."""
        raise NotImplementedError

    def make(self, number: int) -> Indices:
        """The indices of a part."""
        raise NotImplementedError

    def _part(self, number: int) -> Indices:
        if number not in self._kept:
            if len(self._kept) > 1:
                self._kept.pop(next(iter(self._kept)))
            self._kept[number] = self.make(number)
        return self._kept[number]


class ShardOrder(PartialOrder):
    """The order of samples that lie in shards.

    Shards are shuffled, and read `at_once` of them at a time (a window). A window is cut into blocks of about `shuffle`
    samples, each of which holds the next stretch of every shard of the window, shuffled: so each shard is read from its
    beginning to its end, once. Up to `together` neighbours of one picture stay next to each other (null: all of them), so that
    the picture is read once for them.
    """

    def __init__(
        self,
        starts: Indices,
        firsts: Callable[[int], Indices],
        *,
        seed: int,
        epoch: int,
        at_once: int,
        shuffle: int,
        together: int | None,
        repeat: int = 1,
    ) -> None:
        """`starts` [S + 1]: the first sample of each of S shards, and their number. `firsts(s)` [P + 1]: the same of the P
        pictures of a shard, counted from the shard's first sample."""
        super().__init__(int(starts[-1]) * repeat)
        self._starts, self._firsts = starts, firsts
        self._seed, self._epoch = seed, epoch
        self._at_once, self._shuffle, self._together = at_once, shuffle, together
        shards = [_rng(_SHARD_STREAM, seed, epoch, number).permutation(len(starts) - 1) for number in range(repeat)]
        self._windows = [row[low : low + at_once] for row in shards for low in range(0, len(row), at_once)]
        sizes = np.diff(starts)
        self._ends = np.cumsum([sizes[window].sum() for window in self._windows])
        self._per_repeat = len(self._windows) // repeat

    def find(self, position: int) -> tuple[int, int, int]:
        number = int(np.searchsorted(self._ends, position, side="right"))
        return number, int(self._ends[number - 1]) if number else 0, int(self._ends[number])

    def make(self, number: int) -> Indices:
        window = self._windows[number].tolist()
        units = [_units(self._firsts(shard), self._together) for shard in window]
        blocks = max(1, round(sum(int(ends[-1]) for ends in units) / self._shuffle))
        first = np.concatenate([ends[:-1] + self._starts[shard] for shard, ends in zip(window, units, strict=True)])
        count = np.concatenate([np.diff(ends) for ends in units])
        # unit u of the U of a shard is in block b where U * b // blocks <= u < U * (b + 1) // blocks
        block = np.concatenate([((np.arange(1, len(ends)) * blocks) - 1) // (len(ends) - 1) for ends in units if len(ends) > 1])
        draws = _rng(_WINDOW_STREAM, self._seed, self._epoch, number).random_sample(len(first))
        order = np.lexsort((draws, block))
        first, count = first[order], count[order]
        before = np.cumsum(count) - count
        indices = np.repeat(first - before, count) + np.arange(count.sum())
        return indices + number // self._per_repeat * self._starts[-1]


def _units(firsts: Indices, together: int | None) -> Indices:
    """The first sample of what stays together, and the number of samples: the pictures, those of many samples in parts."""
    counts = np.diff(firsts)
    if together is None or not len(counts) or counts.max() <= together:
        return firsts.astype(np.int64)
    parts = -(-counts // together)
    place = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    return np.append(np.repeat(firsts[:-1], parts) + place * together, firsts[-1]).astype(np.int64)


class InterleavedOrder(PartialOrder):
    """Several orders in one, indices counted on from one to the next. Each keeps its own sequence; where in the epoch their
    samples come is drawn, evenly through it."""

    def __init__(self, orders: Sequence[Order], *, seed: int, epoch: int, block: int = BLOCK) -> None:
        super().__init__(sum(len(order) for order in orders))
        self._orders, self._seed, self._epoch = orders, seed, epoch
        self._sizes = [len(order) for order in orders]
        self._blocks = max(1, -(-len(self) // block))

    def _before(self, number: int) -> list[int]:
        """How many samples of each order come before a block."""
        return [size * number // self._blocks for size in self._sizes]

    def find(self, position: int) -> tuple[int, int, int]:
        number = min(position * self._blocks // len(self), self._blocks - 1)
        while sum(self._before(number)) > position:
            number -= 1
        while sum(self._before(number + 1)) <= position:
            number += 1
        return number, sum(self._before(number)), sum(self._before(number + 1))

    def make(self, number: int) -> Indices:
        bounds = list(zip(self._before(number), self._before(number + 1), strict=True))
        whose = np.repeat(np.arange(len(bounds)), [high - low for low, high in bounds])
        whose = _rng(_BLOCK_STREAM, self._seed, self._epoch, number).permutation(whose)
        indices = np.empty(len(whose), dtype=np.int64)
        base = 0
        for place, ((low, high), order) in enumerate(zip(bounds, self._orders, strict=True)):
            indices[whose == place] = np.asarray(order[low:high]) + base
            base += self._sizes[place]
        return indices


def _rng(*numbers: int) -> np.random.RandomState:
    """The legacy generator, whose streams never change."""
    return np.random.RandomState(mix(*numbers) & 0xFFFFFFFF)
