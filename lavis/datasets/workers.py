"""Loader workers whose trouble has a name: which sample a worker was reading when it failed, or when it died.

Of a worker that was killed, torch says its process id and the signal. So each worker notes in memory shared with the loading
process which sample it reads, and `WorkerDied` says what the note says. An exception keeps its text, with the sample before it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from lavis.common.errors import ConfigError
from lavis.datasets.datasets.base_dataset import AnnotationError

PID, EPOCH, INDEX, READING, FIELDS = range(5)  # a worker's note; index -1: none yet; reading 0: it is through with the sample
BROKEN = (OSError, EOFError, pickle.UnpicklingError)  # what reading from a worker that is gone may raise
LINGER = 60  # seconds that a worker goes on after a SIGTERM that is not the loading process's
GRACE = 5.0  # seconds that a worker whose connection broke may take to be gone
ADVICE = {
    "SIGKILL": "Most often the system does this when the memory is full (dmesg says so): set a smaller run.num_workers",
    "SIGBUS": "Most often the shared memory is full: set a smaller run.num_workers or batch size, or make /dev/shm larger "
    "(docker run --shm-size=16g, or --ipc=host)",
    "": "Most often a library crashed on this very sample: run.num_workers=0 shows where, and its row can be left out",
}


class SampleError(RuntimeError):
    """A sample whose reading failed; the message names the sample, then says what its error said."""


class WorkerDied(RuntimeError):
    """A worker process that ended without an exception: by a signal, or because something in it called for the end."""


def name_of(dataset: Any, key: tuple[int, int] | None = None) -> str:
    """A dataset, or its sample (epoch, index), in words for a message, with the annotation row where the dataset knows it."""
    parts = [str(part) for part in (getattr(dataset, "name", type(dataset).__name__), getattr(dataset, "split", "")) if part]
    name = f"dataset {', '.join(parts)}"
    if key is None:
        return name
    epoch, index = key
    row = f", row {dataset.label_of(index)}" if hasattr(dataset, "label_of") else ""
    return f"sample {index} of {name}{row} (epoch {epoch})"


class WatchedDataset(Dataset[Any]):
    """A dataset that notes which of its samples each worker reads. Other attributes are those of the dataset in it."""

    def __init__(self, dataset: Dataset[Any], *, num_workers: int) -> None:
        self.dataset = dataset
        self.notes = RawArray("q", FIELDS * num_workers)
        self.dismissed = RawValue("b", 0)  # whether SIGTERM comes from the loading process

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def start(self, worker: int) -> None:
        """What a new worker process does first. Signals that a scheduler sends to every process of a job are for the loading
        process, which may have to finish a step and save: its workers go on meanwhile, for LINGER seconds after SIGTERM."""
        self.begin(worker)
        signal.signal(signal.SIGTERM, self._asked_to_end)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def begin(self, worker: int) -> None:
        """The first note of a worker."""
        self.notes[worker * FIELDS : (worker + 1) * FIELDS] = [os.getpid(), 0, -1, 0]

    def _asked_to_end(self, number: int, frame: Any) -> None:
        if self.dismissed.value or number == signal.SIGALRM:
            os._exit(0)
        signal.signal(signal.SIGALRM, self._asked_to_end)
        signal.alarm(LINGER)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """The sample of (epoch, index). SampleError where its reading fails; an AnnotationError or ConfigError, which name a
        file or a key, stay what they are."""
        worker = get_worker_info()
        start = worker.id * FIELDS if worker is not None else 0
        if worker is not None:
            self.notes[start + EPOCH], self.notes[start + INDEX], self.notes[start + READING] = *key, 1
        try:
            sample = self.dataset[key]
        except (AnnotationError, ConfigError):
            raise
        except Exception as error:
            raise SampleError(f"{name_of(self.dataset, key)}: {type(error).__name__}: {error}") from error
        if worker is not None:
            self.notes[start + READING] = 0
        return sample

    def last_words(self, pid: int | None) -> str:
        """What the worker with a process id was at."""
        for start in range(0, len(self.notes), FIELDS):
            found, epoch, index, reading = self.notes[start : start + FIELDS]
            if found == pid and index >= 0:
                return f"{'while it read' if reading else 'after it had read'} {name_of(self.dataset, (epoch, index))}"
        return f"before it read a sample of {name_of(self.dataset)}"


class WatchedLoader(DataLoader[Any]):
    """A DataLoader that raises SampleError and WorkerDied. A death is told at once, wherever the main thread is, as torch does
    it; where another thread loads, within seconds. Keys of samples are (epoch, index)."""

    def __init__(self, dataset: Dataset[Any], *, num_workers: int, **options: Any) -> None:
        self.watched = WatchedDataset(dataset, num_workers=num_workers)
        self.processes: list[BaseProcess] = []  # the workers of the present epoch
        self.death = ""  # of one of them, in words
        super().__init__(self.watched, num_workers=num_workers, worker_init_fn=self.watched.start, **options)
        _loaders.add(self)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        others = multiprocessing.active_children()
        batches: Iterator[Any] = super().__iter__()
        end = object()
        if started := [child for child in multiprocessing.active_children() if child not in others]:
            self.processes, self.death = started, ""
            self.watched.dismissed.value = 0
            _explain_deaths()
        try:
            while not self.death:
                try:
                    batch = next(batches, end)
                except Exception as error:
                    self.find_death(patience=GRACE if isinstance(error, BROKEN) else 0.0)
                    if self.death:
                        continue  # it is told below, where no frame of torch's is held any more
                    self.dismiss()
                    raise
                if batch is end:
                    return
                yield batch
            batches = iter(())
            raise WorkerDied(self.death)
        finally:
            if not self.persistent_workers:
                self.processes, self.watched.dismissed.value = [], 1

    def find_death(self, *, patience: float = 0.0) -> bool:
        """Whether a worker is found dead that was not before, after up to `patience` seconds."""
        if self.death:
            return False
        if patience:
            ended = connection.wait([process.sentinel for process in self.processes], timeout=patience)
            for process in self.processes:
                if process.sentinel in ended:
                    process.join(patience)
        dead = next((process for process in self.processes if process.exitcode), None)
        if dead is None or dead.exitcode is None:
            return False
        name = signal.Signals(-dead.exitcode).name if dead.exitcode < 0 else ""
        how = f"was killed by {name}" if name else f"ended itself with exit code {dead.exitcode}"
        advice = ADVICE.get(name, ADVICE[""])
        self.death = f"a loader worker (pid {dead.pid}) {how} {self.watched.last_words(dead.pid)}. {advice}"
        self.dismiss()
        return True

    def dismiss(self) -> None:
        """End the workers of a loader that gives no batch any more. Torch would wait for each of them, seconds where the queue
        is closed already, or in vain where a dead one held its lock. They take SIGTERM for a regular end once they have begun."""
        begun = self.watched.notes[PID::FIELDS]
        self.watched.dismissed.value = 1
        for process in self.processes:
            if process.pid in begun:
                process.terminate()
        self._iterator = None


_loaders: weakref.WeakSet[WatchedLoader] = weakref.WeakSet()


@atexit.register  # later than multiprocessing's own, which sends SIGTERM to every worker and waits: it runs before that one
def _dismiss_all() -> None:
    for loader in list(_loaders):
        loader.watched.dismissed.value = 1


class _ExplainingHandler:
    """Torch's handler of SIGCHLD, which raises wherever the main thread is, with an error that names the sample."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def __call__(self, signum: int, frame: Any) -> None:
        try:
            self.handler(signum, frame)
        except RuntimeError:
            for loader in list(_loaders):
                if loader.find_death():
                    raise WorkerDied(loader.death) from None
            raise


def _explain_deaths() -> None:
    """Put the handler above around torch's, which stands once a loader has started workers."""
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and not isinstance(handler, _ExplainingHandler):
            signal.signal(signal.SIGCHLD, _ExplainingHandler(handler))
