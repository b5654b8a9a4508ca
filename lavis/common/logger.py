"""What a run writes for people and for tools: console lines, JSON lines, TensorBoard scalars, smoothed
meters."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, TypeVar

import torch

from lavis.common import dist_utils
from lavis.common.files import set_aside

logger = logging.getLogger(__name__)
T = TypeVar("T")


def setup_logging(output_dir: str | Path | None = None, *, rank: int = 0) -> None:
    """Console logging: everything on rank 0, warnings (with the rank) on the others. ``output_dir`` is
    created."""
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname).1s {prefix}%(message)s", "%m-%d %H:%M:%S"))
    root = logging.getLogger("lavis")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    if output_dir is not None and rank == 0:
        Path(output_dir).mkdir(parents=True, exist_ok=True)


class JsonlLog:
    """A file of JSON objects, one a line, appended and flushed at once. ``enabled=False`` (other ranks)
    writes nothing.

    Lines that a full disk refuses are kept, and written with the next one that it takes; no line is torn.
    """

    def __init__(self, path: str | Path, *, enabled: bool = True) -> None:
        self.path, self.enabled = Path(path), enabled
        self.lines = 0
        self._waiting: list[str] = []
        if enabled and self.path.exists():
            kept = self._read()
            self.lines = len(kept)
            os.truncate(self.path, len("".join(kept).encode()))  # a last line that a killed process began

    def write(self, row: Mapping[str, Any]) -> None:
        if not self.enabled:
            return
        first_failure = not self._waiting
        self._waiting.append(json.dumps(jsonable(row), ensure_ascii=False) + "\n")
        self.lines += 1
        try:
            self._append("".join(self._waiting).encode())
        except OSError as error:
            if first_failure:
                logger.error("%s cannot be written: %s; its lines are kept until it can", self.path, error.strerror or error)
        else:
            self._waiting.clear()

    def _append(self, text: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as stream:
            size = stream.tell()
            try:
                if stream.write(text) != len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                stream.truncate(size)
                raise

    def truncate(self, lines: int) -> None:
        """Keep the first ``lines`` whole lines: what was written after the checkpoint being resumed is
        written again."""
        if self.enabled and self.path.exists():
            kept = self._read()[:lines]
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(self.path)
            self.lines = len(kept)
            self._waiting.clear()

    def set_aside(self) -> None:
        """Rename an existing file to ``<stem>.<n><suffix>``, so that a new run starts an empty one."""
        if self.enabled and self.path.exists():
            set_aside(self.path)
            self.lines = 0

    def _read(self) -> list[str]:
        return [line for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def jsonable(value: Any) -> Any:
    """Tensors and numpy numbers as Python numbers, non-finite floats as strings (JSON has none), paths as
    strings."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


class Scalars:
    """TensorBoard scalars, or nothing: where it is switched off, not installed, or this is not the main
    process."""

    def __init__(self, folder: str | Path, *, enabled: bool, purge_step: int | None = None) -> None:
        self._writer: Any = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("tensorboard is not installed: no TensorBoard scalars are written")
            return
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, scalars: Mapping[str, Any], *, step: int) -> None:
        if self._writer is not None:
            for name, value in scalars.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class SmoothedValue:
    """A series: its last ``window_size`` values, and its total."""

    def __init__(self, window_size: int = 20, fmt: str | None = None) -> None:
        self.window: deque[float] = deque(maxlen=window_size)
        self.total, self.count = 0.0, 0
        self.fmt = fmt or "{median:.4f} ({global_avg:.4f})"

    def update(self, value: float, n: int = 1) -> None:
        self.window.append(value)
        self.total += value * n
        self.count += n

    def synchronize_between_processes(self) -> None:
        """Totals over all processes; the window stays this process's own."""
        total, count = dist_utils.all_reduce_sum(torch.tensor([self.total, self.count], dtype=torch.float64)).tolist()
        self.total, self.count = total, int(count)

    @property
    def median(self) -> float:
        return float(torch.tensor(list(self.window)).median()) if self.window else 0.0

    @property
    def avg(self) -> float:
        return sum(self.window) / max(len(self.window), 1)

    @property
    def global_avg(self) -> float:
        return self.total / max(self.count, 1)

    @property
    def max(self) -> float:
        return max(self.window, default=0.0)

    @property
    def value(self) -> float:
        return self.window[-1] if self.window else 0.0

    def __str__(self) -> str:
        return self.fmt.format(median=self.median, avg=self.avg, global_avg=self.global_avg, max=self.max, value=self.value)


class MetricLogger:
    """LAVIS' meters by name, and its progress lines around an iterable."""

    def __init__(self, delimiter: str = "  ") -> None:
        self.meters: dict[str, SmoothedValue] = defaultdict(SmoothedValue)
        self.delimiter = delimiter

    def add_meter(self, name: str, meter: SmoothedValue) -> None:
        self.meters[name] = meter

    def update(self, **values: float | torch.Tensor) -> None:
        for name, value in values.items():
            self.meters[name].update(float(value))

    def synchronize_between_processes(self) -> None:
        for meter in self.meters.values():
            meter.synchronize_between_processes()

    def global_avg(self) -> str:
        return self.delimiter.join(f"{name}: {meter.global_avg:.4f}" for name, meter in self.meters.items())

    def __str__(self) -> str:
        return self.delimiter.join(f"{name}: {meter}" for name, meter in self.meters.items())

    def log_every(self, iterable: Iterable[T], print_freq: int, header: str = "", *, total: int | None = None) -> Iterator[T]:
        """Yield the items; every ``print_freq`` of them log where we are, the meters, and the time left (of ``total``
        items, by default the iterable's length)."""
        if total is None:
            total = len(iterable) if isinstance(iterable, Sized) else None
        start = time.perf_counter()
        for index, item in enumerate(iterable):
            yield item
            if index % print_freq == 0 or index + 1 == total:
                each = (time.perf_counter() - start) / (index + 1)
                left = f"eta: {clock(each * (total - index - 1))}" if total is not None else ""
                where = f"{header} [{index + 1}/{total if total is not None else '?'}]"
                logger.info(self.delimiter.join(part for part in (where, left, str(self), f"time: {each:.4f}") if part))


def clock(seconds: float) -> str:
    """``h:mm:ss``."""
    whole = max(int(seconds), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
