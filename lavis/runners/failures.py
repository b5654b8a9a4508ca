"""How a process that fails among several ends: the guilty one's error is shown, and nothing hides it.

When a process dies, the others fail a moment later in a collective, with errors about closed connections. torchrun calls the
first failure that it sees the root cause and ends the rest with SIGTERM; so a process that only lost another one gives
torchrun the time to find that other one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
GRACE = 10.0  # seconds: well above what torchrun needs to see a death (0.1 s), and to tell the other nodes
# What gloo, torch's store and NCCL say of another process that is gone.
PEER_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection closed by remote peer",
    "connection refused",
    "broken pipe",
    "remote process exited",
    "nccl communicator was aborted",
    "did the remote server shutdown or crash",
)


class PeerLostError(RuntimeError):
    """Another process of the run ended; its own error is the one to look at."""


def is_peer_lost(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone. An OSError is this process's own."""
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in PEER_LOST)


def recorded(action: Callable[[], T]) -> T | None:
    """The action's result; under torchrun its error is also written where torchrun looks for the root cause.

    PeerLostError, after GRACE seconds in which torchrun may end this process, where the action failed because another process
    is gone.
    """

    def run() -> T:
        try:
            return action()
        except RuntimeError as error:
            if not is_peer_lost(error):
                raise
            reason = str(error).splitlines()[0]
            print(f"rank {_rank()}: another process ended; its own error says why. Here: {reason}", file=sys.stderr, flush=True)
            _wait_to_be_ended()
            raise PeerLostError(
                f"rank {_rank()} stopped because another process of the run ended; the error to look at is that one's: above, in "
                f"the logs of the other ranks, or in the output of another node ({reason})"
            ) from None

    if not os.environ.get("TORCHELASTIC_ERROR_FILE"):
        return run()
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(run)()


def show(error: BaseException) -> None:
    """The error on stderr: with its traceback, unless it is another process's."""
    if isinstance(error, PeerLostError):
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)


def _rank() -> str:
    return os.environ.get("RANK", "0")


def _wait_to_be_ended() -> None:
    """Wait GRACE seconds; SIGTERM, whatever handled it before, ends the process at once."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(GRACE)
