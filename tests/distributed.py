"""Run a function in several gloo processes."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from lavis.common import dist_utils


def _child(rank: int, function: Callable[..., Any], world_size: int, folder: str, args: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    try:
        dist_utils.init_distributed({"device": "cpu", "dist_url": f"file://{folder}/rendezvous"})
        torch.save(function(*args), Path(folder) / f"{rank}.pt")
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist_utils.shutdown_distributed()


def run_distributed(function: Callable[..., Any], *args: Any, folder: Path, world_size: int = 2) -> list[Any]:
    """What ``function(*args)`` returned on each rank. The function must be importable (a module's own)."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_child, args=(function, world_size, str(folder), args), nprocs=world_size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]
