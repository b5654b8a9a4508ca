"""When checkpoints are written, under which names, which are kept, and how a run goes on from one."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lavis.common import dist_utils
from lavis.common.checkpoint import CheckpointError, find_latest, list_checkpoints, load_checkpoint_file, save_checkpoint
from lavis.common.errors import ConfigError
from lavis.common.paths import resolve

logger = logging.getLogger(__name__)
SAVE_FREQ = re.compile(r"(\d+(?:\.\d+)?)\s*(epochs?|steps?|minutes?)?$")


@dataclass(frozen=True)
class SaveFreq:
    """How far apart checkpoints are."""

    every: float
    unit: str  # epoch | step | minute

    @classmethod
    def parse(cls, text: Any) -> SaveFreq:
        """``5`` or ``"5 epochs"``, ``"500 steps"``, ``"10 minutes"``."""
        match = SAVE_FREQ.fullmatch(str(text).strip())
        unit = (match[2] or "epoch").rstrip("s") if match else ""
        every = float(match[1]) if match else 0.0
        if every <= 0 or (unit != "minute" and not every.is_integer()):
            raise ConfigError(f"run.save_freq is {text!r}; accepted: a number of epochs, '500 steps' or '10 minutes'")
        return cls(every, unit)


class Saver:
    """Writes the checkpoints of one run into its folder."""

    def __init__(self, output_dir: Path, *, run_cfg: Any) -> None:
        self.output_dir = output_dir
        self.freq = SaveFreq.parse(run_cfg.save_freq)
        self.keep_last = run_cfg.keep_last
        self.save_last = bool(run_cfg.save_last)
        self._saved_at = time.monotonic()
        self.problem: str | None = None  # why the last save failed, if it did
        self.passing: Path | None = None  # a checkpoint that goes when the next one is written that is no best one

    def due_after_step(self, step: int, *, is_log_step: bool) -> bool:
        """Whether to save within an epoch. The same answer on every process: minutes are the main process's,
        and asked for at the steps that are logged."""
        if self.freq.unit == "step":
            return step % int(self.freq.every) == 0
        if self.freq.unit == "minute" and is_log_step:
            return dist_utils.broadcast_object(time.monotonic() - self._saved_at >= 60 * self.freq.every)
        return False

    def due_after_epoch(self, epochs_done: int, *, is_last: bool) -> bool:
        due = self.freq.unit == "epoch" and epochs_done % int(self.freq.every) == 0
        return due or (is_last and self.save_last)

    def save(self, state: Mapping[str, Any], name: str) -> bool:
        """Write ``<name>.pth`` on the main process, drop the oldest beyond keep_last; the others wait. False, on every
        process, where it could not be written (a full disk): what stood there before stays, and the run goes on."""
        path = self.output_dir / f"{name}.pth"
        problem: str | None = None
        if dist_utils.is_main_process():
            problem = self._write(dict(state), path)
        problem = dist_utils.broadcast_object(problem)
        self._saved_at = time.monotonic()
        self.problem = problem
        return problem is None

    def _write(self, state: dict[str, Any], path: Path) -> str | None:
        """Write one file, with room made once where old checkpoints are dropped anyway; returns what went wrong."""
        start = time.perf_counter()
        try:
            try:
                save_checkpoint(state, path)
            except OSError as error:
                if not self._make_room(path):
                    raise
                logger.warning("%s: %s; written again after the oldest checkpoint was removed", path, error.strerror)
                save_checkpoint(state, path)
        except OSError as error:
            newest = next(iter(list_checkpoints(self.output_dir)), None)
            kept = f"the last one is {newest.name}" if newest else "there is none yet"
            problem = f"checkpoint {path} could not be written: {error.strerror or error}; {kept}"
            logger.error("%s. Training goes on; make room on the disk before the next one is due.", problem)
            return problem
        logger.info("saved %s (%.1f s)", path, time.perf_counter() - start)
        if self.passing not in (None, path) and not path.name.startswith("checkpoint_best"):
            self.passing.unlink(missing_ok=True)
            self.passing = None
        if self.keep_last is not None:
            for old in list_checkpoints(self.output_dir)[int(self.keep_last) :]:
                old.unlink()
        return None

    def _make_room(self, path: Path) -> bool:
        """Remove the oldest of the checkpoints that ``keep_last`` would drop after this one; never the only one."""
        there = [item for item in list_checkpoints(self.output_dir) if item != path]
        if self.keep_last is None or len(there) < max(int(self.keep_last), 2):
            return False
        there[-1].unlink()
        return True

    def check(self) -> None:
        """CheckpointError where the last save failed: for the end of a run, when there is no next one."""
        if self.problem:
            raise CheckpointError(self.problem)

    def remove_leftovers(self) -> None:
        """Remove temporary files of a process that was killed while it saved."""
        if dist_utils.is_main_process() and self.output_dir.is_dir():
            for path in self.output_dir.glob(".*.pth.*.tmp"):
                logger.info("removed %s, left by a process that ended while it saved", path)
                path.unlink(missing_ok=True)


def find_resume(resume: str | None, output_dir: Path) -> dict[str, Any] | None:
    """The checkpoint ``run.resume_ckpt_path`` asks for (a path, or ``auto``), on every process; None: a new
    run."""
    state: dict[str, Any] | None = None
    if resume and dist_utils.is_main_process():
        path = find_latest(output_dir) if resume == "auto" else resolve(resume)
        if path is None:
            logger.info("nothing to resume in %s: a new run", output_dir)
        else:
            state = load_checkpoint_file(path)
            if missing := {"model", "optimizer", "progress", "loaders"} - state.keys():
                raise CheckpointError(
                    f"{path} is not a training checkpoint of ours (no {', '.join(sorted(missing))}); "
                    "to start from weights, name the file in model.pretrained or model.finetuned"
                )
            logger.info("resuming %s: epoch %d, step %d", path, state["progress"]["epoch"], state["progress"]["step"])
    return dist_utils.broadcast_object(state) if resume else None


def restore_weights(model: Any, state: Mapping[str, Any]) -> None:
    """Put a checkpoint's weights into the model they were saved from.

    ConfigError where names or sizes differ, or where the frozen weights they stand on are others.
    """
    saved, current = state["model"], model.trainable_state_dict()
    problems = [f"{name} is not in the checkpoint" for name in current.keys() - saved.keys()]
    problems += [f"{name} is not trainable in this model" for name in saved.keys() - current.keys()]
    problems += [
        f"{name} is {tuple(saved[name].shape)}, here {tuple(current[name].shape)}"
        for name in saved.keys() & current.keys()
        if saved[name].shape != current[name].shape
    ]
    bases = model.frozen_bases()
    for name, base in (state.get("frozen_bases") or {}).items():
        if name in bases and _hashes(base) != _hashes(bases[name]):
            problems.append(f"it stands on another {name} ({base}, here {bases[name]})")
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (f"; {len(problems)} in all" if len(problems) > 5 else "")
        raise ConfigError(f"the checkpoint does not fit this model: {shown}")
    with torch.no_grad():
        own = model.state_dict()
        for name, tensor in saved.items():
            own[name].copy_(tensor)


def _hashes(base: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in base.items() if key != "path"}
