"""A store that holds nothing of an earlier attempt, under torchrun.

With ``torchrun --max-restarts`` the workers of every attempt meet in one store of the agent, under the same keys: torch (2.6 to
2.15) creates it once, and a restarted process may read the address of a dead one and wait for it, or fail. The restart count
does not tell attempts apart, because agents count for themselves. So the processes of an attempt agree on a name of their own
before they use the store. https://github.com/pytorch/pytorch/issues/135712 describes the defect.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

POLL_SECONDS = 0.02


def uses_agent_store() -> bool:
    """Whether torchrun hands one store to the processes of every attempt."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def attempt_store(*, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The agent's store, under a prefix that only the processes of this attempt have. Collective; RuntimeError where a process
    does not come within ``timeout``."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout)
    return dist.PrefixStore(agree_on_name(store, rank=rank, world_size=world_size, timeout=timeout), store)


def agree_on_name(store: dist.Store, *, rank: int, world_size: int, timeout: timedelta) -> str:
    """Rank 0's new name, on every rank, whatever the store holds already.

    A rank leaves a new word of its own and waits for the answer to that word, so it takes no old answer. Rank 0 may answer
    words of dead processes; it goes on until all ranks have signed under the new name.
    """
    if rank:
        word = uuid.uuid4().hex
        store.set(f"word/{rank}", word)
        name = store.get(f"answer/{word}").decode()
        store.set(f"{name}/{rank}", "here")
        return name
    name = uuid.uuid4().hex
    missing, end = set(range(1, world_size)), time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"{name}/{other}"]):
                missing.discard(other)
            elif store.check([f"word/{other}"]):
                store.set(f"answer/{store.get(f'word/{other}').decode()}", name)
        if missing and time.monotonic() > end:
            raise RuntimeError(f"these processes did not come within {timeout}: ranks {', '.join(map(str, sorted(missing)))}")
        time.sleep(POLL_SECONDS)
    return name
