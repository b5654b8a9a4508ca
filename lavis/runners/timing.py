"""How fast a run is: the ``timing`` object of log.txt, over all processes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch

from lavis.common import dist_utils

T = TypeVar("T")
KEPT = 0.8  # what a log line keeps of the step times before it: about the last five lines count


def peak_memory_gb(device: torch.device) -> float:
    """Most memory in use so far, in GB (2^30): of the GPU, or of this process without its loader workers."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class DataWait:
    """Time in which nothing could be computed because the next batch was not there.

    A GPU works on while the host waits. There it is the time between two marks in the GPU's own queue, one before the wait and
    one after it: nothing, where the work queued before outlasts the wait.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._marks: list[tuple[Any, Any]] = []

    def iterate(self, iterator: Iterator[T]) -> Iterator[T]:
        """The same items; the wait for each is counted."""
        while True:
            before = self._mark()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._marks.append((before, self._mark()))
            yield item

    def read(self) -> float:
        """Seconds since the last reading."""
        marks, self._marks = self._marks, []
        if not self._on_gpu:
            return sum(after - before for before, after in marks)
        if marks:
            marks[-1][1].synchronize()  # it is in the queue ahead of the step for which the log line waits anyway
        return sum(before.elapsed_time(after) / 1000 for before, after in marks)

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Pace:
    """Mean seconds of a step, for each key by itself, and of a pause between epochs; the latest count most."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._steps: dict[str, float] = {}
        self._pauses: list[float] = []

    def add(self, seconds: Mapping[str, float], steps: Mapping[str, int]) -> None:
        for key in steps:
            self._seconds[key] = KEPT * self._seconds.get(key, 0.0) + seconds[key]
            self._steps[key] = KEPT * self._steps.get(key, 0.0) + steps[key]

    def add_pause(self, seconds: float) -> None:
        self._pauses.append(seconds)

    def seconds_left(self, steps: Mapping[str, float], *, pauses: int) -> float:
        """Of these steps (by key) and pauses. A key not seen yet is taken to be as slow as the others are on average, a pause as
        long as those so far were."""
        known = {key: self._seconds[key] / self._steps[key] for key in self._steps}
        usual = sum(known.values()) / max(len(known), 1)
        pause = sum(self._pauses) / max(len(self._pauses), 1)
        return sum(count * known.get(key, usual) for key, count in steps.items()) + pauses * pause


class Stopwatch:
    """Time, samples and waits since the last ``read``, and the pace of the run."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pace = device, Pace()
        self._wait = DataWait(device)
        self._peak, self._key = 0.0, ""
        self._ended: float | None = None  # when the last step did, until the next epoch begins
        self._seconds: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._samples = 0
        self._start = self._lap = time.perf_counter()

    def begin_epoch(self) -> None:
        """The time since the last step (validation, saving) was a pause, and belongs to no step."""
        if self._ended is not None:
            self.pace.add_pause(time.perf_counter() - self._ended)
        self._ended = None
        self._wait.read()
        self._clear()

    def iterate(self, batches: Iterator[tuple[str, T]]) -> Iterator[tuple[str, T]]:
        """The same (key, batch) pairs, the wait for each counted."""
        for key, batch in self._wait.iterate(batches):
            self._key = key
            yield key, batch

    def count(self, samples: int) -> None:
        """A step is done; ``samples``: of this process."""
        self._ended = now = time.perf_counter()
        self._seconds[self._key] = self._seconds.get(self._key, 0.0) + now - self._lap
        self._steps[self._key] = self._steps.get(self._key, 0) + 1
        self._samples += samples
        self._lap = now

    def read(self, *, steps_left: Mapping[str, float], pauses_left: int) -> dict[str, float]:
        """The ``timing`` object, and start anew. Collective; to be called when the device has done its work.

        seconds_per_step   of all steps since the last line
        data_wait          share of that time spent waiting for data, of the process that waited longest
        samples_per_second of all processes together
        eta_seconds        to the end of training: ``steps_left`` by key, and as many pauses between epochs
        max_memory_gb      so far, of the process that has most
        """
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        if self._steps:  # the work that the device had still to do belongs to the last step
            self._seconds[self._key] += now - self._lap
        self.pace.add(self._seconds, self._steps)
        self._peak = max(self._peak, peak_memory_gb(self.device))
        own = (self._wait.read(), self._samples, self._peak)
        waits, samples, memory = zip(*dist_utils.all_gather_objects(own), strict=True)
        timing = {
            "seconds_per_step": round(seconds / max(sum(self._steps.values()), 1), 5),
            "data_wait": round(min(max(waits) / seconds, 1.0), 4),
            "samples_per_second": round(sum(samples) / seconds, 2),
            "eta_seconds": round(self.pace.seconds_left(steps_left, pauses=pauses_left), 1),
            "max_memory_gb": round(max(memory), 3),
        }
        self._clear()
        return timing

    def _clear(self) -> None:
        self._start = self._lap = time.perf_counter()
        self._seconds, self._steps, self._samples = {}, {}, 0
