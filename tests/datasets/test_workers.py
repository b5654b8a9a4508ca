"""Loader workers that fail or die say at which sample."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis.common.errors import ConfigError
from lavis.datasets.datasets.captions import CaptionDataset
from lavis.datasets.loaders import MixedLoader, TaskLoader, eval_loader
from lavis.datasets.workers import FIELDS, LINGER, SampleError, WatchedDataset, WorkerDied
from lavis.datasets.wrappers.joined import JoinedDataset
from tests.datasets.files import options, write_images, write_json

BAD = 5
ROOT = Path(__file__).resolve().parents[2]


class Rows(torch.utils.data.Dataset[Any]):
    """Sample `BAD` of an epoch calls `trouble`."""

    def __init__(self, trouble: Callable[[], Any], *, size: int = 12, epoch: int = 0, name: str = "rows") -> None:
        self.trouble, self.size, self.epoch, self.name, self.split = trouble, size, epoch, name, "train"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> int:
        if key == (self.epoch, BAD):
            self.trouble()
        return key[1]

    def collater(self, samples: list[int]) -> list[int]:
        return samples


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def mistake() -> None:
    raise KeyError("caption")


def refusal() -> None:
    raise ConfigError("datasets.rows: no such key")


def read(loader: Any, errors: list[BaseException]) -> None:
    try:
        list(loader)
    except RuntimeError as error:
        errors.append(error)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGKILL, "SIGKILL while .* memory is full .* smaller run.num_workers"),
        (signal.SIGBUS, "SIGBUS while .* shared memory is full: .* /dev/shm larger"),
        (signal.SIGSEGV, "SIGSEGV while .* a library crashed on this very sample"),
    ],
)
def test_a_killed_worker_names_its_sample(number: int, says: str) -> None:
    loader = eval_loader(Rows(kill(number)), batch_size=2, num_workers=2)
    with pytest.raises(WorkerDied, match=f"was killed by {says}") as caught:
        list(loader)
    assert f"while it read sample {BAD} of dataset rows, train (epoch 0)" in str(caught.value)


def test_a_worker_that_leaves_names_its_sample() -> None:
    with pytest.raises(WorkerDied, match=f"ended itself with exit code 7 while it read sample {BAD} "):
        list(eval_loader(Rows(lambda: os._exit(7)), batch_size=2, num_workers=1))


def test_outside_of_the_main_thread() -> None:
    """Where no signal arrives, torch's own look at its workers is explained as well."""
    errors: list[BaseException] = []
    loader = eval_loader(Rows(kill(signal.SIGKILL)), batch_size=12, num_workers=1)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the main thread would be told first
    thread = threading.Thread(target=read, args=(loader, errors))
    try:
        thread.start()
        thread.join(60)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert len(errors) == 1 and isinstance(errors[0], WorkerDied)
    assert f"was killed by SIGKILL while it read sample {BAD} of dataset rows" in str(errors[0])


def test_workers_that_stay_and_several_loaders() -> None:
    """The third epoch of one of two loaders ends it; the other one's notes are not taken for its."""
    good, bad = (Rows(kill(signal.SIGKILL), epoch=epoch, name=name) for epoch, name in ((-1, "good"), (2, "bad")))
    loaders = {name: TaskLoader(rows, batch_size=3, seed=0, num_workers=2) for name, rows in (("a", good), ("b", bad))}
    mixture = MixedLoader(loaders, seed=0, order="round_robin")
    for epoch in range(2):
        assert len(list(mixture.epoch(epoch))) == 8
    with pytest.raises(WorkerDied, match=rf"while it read sample {BAD} of dataset bad, train \(epoch 2\)"):
        list(mixture.epoch(2))


def test_a_death_reaches_whoever_waits_for_something_else() -> None:
    """The worker reads ahead while its process computes, here for as long as it takes."""
    batches = eval_loader(Rows(kill(signal.SIGKILL)), batch_size=1, num_workers=1)
    with pytest.raises(WorkerDied, match=f"while it read sample {BAD} of dataset rows"):
        for batch in batches:
            if batch == [BAD - 2]:  # the two batches behind it are being read
                assert not threading.Event().wait(60), "a minute has passed"


def test_workers_outlast_what_a_scheduler_sends_to_all() -> None:
    loader = TaskLoader(Rows(lambda: None, epoch=-1), batch_size=1, seed=0, num_workers=2)
    batches = loader.epoch(0)
    seen = [next(batches), next(batches)]  # one of each worker: both have begun
    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, signal.SIGTERM)
        os.kill(process.pid or 0, signal.SIGUSR1)
    seen += list(batches)
    assert sorted(index for batch in seen for index in batch) == list(range(12))


EXIT = """
import atexit, sys, time
atexit.register(lambda: print(time.monotonic() - ended))  # the first registered is the last called
import torch
from lavis.datasets.loaders import TaskLoader
from tests.datasets.test_workers import Rows
loader = TaskLoader(Rows(lambda: None, epoch=-1), batch_size=1, seed=0, num_workers=2)
for number, batch in enumerate(loader.epoch(0)):
    if number == int(sys.argv[1]):
        ended = time.monotonic()
        raise SystemExit(3)
ended = time.monotonic()
"""


@pytest.mark.parametrize("last", [3, 12])
def test_a_process_with_workers_ends_at_once(last: int) -> None:
    """In the middle of an epoch or after it: nobody waits for workers that would outlast a scheduler's SIGTERM."""
    done = subprocess.run([sys.executable, "-c", EXIT, str(last)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (3 if last < 12 else 0), done.stderr
    assert float(done.stdout) < LINGER / 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_exception_names_its_sample(num_workers: int) -> None:
    with pytest.raises(SampleError, match=rf"sample {BAD} of dataset rows, train \(epoch 0\): KeyError: 'caption'") as caught:
        list(eval_loader(Rows(mistake), batch_size=2, num_workers=num_workers))
    assert "def mistake" in str(caught.value) or isinstance(caught.value.__cause__, KeyError) or "in mistake" in str(caught.value)
    with pytest.raises(ConfigError, match="datasets.rows: no such key"):
        list(eval_loader(Rows(refusal), batch_size=2, num_workers=num_workers))


class FatalCaptions(CaptionDataset):
    """Dies of one caption."""

    def load(self, index: int, rng: np.random.RandomState) -> Any:
        sample = super().load(index, rng)
        if sample["text_input"] == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return sample


def captions(folder: Path, name: str, texts: list[str]) -> FatalCaptions:
    folder.mkdir()
    write_images(folder, [f"x_{i}.png" for i in range(len(texts))])
    rows = [{"image": f"x_{i}.png", "caption": text} for i, text in enumerate(texts)]
    return FatalCaptions(**{**options(folder, write_json(folder / f"{name}.json", rows)), "name": name})


def test_the_row_of_the_annotation_is_named(tmp_path: Path) -> None:
    first, second = captions(tmp_path / "a", "first", ["one"] * 3), captions(tmp_path / "b", "second", ["two", "deadly"])
    for dataset, index, row in ((second, 1, "second.json[1]"), (JoinedDataset([first, second]), 4, "second.json[1] of second")):
        with pytest.raises(WorkerDied) as caught:
            list(eval_loader(dataset, batch_size=1, num_workers=1))
        named = re.search(r"while it read (sample .*) \(epoch 0\)", str(caught.value))
        assert named is not None and named[1] == f"sample {index} of dataset {dataset.name}, train, row {row}"


def test_notes() -> None:
    watched = WatchedDataset(Rows(mistake), num_workers=2)
    assert watched.trouble is mistake and len(watched) == 12 and not hasattr(watched, "__getitems__")
    assert watched.last_words(os.getpid()) == "before it read a sample of dataset rows, train"
    watched.begin(1)
    assert watched.last_words(os.getpid()) == "before it read a sample of dataset rows, train"
    watched.notes[FIELDS:] = [os.getpid(), 3, 7, 0]
    assert watched.last_words(os.getpid()) == "after it had read sample 7 of dataset rows, train (epoch 3)"
