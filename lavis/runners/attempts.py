"""A training that torchrun starts again goes on from its own newest checkpoint, whatever it was started from.

``torchrun --max-restarts`` starts all processes again when one has died. What they find in the output folder may be of this
launch or of an earlier run, and torchrun's restart count does not tell: nodes that only lost another one are started again
without counting, and a process may die before it has touched the folder. So a run that begins

1. sets checkpoints aside that are not its own past, into ``before_<n>/``,
2. writes down which torchrun agents began it (``launch.json``).

A later attempt is one of whose agents any is written there.
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
from lavis.common.checkpoint import list_checkpoints, progress_of
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
        self._own = self.state is not None  # whether the state is of this folder
        if self._own:
            logger.info("started again by torchrun: the run goes on from its own checkpoint")
        else:
            self.state = find_resume(resume, output_dir)
            self._own = bool(resume) and (resume == "auto" or resolve(str(resume)).resolve().parent == output_dir.resolve())

    def begin(self) -> None:
        """Make the folder this run's own, once nothing speaks against the run any more."""
        if dist_utils.is_main_process():
            set_aside(_beyond(self.state if self._own else None, self.output_dir), self.output_dir)
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


def _beyond(state: Mapping[str, Any] | None, output_dir: Path) -> list[Path]:
    """The folder's checkpoints that a run from ``state`` has not made yet; None: every one, also the best."""
    if state is None:
        return sorted(output_dir.glob("checkpoint_*.pth"))
    epoch_is_over = state["progress"]["epoch"] > state["epoch"]
    start = (state["epoch"], float("inf") if epoch_is_over else state["step"])
    return [path for path in list_checkpoints(output_dir) if (progress_of(path) or start) > start]


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
