"""Every random draw is a function of numbers one can name.

A step's draws follow from (seed, step, rank), a sample's (augmentation, choice of a caption) from (seed, epoch,
index): neither depends on what was drawn before, on the number of loader workers or on a restart. Of a step's
draws only dropout and drop path depend on the rank; hard negatives (``shared_rng``) and the points at which the
sampling of clouds begins (``step_draws``) are the same on any number of processes.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_MASK = (1 << 64) - 1
_SAMPLE, _STEP, _SHARED, _KEYED = 1, 2, 3, 4
_shared: list[int] = []  # (seed, step) of the running step, without its rank


def mix(*numbers: int) -> int:
    """One well-mixed 63-bit number from several; a change in any of them changes it. Negative numbers are
    accepted."""
    words = np.random.SeedSequence([number & _MASK for number in numbers]).generate_state(1, np.uint64)
    return int(words[0]) >> 1


def seed_everything(seed: int) -> None:
    """Seed random, numpy and torch (every device); the seed a model is built from."""
    random.seed(seed)
    np.random.seed(mix(seed) & 0xFFFFFFFF)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed random, numpy and torch for one step of one rank, and remember (seed, step) for ``shared_rng``."""
    number = mix(_STEP, seed, step, rank)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    torch.manual_seed(number)
    _shared[:] = [seed, step]


def clear_step() -> None:
    """Forget the running step: ``shared_rng`` does nothing until the next ``seed_step``."""
    _shared.clear()


@contextmanager
def shared_rng(*, stream: int = 0) -> Iterator[None]:
    """Draws inside are the same on every rank of this step (torch, CPU and current CUDA device), and leave
    the generators as they were. Does nothing where ``seed_step`` was never called. ``stream`` tells several
    uses in one step apart."""
    if not _shared:
        yield
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(mix(_SHARED, *_shared, stream))
        yield


def step_draws(keys: Iterable[object], limit: int) -> list[int] | None:
    """A random whole number below ``limit`` for each key: a function of seed, step and key, whichever rank asks.
    None where ``seed_step`` was never called."""
    if not _shared:
        return None
    return [mix(_KEYED, *_shared, zlib.crc32(str(key).encode())) % limit for key in keys]


@contextmanager
def torch_rng(seed: int) -> Iterator[None]:
    """Draws from torch's CPU generator inside follow from ``seed`` alone; the generator is put back
    afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed & (_MASK >> 1))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.RandomState:
    """The generator of one dataset sample (the legacy numpy one, whose streams never change)."""
    words = np.random.SeedSequence([_SAMPLE, seed & _MASK, epoch & _MASK, index & _MASK]).generate_state(8)
    return np.random.RandomState(words)


def rng_state() -> dict[str, Any]:
    """All generator states as plain numbers and tensors, fit for a checkpoint read with weights_only."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what ``rng_state`` returned; CUDA states only where as many devices are in use."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_initialized() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
