"""Updates that were left out because a loss or gradient was not finite.

Whether an update is left out is decided on the device (`TrainStep`), the same on every process. Here the decision is read, a step
late so that the host never waits for the device, and told: in skipped_steps.jsonl with the samples of every process, in
log.txt, and by an error once it has happened too often.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lavis.common import dist_utils
from lavis.common.logger import JsonlLog
from lavis.runners.progress import Progress

ID_KEYS = ("instance_id", "image_id", "question_id")


class TooManySkippedSteps(RuntimeError):
    """More updates were left out than run.max_skipped_steps allows; the weights from before them are saved."""


class SkippedSteps:
    """Watches the updates of one run; their number is kept in its `Progress`."""

    def __init__(self, output_dir: Path, progress: Progress, *, limit: int | None) -> None:
        self.log = JsonlLog(output_dir / "skipped_steps.jsonl", enabled=dist_utils.is_main_process())
        self.progress, self.limit = progress, limit
        self._batches: list[dict[str, Any]] = []  # of the running update, this process's
        self._row: dict[str, Any] = {}
        self._flag: torch.Tensor | None = None  # of the last update, until it is read
        self._event: Any = None

    def begin(self, *, resumed: bool) -> None:
        """Start a file of a new run, or go on behind the lines that the resumed checkpoint knows."""
        if resumed:
            self.log.truncate(self.progress.skipped_updates)
        else:
            self.log.set_aside()

    def add_batch(self, key: str, samples: Mapping[str, Any]) -> None:
        """A batch of the running update."""
        self._batches.append({"modality": key, "samples": sample_ids(samples)})

    def watch(self, left_out: torch.Tensor, *, step: int, epoch: int) -> None:
        """The update is done; `left_out` (0-dim bool, on the device) says whether it was left out."""
        self._row = {"step": step, "epoch": epoch, "batches": self._batches}
        self._batches = []
        if left_out.is_cuda:
            self._flag = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(left_out, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._flag, self._event = left_out, None

    def settle(self) -> dict[str, Any] | None:
        """What to tell of the update that was watched last, or None where it was applied (or has been told). The same
        on every process, and collective where an update was left out."""
        flag, self._flag = self._flag, None
        if flag is None:
            return None
        if self._event is not None:
            self._event.synchronize()
        if not bool(flag):
            return None
        self.progress.skipped_updates += 1
        row = {"step": self._row["step"], "epoch": self._row["epoch"], "skipped_step": self.progress.skipped_updates}
        self.log.write({**row, "ranks": dist_utils.all_gather_objects(self._row["batches"])})
        return row

    @property
    def too_many(self) -> bool:
        return self.limit is not None and self.progress.skipped_updates > self.limit


def sample_ids(samples: Mapping[str, Any]) -> list[Any]:
    """What names the samples of a batch: the rows they were made of, or their ids."""
    for key in ID_KEYS:
        if samples.get(key) is not None:
            values = samples[key]
            return values.tolist() if isinstance(values, torch.Tensor) else list(values)
    return []
