"""Orders: each index once, the same from any position on, shards read from their beginning to their end."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from lavis.datasets.orders import InterleavedOrder, ShardOrder, permutation

COUNTS = ([1, 3, 20, 2], [5, 5, 1], [], [2] * 9, [1], [4, 30])  # samples of each picture, by shard


def order(**kwargs: Any) -> ShardOrder:
    starts = np.append(0, np.cumsum([sum(counts) for counts in COUNTS]))
    given: dict[str, Any] = {"seed": 1, "epoch": 0, "at_once": 2, "shuffle": 8, "together": None, **kwargs}
    return ShardOrder(starts, lambda shard: np.append(0, np.cumsum(COUNTS[shard])).astype(np.int64), **given)


@pytest.mark.parametrize("together", [1, 4, None])
@pytest.mark.parametrize("at_once, shuffle", [(1, 1), (2, 8), (3, 1000), (99, 7)])
@pytest.mark.parametrize("repeat", [1, 2])
def test_each_sample_once_and_from_any_position(together: int | None, at_once: int, shuffle: int, repeat: int) -> None:
    one = order(together=together, at_once=at_once, shuffle=shuffle, repeat=repeat)
    whole = one[0 : len(one)]
    assert sorted(whole.tolist()) == list(range(sum(map(sum, COUNTS)) * repeat)) and len(one) == len(whole)
    for low in (0, 1, 17, len(one) - 1):
        fresh = order(together=together, at_once=at_once, shuffle=shuffle, repeat=repeat)
        assert fresh[low : low + 13].tolist() == whole[low : low + 13].tolist()
    assert one[5:5].tolist() == []


def test_it_follows_from_seed_and_epoch() -> None:
    orders = [tuple(order(seed=seed, epoch=epoch)[0:1000]) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert len(set(orders)) == 3
    assert tuple(order()[0:1000]) == orders[0]
    assert order(together=4)[0:12].tolist() == [56, 57, 58, 59, 60, 61, 62, 63, 68, 69, 70, 71], "saved positions rely on it"


def test_pictures_stay_whole_up_to_a_number() -> None:
    starts = np.append(0, np.cumsum([sum(counts) for counts in COUNTS]))
    picture = np.repeat(np.arange(sum(map(len, COUNTS))), [count for counts in COUNTS for count in counts])

    def runs(together: int | None) -> list[int]:
        """The lengths of the stretches of one picture."""
        seen = picture[order(together=together, shuffle=1000, at_once=6)[0 : int(starts[-1])]]
        edges = np.flatnonzero(np.append(True, seen[1:] != seen[:-1]))
        return np.diff(np.append(edges, len(seen))).tolist()

    assert sorted(runs(None)) == sorted(count for counts in COUNTS for count in counts)
    assert max(runs(1)) < 8 and len(runs(1)) > len(runs(4)) > len(runs(None))


def test_a_shard_is_read_from_its_beginning_to_its_end_among_a_few() -> None:
    shards, size = 20, 300
    starts = np.arange(shards + 1) * size
    many = ShardOrder(starts, lambda _: np.arange(size + 1), seed=0, epoch=0, at_once=4, shuffle=40, together=None)
    whole = many[0 : len(many)]
    shard, place = whole // size, whole % size
    for number in range(shards):
        where = np.flatnonzero(shard == number)
        assert where[-1] - where[0] < 4 * size, "within one window"
        assert np.abs(place[where] - np.arange(size)).max() <= 10, "a tenth of 4 shards' 40"
    assert [len(set(shard[low : low + 4 * size])) for low in range(0, len(whole), 4 * size)] == [4] * 5
    assert len(set(shard[:4])) > 1 and np.corrcoef(place[:40], np.arange(40))[0, 1] < 0.9, "and mixed"


def test_memory_and_time_do_not_grow_with_the_samples() -> None:
    starts = np.arange(10_001) * 10_000  # 100 million samples
    tracemalloc.start()
    large = ShardOrder(starts, lambda _: np.arange(10_001), seed=0, epoch=0, at_once=8, shuffle=4096, together=8)
    assert len(large) == 10**8
    assert len(set(large[70_000_000:70_000_256].tolist())) == 256
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6, f"{peak / 1e6:.0f} MB"


def test_interleaved_orders_keep_their_sequences() -> None:
    parts = [permutation(1000, seed=1, epoch=0), permutation(30, seed=2, epoch=0), np.arange(7)]
    one = InterleavedOrder(parts, seed=3, epoch=0, block=50)
    whole = one[0 : len(one)]
    assert sorted(whole.tolist()) == list(range(1037))
    assert whole[whole < 1000].tolist() == parts[0].tolist()
    assert (whole[(whole >= 1000) & (whole < 1030)] - 1000).tolist() == parts[1].tolist()
    places = np.flatnonzero((whole >= 1000) & (whole < 1030))
    assert places[14] < 600 and places[15] > 400, "evenly through the epoch"
    for low in (0, 333, 1030):
        assert InterleavedOrder(parts, seed=3, epoch=0, block=50)[low : low + 60].tolist() == whole[low : low + 60].tolist()
    assert InterleavedOrder(parts, seed=3, epoch=1, block=50)[0:1037].tolist() != whole.tolist()
