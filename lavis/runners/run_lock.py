"""One run writes a folder, and no process outlives its launcher.

The first run of a folder leaves `run.lock` in it: host, process, torchrun agents. It is renewed (its modification time) while
the run lives and removed at its end. A second start is refused and told whose folder it is. A lock is taken over where its
process is gone on this machine, where another machine has not renewed it for STALE_SECONDS, or where torchrun itself has
started the same launch again.

torch starts each worker in a session of its own, so a worker lives on when torchrun is killed: it would hold its GPU and write
beside the run that is started next. So each worker watches its parent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from lavis.common import dist_utils
from lavis.common.errors import ConfigError
from lavis.common.files import replacing
from lavis.common.paths import resolve
from lavis.runners import signals
from lavis.runners.attempts import this_agent

logger = logging.getLogger(__name__)
NAME = "run.lock"
POLL_SECONDS = 5.0
RENEW_SECONDS = 20.0
STALE_SECONDS = 180.0  # well above RENEW_SECONDS: a busy file server delays a renewal
END_SECONDS = 45.0  # for the step and the save of a worker without launcher; with POLL_SECONDS below a minute


@dataclass(frozen=True)
class Owner:
    """The process of rank 0 that holds a folder. ``system`` tells apart machines, and containers of one machine, that share a
    host name; ``started`` tells apart processes that were given one number."""

    host: str
    system: str
    pid: int
    started: str
    agents: list[str]
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class Lock:
    """The lock of one folder, of this process. ``agents``: the torchrun agents of this launch; none without torchrun."""

    def __init__(self, folder: Path, *, agents: list[str]) -> None:
        pid = os.getpid()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self.path = folder / NAME
        self.owner = Owner(socket.gethostname(), _system(), pid, _started(pid) or "", agents, since)

    def take(self) -> None:
        """ConfigError where another run holds the folder, or where nothing can be written to it."""
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _guarded(folder):
                self._refuse_or_tell()
                self._write()
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"run.output_dir: {folder} is a file, or lies below one; accepted: a folder") from None
        except OSError as error:
            raise ConfigError(f"run.output_dir: {folder} cannot be written: {error.strerror or error}") from None

    def _refuse_or_tell(self) -> None:
        """ConfigError where the folder is held by a run that lives; a line of the log where a lock is taken over."""
        if not self.path.exists():
            return
        other, age = read(self.path), _age(self.path)
        reason = self._may_take(other, age=age)
        if reason is None:
            raise ConfigError(
                f"run.output_dir: {self.path.parent} is being written by another run ({other or 'its lock cannot be read'}; "
                f"renewed {age:.0f} s ago); wait for its end, or give another folder"
            )
        logger.warning("%s: the lock of %s is taken over: %s", self.path, other or "a run", reason)

    def _may_take(self, other: Owner | None, *, age: float) -> str | None:
        """Why the lock of ``other`` may be taken over; None where that run may live."""
        late = f"it was not renewed for {age:.0f} s" if age > STALE_SECONDS else None
        if other is None:
            return late
        if set(other.agents) & set(self.owner.agents):
            return "torchrun started this run again"
        if other.system != self.owner.system:
            return late
        if other.pid == self.owner.pid or _started(other.pid) != other.started:
            return "its process is gone"
        return None

    def renew(self) -> bool:
        """Whether the lock is still this process's. A lock that was removed is written again, while its folder is there."""
        with contextlib.suppress(OSError):
            if not self.path.exists():
                if self.path.parent.is_dir():
                    self._write()
                return True
            if (other := read(self.path)) is not None and other != self.owner:
                return False
            os.utime(self.path)
        return True

    def release(self) -> None:
        """Remove the lock, if it is this process's; a process forked from it (a loader's worker) removes nothing."""
        with contextlib.suppress(OSError):
            if os.getpid() == self.owner.pid and read(self.path) == self.owner:
                self.path.unlink()

    def _write(self) -> None:
        with replacing(self.path, durable=False) as stream:
            stream.write(json.dumps(asdict(self.owner)).encode() + b"\n")


class Watch(threading.Thread):
    """Renews the lock (of rank 0) while the run lives, and ends a worker whose launcher is gone: first as SIGTERM does, at the
    end of a step and with a save; END_SECONDS later by force."""

    def __init__(self) -> None:
        super().__init__(name="run lock", daemon=True)
        self.lock: Lock | None = None
        self.over = threading.Event()
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._alone_since: float | None = None
        self._renewed = time.monotonic()

    def run(self) -> None:
        while not self.over.wait(POLL_SECONDS) or self._alone_since is not None:
            self._renew()
            self._look_for_launcher()
            if self._alone_since is not None and time.monotonic() > self._alone_since + END_SECONDS:
                self._end(f"the launcher has been gone for {END_SECONDS:.0f} s, and this process has not ended")
            if self.over.is_set():
                time.sleep(POLL_SECONDS)

    def _renew(self) -> None:
        if self.lock is None or self.over.is_set() or time.monotonic() < self._renewed + RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        if not self.lock.renew():
            self._end(f"another run has taken over {self.lock.path.parent} ({read(self.lock.path)}); nothing more is written")

    def _look_for_launcher(self) -> None:
        if self._launcher is not None and self._alone_since is None and os.getppid() != self._launcher:
            self._alone_since = time.monotonic()
            logger.error("torchrun (process %d) is gone: the run saves at the end of its step and ends", self._launcher)
            signals.ask("the end of torchrun")

    def _end(self, reason: str) -> None:
        """The main thread may wait for ever in a collective, where no exception reaches it."""
        logger.error("%s: it ends by force", reason)
        if self.lock is not None:
            self.lock.release()
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def held(run: DictConfig) -> Iterator[None]:
    """Inside, ``run.output_dir`` is this run's, and the processes end with their launcher. Collective; joins the process group.

    ConfigError, on every process, where another run holds the folder or where it cannot be written.
    """
    watch = Watch()
    watch.start()
    lock: Lock | None = None
    try:
        dist_utils.init_distributed(run)
        lock = _taken(resolve(run.output_dir))
        watch.lock = lock
        with _released_on_sigterm(lock):
            yield
    finally:
        watch.over.set()
        if lock is not None:
            lock.release()


def _taken(folder: Path) -> Lock | None:
    """The lock, taken, on rank 0; None on the others. Collective."""
    agents = sorted({agent for agent in dist_utils.all_gather_objects(this_agent()) if agent})
    lock, problem = None, None
    if dist_utils.is_main_process():
        lock = Lock(folder, agents=agents)
        try:
            lock.take()
        except ConfigError as error:
            problem = str(error)
    if problem := dist_utils.broadcast_object(problem):
        raise ConfigError(problem)
    return lock


@contextmanager
def _released_on_sigterm(lock: Lock | None) -> Iterator[None]:
    """Inside, SIGTERM removes the lock before it does what it did. While a run trains, `signals.listening` has the signal."""
    if lock is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

    def end(number: int, frame: FrameType | None) -> None:
        lock.release()
        signal.signal(number, before)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def read(path: Path) -> Owner | None:
    """The owner that a lock names; None where it cannot be read."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _age(path: Path) -> float:
    """Seconds since a lock was renewed, by the clock that stamps the folder's files: hosts may differ in theirs."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.now")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def _guarded(folder: Path) -> Iterator[None]:
    """One process of a machine at a time. Where the file system lets no folder be locked, and between machines, two starts at
    once may both pass: the one whose lock was overwritten sees that when it renews, and ends."""
    import fcntl

    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _started(pid: int) -> str | None:
    """When a process of this machine started, in clock ticks since boot; None where there is none. Where the system has no
    /proc, an empty string for a process that lives."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # the process's state, and field 22 of proc(5)
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass  # it is another user's
    return ""


def _system() -> str:
    """This boot of this machine, and the container's numbering of processes."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
