"""One model, many who ask: requests take turns, and a bounded number of them waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lavis.serving.captioner import Captioner

PLACES = 32  # requests that wait or are answered; more are sent away


class Busy(RuntimeError):
    """All places are taken; the message says so to whoever asked."""


class Desk:
    """The captioner, for one request at a time; `with desk.turn() as captioner`. Safe to use from many threads."""

    def __init__(self, captioner: Captioner, *, places: int = PLACES) -> None:
        self.captioner = captioner
        self.places = places
        self._free = threading.BoundedSemaphore(places)
        self._turn = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[Captioner]:
        """Wait for the others; Busy at once where all places are taken."""
        if not self._free.acquire(blocking=False):
            raise Busy(f"{self.places} requests are waiting, which is the most that do; try again in a moment")
        try:
            with self._turn:
                yield self.captioner
        finally:
            self._free.release()
