"""What training writes down: a JSON line and a console line every log_freq steps, a summary per epoch and per
run.

Everything that depends on the clock stands in one object, ``timing``; the rest of log.txt is the same
whenever the same run is repeated or resumed.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from lavis.common import dist_utils
from lavis.common.logger import JsonlLog, Scalars, clock
from lavis.runners.progress import Progress

logger = logging.getLogger(__name__)
T = TypeVar("T")


def peak_memory_gb(device: torch.device) -> float:
    """Most memory in use so far, in GB (2^30): of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Stopwatch:
    """Time and samples since the last ``read``, and the part of it spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start, self.waited, self.steps, self.samples = time.perf_counter(), 0.0, 0, 0

    def iterate(self, iterator: Iterator[T]) -> Iterator[T]:
        """The same items; the wait for each is counted."""
        while True:
            before = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - before
            yield item

    def count(self, samples: int) -> None:
        self.steps += 1
        self.samples += samples

    def read(self, *, steps_left: int, device: torch.device) -> dict[str, float]:
        """The ``timing`` object (seconds, share, samples per second over all processes), and start anew."""
        seconds = max(time.perf_counter() - self.start, 1e-9)
        each = seconds / max(self.steps, 1)
        timing = {
            "seconds_per_step": round(each, 5),
            "data_wait": round(self.waited / seconds, 4),
            "samples_per_second": round(self.samples * dist_utils.get_world_size() / seconds, 2),
            "eta_seconds": round(each * steps_left, 1),
            "max_memory_gb": round(peak_memory_gb(device), 3),
        }
        self.restart()
        return timing


class Report:
    """log.txt, the console and TensorBoard of a training run. Its methods are collective; the main process
    writes."""

    def __init__(self, output_dir: Path, *, run_cfg: Any, device: torch.device) -> None:
        main = dist_utils.is_main_process()
        self.log = JsonlLog(output_dir / "log.txt", enabled=main)
        self.stopwatch = Stopwatch()
        self.device = device
        self._folder, self._wanted = output_dir / "tensorboard", bool(run_cfg.tensorboard) and main
        self._scalars: Scalars | None = None

    def begin(self, *, step: int, log_lines: int | None) -> None:
        """Start a new log (an old one is set aside), or go on after the first ``log_lines`` lines of the old
        one."""
        if log_lines is None:
            self.log.set_aside()
        else:
            self.log.truncate(log_lines)
        self._scalars = Scalars(self._folder, enabled=self._wanted, purge_step=step if step else None)
        self.stopwatch.restart()

    def step(
        self,
        progress: Progress,
        *,
        key: str,
        losses: Mapping[str, torch.Tensor],
        lr: float,
        grad_norm: torch.Tensor | None,
        epoch_steps: int,
        steps_left: int,
    ) -> None:
        """The line of one step; here, and only here, the host waits for the device."""
        names = list(losses)
        values = torch.stack([losses[name].float() for name in names])
        means = (dist_utils.all_reduce_sum(values) / dist_utils.get_world_size()).tolist()
        numbers = dict(zip(names, means, strict=True))
        norm = None if grad_norm is None else float(grad_norm)
        timing = self.stopwatch.read(steps_left=steps_left, device=self.device)
        row = {"step": progress.step, "epoch": progress.epoch, "modality": key, **numbers, "lr": lr, "grad_norm": norm}
        self.log.write({**row, "timing": timing})
        self._write_scalars(
            {**{f"{key}/{name}": value for name, value in numbers.items()}, "lr": lr, "grad_norm": norm}
            | {f"timing/{name}": value for name, value in timing.items()},
            step=progress.step,
        )
        shown = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        where = f"epoch {progress.epoch} [{progress.step_in_epoch:>{len(str(epoch_steps))}}/{epoch_steps}] {key}"
        logger.info(
            "%s  %s  lr %.3g  grad %s | %.3f s/step, data %.0f %%, %.1f samples/s, eta %s, %.2f GB",
            where,
            shown,
            lr,
            "-" if norm is None else f"{norm:.3g}",
            timing["seconds_per_step"],
            100 * timing["data_wait"],
            timing["samples_per_second"],
            clock(timing["eta_seconds"]),
            timing["max_memory_gb"],
        )

    def skipped_step(self, row: Mapping[str, Any], *, path: Path) -> None:
        """The line of an update that was left out."""
        self.log.write(row)
        if dist_utils.is_main_process():
            logger.warning(
                "step %d: a loss or gradient was not finite; the update was left out (number %d of the run; samples: %s)",
                row["step"],
                row["skipped_step"],
                path,
            )

    def epoch(self, progress: Progress, *, seconds: float) -> None:
        """The line that ends an epoch: mean losses per modality, rows that were skipped."""
        means, skipped = progress.losses.means(), progress.skipped_in_epoch.summary()
        row = {"epoch": progress.epoch, "steps": progress.step_in_epoch, "mean": means, "skipped": skipped}
        self.log.write({**row, "timing": {"seconds": round(seconds, 2)}})
        for key, losses in means.items():
            shown = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            logger.info("epoch %d mean, %s: %s (%s)", progress.epoch, key, shown, clock(seconds))
        self._tell_skipped(f"epoch {progress.epoch}", skipped)

    def evaluation(self, metrics: Mapping[str, Any], *, progress: Progress, split: str, dataset: str) -> None:
        """The line of one evaluation during training."""
        self.log.write({"epoch": progress.epoch, "split": split, "dataset": dataset, **metrics})
        self._write_scalars({f"{dataset}/{split}/{name}": value for name, value in metrics.items()}, step=progress.step)

    def finish(self, progress: Progress, *, dropped: Mapping[str, int]) -> None:
        """The last line: steps in all, every row skipped in the run, rows left out when the files were
        read."""
        skipped = progress.skipped_in_run.summary()
        self.log.write({"finished": True, "steps": progress.step, "skipped": skipped, "dropped_at_reading": dict(dropped)})
        self._tell_skipped("whole run", skipped)
        for name, count in dropped.items():
            if count:
                logger.warning("%s: %d rows were left out when its files were read", name, count)
        if self._scalars is not None:
            self._scalars.close()

    def _write_scalars(self, scalars: Mapping[str, Any], *, step: int) -> None:
        if self._scalars is not None:
            self._scalars.write(scalars, step=step)

    def _tell_skipped(self, when: str, skipped: Mapping[str, Mapping[str, Any]]) -> None:
        if dist_utils.is_main_process():
            for reason, entry in skipped.items():
                logger.warning("%s: skipped %d x %s: %s", when, entry["count"], reason, ", ".join(entry["first"]))
