"""SIGTERM and SIGUSR1 ask a training run to save and end: what schedulers send before they take a machine away.

A handler only notes the wish. The processes of a run agree on it at the end of an update, when all of them can save; see
`TrainStep` and `RunnerBase.train_step`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_received: list[str] = []


class Stopped(Exception):
    """The run ended before its end because it was asked to; what it had is saved."""


@contextmanager
def listening() -> Iterator[None]:
    """Inside, the signals are noted and do not end the process; afterwards they do what they did before. Does nothing outside
    the main thread, which alone receives signals. A signal may come twice (from torchrun and from the scheduler)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def ask(reason: str) -> None:
    """Ask the run to save and end, as a signal does."""
    _received.append(reason)


def received() -> str | None:
    """The name of the first signal that came, if one did."""
    return _received[0] if _received else None


def stop_if_received() -> None:
    """Raise Stopped where a signal came: for work that leaves nothing unsaved when it ends at once."""
    if _received:
        raise Stopped(f"{_received[0]} received")


def _note(number: int, frame: Any) -> None:
    _received.append(signal.Signals(number).name)
