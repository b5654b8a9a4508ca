"""Processes of one attempt agree on a name, whatever the dead ones of earlier attempts left in the store."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from lavis.common.rendezvous import agree_on_name

WORLD = 4


def server() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))


def agree(port: int, rank: int, seconds: float = 60) -> str:
    timeout = timedelta(seconds=seconds)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
    return agree_on_name(store, rank=rank, world_size=WORLD, timeout=timeout)


def test_every_attempt_has_a_name_of_its_own() -> None:
    """In the second attempt rank 0 comes first, and finds only the words of the first attempt's ranks."""
    store, names = server(), []
    with ThreadPoolExecutor(WORLD) as threads:
        for order in ([3, 1, 2, 0], [0, 2, 1, 3]):
            found = list(threads.map(lambda rank: agree(store.port, rank), order))
            assert len(set(found)) == 1
            names.append(found[0])
    assert names[0] != names[1]


def test_words_of_the_dead_are_no_obstacle_and_missing_ranks_are_named() -> None:
    """An attempt in which rank 2 died before it came."""
    store = server()
    for rank in (1, 2, 3):
        store.set(f"word/{rank}", f"dead {rank}")
        store.set(f"answer/dead {rank}", "an old name")
    with ThreadPoolExecutor(WORLD) as threads:
        others = [threads.submit(agree, store.port, rank) for rank in (1, 3)]
        while any(store.get(f"word/{rank}").startswith(b"dead") for rank in (1, 3)):
            time.sleep(0.01)
        with pytest.raises(RuntimeError, match="did not come within .*: ranks 2$"):
            agree(store.port, 0, seconds=3)
        assert len({other.result() for other in others} - {"an old name"}) == 1
