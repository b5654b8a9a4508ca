"""Clocks, the machine's rate of matrix products, what kind of machine it is, and the memory of a call in a process of its own."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def processor() -> tuple[str, list[str]]:
    """Name of the processor, and which of the flags that matter here it has."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), []
    name = re.search(r"model name\s*:\s*(.*)", text)
    flags = re.search(r"flags\s*:\s*(.*)", text)
    known = set(flags.group(1).split()) if flags else set()
    return name.group(1).strip() if name else platform.machine(), [flag for flag in FLAGS if flag in known]


def machine() -> dict[str, Any]:
    """What a figure depends on; no names of hosts, users or folders."""
    name, flags = processor()
    return {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": flags,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
    }


def matrix_rate(dtype: torch.dtype, *, clock: str = "wall", size: int = 2048, repeats: int = 5) -> float:
    """GFLOP/s of a product of two square matrices: the median of several."""
    now = CLOCKS[clock]
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 2):
        start = now()
        a @ b
        seconds.append(now() - start)
    return 2 * size**3 / statistics.median(seconds[2:]) / 1e9


def alternate(sides: dict[str, Callable[[], object]], *, repeats: int, clock: str = "wall") -> dict[str, list[float]]:
    """Seconds of every call, the sides in turn (A B A B); one round before, which is not counted, warms up."""
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(repeats + 1):
        for name, call in sides.items():
            start = now()
            call()
            if round_:
                seconds[name].append(now() - start)
    return seconds


def peak_memory(call: Callable[..., None], *arguments: Any, timeout: float = 300.0) -> float:
    """MB of resident memory, at most, of a fresh process that runs `call`; RuntimeError where it fails or takes too long.

    Processes are forked from a server that has only imported what `call`'s module imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([call.__module__])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_run_and_tell, args=(send, call, arguments))
    process.start()
    send.close()
    try:
        if receive.poll(timeout):
            return float(receive.recv())
        raise RuntimeError(f"no answer within {timeout:.0f} s")
    except EOFError:
        process.join()
        raise RuntimeError(f"the process ended with code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def _run_and_tell(send: Any, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    call(*arguments)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    send.send(most / (1e6 if platform.system() == "Darwin" else 1e3))
