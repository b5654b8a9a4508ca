"""Weights & Biases for those who ask for it (``run.wandb``): the scalars of TensorBoard, sent to a run that is gone on with when
training is.

Nothing depends on it. Where wandb is not installed, or cannot be started or reached, a warning says so and training goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis.common.errors import ConfigError, unknown

logger = logging.getLogger(__name__)
KEYS = ("project", "name", "entity", "mode")
MODES = ("online", "offline", "disabled")
ID_FILE = "wandb_run.json"  # in output_dir: which run to go on with
STEP = "step"  # the axis of all scalars; W&B's own counter would refuse the steps that a resumed run takes again


def wandb_settings(given: Any) -> dict[str, Any] | None:
    """``run.wandb`` as keywords of ``wandb.init``; None where it is null or false. ConfigError names what is accepted."""
    if given is None or given is False:
        return None
    if given is not True and not isinstance(given, Mapping):
        raise ConfigError(f"run.wandb is {given!r}; accepted: true, false, or a mapping with the keys {', '.join(KEYS)}")
    settings = {} if given is True else {str(key): value for key, value in given.items()}
    for key, value in settings.items():
        if key not in KEYS:
            raise ConfigError(unknown("key of run.wandb", key, KEYS))
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"run.wandb.{key} must be text, not {value!r}")
    if settings.get("mode") not in (None, *MODES):
        raise ConfigError(unknown("run.wandb.mode", settings["mode"], MODES))
    return {key: value for key, value in settings.items() if value is not None}


class WandbRun:
    """A run at Weights & Biases. Only the main process makes one.

    ``settings``: of ``wandb_settings``; a run without a name is called as its folder is. ``resumed``: whether training goes
    on, with the run whose id lies in ``output_dir``; a new run puts its own there.
    """

    def __init__(self, output_dir: Path, *, settings: Mapping[str, Any], config: Mapping[str, Any], resumed: bool) -> None:
        self._run: Any = None
        try:
            import wandb
        except ImportError:
            logger.warning("run.wandb is set, but wandb is not installed (pip install wandb): nothing is sent there")
            return
        path = output_dir / ID_FILE
        options = {"name": output_dir.resolve().name, **settings}
        if resumed and (known := _read_id(path)) is not None:
            options.update(id=known, resume="allow")
        try:
            self._run = wandb.init(dir=str(output_dir), config=dict(config), **options)
            self._run.define_metric(STEP)
            self._run.define_metric("*", step_metric=STEP)
            path.write_text(json.dumps({"id": self._run.id, "project": self._run.project}) + "\n", encoding="utf-8")
        except Exception as error:  # whatever it is, the training is worth more than its curves
            self._give_up("could not be started", error)

    def write(self, scalars: Mapping[str, Any], *, step: int) -> None:
        """Numbers by name, at a step of training."""
        if self._run is None:
            return
        numbers = {name: value for name, value in scalars.items() if isinstance(value, (int, float))}
        try:
            self._run.log({**numbers, STEP: step})
        except Exception as error:
            self._give_up("stopped taking scalars", error)

    def close(self) -> None:
        """Send what is left, and end the run there."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._give_up("could not be ended", error)
        self._run = None

    def _give_up(self, what: str, error: Exception) -> None:
        self._run = None
        logger.warning("Weights & Biases %s (%s: %s); the run goes on without it", what, type(error).__name__, error)


def _read_id(path: Path) -> str | None:
    """The id that an earlier part of the run left; None, with a warning, where there is none."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s names no Weights & Biases run to go on with (%s); a new one begins", path, error)
        return None
