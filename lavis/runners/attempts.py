"""A training that torchrun starts again goes on from its own newest checkpoint, whatever it was started from.

``torchrun --max-restarts`` starts all processes again when one has died. What they find in the output folder may be of this
launch or of an earlier run, and torchrun's restart count does not tell: nodes that only lost another one are started again
without counting, and a process may die before it has touched the folder. So a run that begins

1. sets checkpoints aside that are not its own past, into ``before_<n>/``,
2. writes down which torchrun agents began it (``launch.json``).

A start is a later attempt where any of its agents is written there.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis.common import dist_utils
from lavis.common.checkpoint import CheckpointError, list_checkpoints, load_checkpoint_file, progress_of
from lavis.common.paths import resolve
from lavis.runners.saving import find_resume

logger = logging.getLogger(__name__)
MARK = "launch.json"


class Attempt:
    """One start of a training: ``state`` is what it goes on from, on every process; None: a new run.

    A later attempt of a torchrun launch takes its own newest good checkpoint; where it has none yet, and in a first attempt,
    ``resume`` (``run.resume_ckpt_path``) is what counts.
    """

    def __init__(self, resume: str | None, output_dir: Path) -> None:
        """Collective."""
        self.output_dir = output_dir
        self.agents = sorted({agent for agent in dist_utils.all_gather_objects(this_agent()) if agent})
        again = dist_utils.broadcast_object(bool(set(self.agents) & _marked(output_dir)))
        self.state = find_resume("auto", output_dir) if again else None
        own = self.state is not None  # whether the state is of this folder
        if own:
            logger.info("started again by torchrun: the run goes on from its own checkpoint")
        else:
            self.state = find_resume(resume, output_dir)
            own = bool(resume) and (resume == "auto" or resolve(str(resume)).resolve().parent == output_dir.resolve())
        self._foreign = _not_of(self.state if own else None, output_dir) if dist_utils.is_main_process() else []
        self._forget_best()

    def _forget_best(self) -> None:
        """A best checkpoint that will not be in the folder is none: the next evaluation chooses anew."""
        best = self.state["progress"]["best"] if self.state else {}
        files = {name: self.output_dir / f"checkpoint_{name}.pth" for name in best}
        gone = [name for name, path in files.items() if path in self._foreign or not path.is_file()]
        for name in dist_utils.broadcast_object(gone):
            del best[name]

    def begin(self) -> None:
        """Make the folder this run's own, once nothing speaks against the run any more."""
        if dist_utils.is_main_process():
            set_aside(self._foreign, self.output_dir)
            _mark(self.agents, self.output_dir)


def this_agent() -> str | None:
    """A name of the torchrun agent that started this process: the same in every attempt, another in another launch. None
    without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    # <folder of this launch, of a random name>/attempt_<n>/<local rank>/error.json
    folders = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parents
    known = len(folders) > 2 and folders[1].name.startswith("attempt_")
    return f"{socket.gethostname()}:{folders[2] if known else os.getppid()}"


def is_later_attempt(output_dir: Path) -> bool:
    """Whether this process's own agent began the run of this folder. Not collective."""
    return this_agent() in _marked(output_dir)


def set_aside(paths: list[Path], output_dir: Path) -> None:
    """Move checkpoints into the first free ``before_<n>/`` of their folder."""
    if not paths:
        return
    number = 1
    while (folder := output_dir / f"before_{number}").exists():
        number += 1
    folder.mkdir()
    for path in paths:
        path.rename(folder / path.name)
    logger.warning("%s held %d checkpoints that are not of this run's past; they are now in %s", output_dir, len(paths), folder)


def _not_of(state: Mapping[str, Any] | None, output_dir: Path) -> list[Path]:
    """The folder's checkpoints that are not the past of a run that begins with ``state``: those that are further, as their
    names or (the best ones) their contents say; None: all."""
    if state is None:
        return sorted(output_dir.glob("checkpoint_*.pth"))
    epoch_is_over = state["progress"]["epoch"] > state["epoch"]
    start = (state["epoch"], float("inf") if epoch_is_over else state["step"])
    numbered = [path for path in list_checkpoints(output_dir) if (progress_of(path) or start) > start]
    best = sorted(output_dir.glob("checkpoint_best*.pth"))
    return [*numbered, *(path for path in best if _steps(path) > state["step"])]


def _steps(path: Path) -> float:
    """The steps that a checkpoint has behind it; infinite for one that cannot be read."""
    try:
        return float(load_checkpoint_file(path)["step"])
    except (CheckpointError, KeyError, TypeError):
        return float("inf")


def _marked(output_dir: Path) -> set[str]:
    try:
        return set(json.loads((output_dir / MARK).read_text(encoding="utf-8"))["agents"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()  # none was written, or not to its end: no attempt had begun


def _mark(agents: list[str], output_dir: Path) -> None:
    """Name the agents of this run; without torchrun no attempt can follow, and no mark is left."""
    path = output_dir / MARK
    if not agents:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f".{MARK}.tmp")
    temporary.write_text(json.dumps({"agents": agents}) + "\n", encoding="utf-8")
    temporary.replace(path)
