"""Many items, each turned into files of its own: in parallel, passing over what is done, going on after a bad one."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from lavis.common.errors import ConfigError
from lavis.common.files import replacing
from lavis.datasets.convert.problems import Problems

T = TypeVar("T")
Note = tuple[str, str]  # kind, place: what `Problems.add` takes
Work = Callable[[T], Sequence[Note]]

AHEAD = 4  # items per process that wait in the pool's queue, so that none of them idles
QUIET_SECONDS = 30  # between progress lines where stderr is a file


class BadItem(ValueError):
    """An item that cannot be converted; the message says why, and names the file."""


@dataclass
class BatchReport:
    """What became of each item. `notes`: oddities of items that were converted all the same."""

    finished: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    failed: Problems = field(default_factory=Problems)
    notes: Problems = field(default_factory=Problems)
    processes: set[int] = field(default_factory=set)

    @property
    def exit_code(self) -> int:
        """1 where an item failed."""
        return 1 if len(self.failed) else 0

    def lines(self, what: str) -> Iterator[str]:
        """The summary; `what`: the word for items."""
        spread = f" by {len(self.processes)} processes" if len(self.processes) > 1 else ""
        counts = f"{len(self.passed_over)} were there already, {len(self.failed)} failed"
        yield f"{len(self.finished)} {what} converted{spread}, {counts}"
        yield from (f"note: {line}" for line in self.notes.lines())
        yield from (f"failed: {line}" for line in self.failed.lines())


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_batch(
    items: Mapping[str, T], work: Work[T], *, done: Callable[[T], bool], what: str, workers: int, again: bool = False
) -> BatchReport:
    """Call `work(item)` for each item that is not `done`, or with `again` for each, in `workers` processes.

    `work` is a function of a module, so that processes can find it. It writes the item's files and returns notes.
    Whatever it raises, or the end of its process, costs that item only. stderr shows the progress.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"workers is {workers!r}; accepted: an integer of 1 or more")
    report = BatchReport()
    interval = 0.1 if sys.stderr.isatty() else QUIET_SECONDS
    with tqdm(total=len(items), desc=what, unit="", mininterval=interval, file=sys.stderr) as bar:
        waiting: deque[tuple[str, T]] = deque()
        for name, item in items.items():
            if not again and done(item):
                report.passed_over.append(name)
                bar.update()
            else:
                waiting.append((name, item))
        for name, (process, notes, failure) in _results(waiting, work, workers):
            report.processes.add(process)
            for kind, place in notes:
                report.notes.add(kind, place)
            if failure:
                report.failed.add(*failure)
            else:
                report.finished.append(name)
            bar.update()
    return report


Result = tuple[int, Sequence[Note], Note | None]  # process, notes, failure


def _guarded(name: str, item: T, work: Work[T]) -> Result:
    try:
        return os.getpid(), work(item), None
    except BadItem as error:
        kind, _, rest = str(error).partition(": ")
        return os.getpid(), (), (kind, f"{name} ({rest})" if rest else name)
    except Exception as error:  # a broken file makes its decoder raise almost anything; it costs this item only
        return os.getpid(), (), ("broken input", f"{name} ({type(error).__name__}: {error})")


def _results(waiting: deque[tuple[str, T]], work: Work[T], workers: int) -> Iterator[tuple[str, Result]]:
    """The result of each item, as it comes."""
    if min(workers, len(waiting)) <= 1:
        yield from ((name, _guarded(name, item, work)) for name, item in waiting)
        return
    while waiting:
        suspects = yield from _until_one_dies(waiting, work, min(workers, len(waiting)))
        for suspect in suspects:  # each alone, to find the one that ended its process
            alone = deque([suspect])
            if (yield from _until_one_dies(alone, work, 1)):
                ended = "the process ended: killed, or out of memory"
                yield suspect[0], (os.getpid(), (), (ended, suspect[0]))


def _until_one_dies(
    waiting: deque[tuple[str, T]], work: Work[T], workers: int
) -> Generator[tuple[str, Result], None, list[tuple[str, T]]]:
    """Results until nothing waits, or a process ends; returns the items that were on their way then."""
    running: dict[Future[Result], tuple[str, T]] = {}
    # not fork: progress bar and libraries may have started threads
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method)) as pool:
        while waiting or running:
            try:
                while waiting and len(running) < workers * (1 + AHEAD):
                    name, item = waiting[0]
                    running[pool.submit(_guarded, name, item, work)] = waiting.popleft()
            except BrokenProcessPool:
                if not running:
                    return []
            ready, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                if not isinstance(future.exception(), BrokenProcessPool):
                    yield running.pop(future)[0], future.result()
            if any(future in running for future in ready):
                return list(running.values())
    return []


def check_settings(folder: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Refuse to go on in a folder that was begun with other settings, so that it never holds items of two kinds:
    ConfigError. A new folder notes them, in a file `.<name>.json`."""
    path = folder / f".{name}.json"
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        with replacing(path) as stream:
            stream.write(json.dumps(dict(settings)).encode())
        return
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); remove it to convert everything anew") from error
    if begun != dict(settings):
        accepted = f"the same, or another folder (or remove {path.name} and what was converted)"
        raise ConfigError(f"{folder} was begun with {json.dumps(begun)}, not {json.dumps(dict(settings))}; accepted: {accepted}")
