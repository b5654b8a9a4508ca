"""Imported by a run's YAML (`imports`): the process kills itself in the middle of a save, as KILL_IN_SAVE says.

KILL_IN_SAVE is "<n> <stage>": at the n-th checkpoint that the process writes, `half` written, before `fsync`, before `rename`, or
once it is `renamed`.
"""

from __future__ import annotations

import io
import os
import signal
from typing import Any

import torch

from lavis.common import checkpoint

_saves = 0
_original_save, _original_fsync, _original_replace = torch.save, os.fsync, os.replace


def _here(stage: str) -> bool:
    number, _, wanted = os.environ.get("KILL_IN_SAVE", "0 never").partition(" ")
    return _saves == int(number) and stage == wanted


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _save(state: Any, stream: Any) -> None:
    global _saves
    _saves += 1
    if _here("half"):
        whole = io.BytesIO()
        _original_save(state, whole)
        stream.write(whole.getvalue()[: whole.tell() // 2])
        stream.flush()
        _die()
    _original_save(state, stream)


def _fsync(number: int) -> None:
    if _here("fsync"):
        _die()
    _original_fsync(number)


def _replace(source: Any, target: Any) -> None:
    if _here("rename") and str(target).endswith(".pth"):
        _die()
    _original_replace(source, target)
    if _here("renamed") and str(target).endswith(".pth"):
        _die()


checkpoint.torch.save, checkpoint.os.fsync, checkpoint.os.replace = _save, _fsync, _replace
