"""Speed, waits and the time left are what they are said to be. Time is a clock that the tests move by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.datasets.loaders import MixedLoader, TaskLoader
from lavis.runners import timing
from lavis.runners.launch import build_runner
from lavis.runners.timing import DataWait, Pace, Stopwatch, peak_memory_gb
from tests.distributed import run_distributed
from tests.runners.fakes import FakeDataset, config

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    return clock


def batches(clock: Clock, *plan: tuple[str, float]) -> Iterator[tuple[str, None]]:
    """(key, None) pairs, each after so many seconds."""
    for key, wait in plan:
        clock.now += wait
        yield key, None


def test_speed_and_waits_since_the_last_line(clock: Clock) -> None:
    watch = Stopwatch(CPU)
    clock.now += 1000  # building the model is no part of it
    watch.begin_epoch()
    first = None
    for number, _ in enumerate(watch.iterate(batches(clock, ("a", 1.0), ("a", 3.0), ("a", 0.0)))):
        clock.now += 4
        watch.count(8)
        if number == 1:
            first = watch.read(steps_left={"a": 10}, pauses_left=0)
    second = watch.read(steps_left={"a": 0}, pauses_left=0)
    assert first is not None
    assert (first["seconds_per_step"], first["data_wait"], first["samples_per_second"]) == (6.0, 0.3333, 1.33)
    assert first["eta_seconds"] == 60.0 and first["max_memory_gb"] == pytest.approx(peak_memory_gb(CPU), abs=0.1)
    assert (second["seconds_per_step"], second["data_wait"], second["samples_per_second"]) == (4.0, 0.0, 2.0)


def test_the_time_left_knows_slow_and_fast_tasks_and_pauses(clock: Clock) -> None:
    """Sequential order: 20 steps of 1 s, then 10 of 5 s; 30 s of validation; 3 epochs."""
    watch = Stopwatch(CPU)
    told: dict[tuple[int, int], float] = {}
    for epoch in range(3):
        watch.begin_epoch()
        plan = [("fast", 0.5)] * 20 + [("slow", 0.0)] * 10
        for number, (key, _) in enumerate(watch.iterate(batches(clock, *plan))):
            clock.now += 0.5 if key == "fast" else 5
            watch.count(4)
            if number % 10 == 9:
                left = {"fast": max(19 - number, 0) + 20 * (2 - epoch), "slow": min(29 - number, 10) + 10 * (2 - epoch)}
                told[epoch, number] = watch.read(steps_left=left, pauses_left=3 - epoch)["eta_seconds"]
        clock.now += 30
    assert told[0, 9] == 10 + 10 + 2 * 20 + 2 * 10  # the slow one is not known yet, and taken for as fast; no pause either
    assert told[0, 19] == 10 + 2 * (20 + 10)
    assert told[0, 29] == 2 * (20 + 50)
    assert told[1, 9] == 10 + 50 + 30 + (20 + 50 + 30)  # all is known
    assert told[2, 29] == 30


def test_the_latest_steps_count_most() -> None:
    pace = Pace()
    for seconds in (100.0, *[1.0] * 20):  # a start that is slow
        pace.add({"a": seconds}, {"a": 1})
    assert pace.seconds_left({"a": 100.0}, pauses=0) == pytest.approx(100, rel=0.3)
    assert Pace().seconds_left({"a": 5}, pauses=1) == 0


class Event:
    """A mark in the queue of a GPU that is `behind` seconds behind the host."""

    clock: Clock
    done = 0.0  # when the GPU is through with what was queued

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = max(Event.done, Event.clock.now)

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return 1000 * (other.at - self.at)


def test_a_gpu_that_works_on_does_not_wait_for_data(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    Event.clock, Event.done = clock, clock.now
    wait = DataWait(torch.device("cuda"))
    for _ in wait.iterate(batches(clock, ("a", 2.0), ("a", 3.0), ("a", 9.0))):
        Event.done = max(Event.done, clock.now) + 5  # the host queues 5 seconds of work, and goes on at once
    assert wait.read() == 2 + 0 + 2  # at first nothing is queued; 3 s are hidden by 5 s of work; of 9 s, 7 s are
    assert wait.read() == 0


def of_two(folder: str) -> dict[str, float]:
    """Two processes: 3 and 5 samples, one has waited, the other has more memory."""
    from lavis.common import dist_utils

    rank, clock = dist_utils.get_rank(), Clock()
    timing.time = type("Time", (), {"perf_counter": clock})  # type: ignore[assignment]
    timing.peak_memory_gb = lambda device: 2.0 + rank  # type: ignore[assignment]
    watch = Stopwatch(CPU)
    for _ in watch.iterate(batches(clock, ("a", 0.0 if rank == 0 else 1.0))):
        clock.now += 2.0 - (0.0 if rank == 0 else 1.0)
        watch.count(3 + 2 * rank)
    timing.peak_memory_gb = lambda device: 1.0  # type: ignore[assignment]  # somebody reset the statistics
    first = watch.read(steps_left={}, pauses_left=0)
    return first


def test_all_processes_count(tmp_path: Path) -> None:
    first, _ = run_distributed(of_two, str(tmp_path), folder=tmp_path / "two")
    assert first["samples_per_second"] == 4.0, "8 samples in 2 seconds, not twice those of the main process"
    assert first["data_wait"] == 0.5, "of the one that waited longest"


def test_memory_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(CPU)
    seen = []
    for value in (2.0, 5.0, 1.0):
        monkeypatch.setattr(timing, "peak_memory_gb", lambda device, value=value: value)
        seen.append(watch.read(steps_left={}, pauses_left=0)["max_memory_gb"])
    assert seen == [2.0, 5.0, 5.0]


@pytest.mark.parametrize("order", ["sequential", "round_robin", "sampled"])
def test_upcoming_batches_by_task(order: str) -> None:
    def loader(modality: str, size: int) -> TaskLoader:
        return TaskLoader(FakeDataset("x", "train", modality=modality, size=size), batch_size=2, seed=0)

    mixed = MixedLoader({"image": loader("image", 12), "image_region": loader("image_region", 8)}, seed=0, order=order)
    stream = iter(mixed.epoch(0))
    done = {"image": 0, "image_region": 0}
    for _ in range(5):
        done[next(stream)[0]] += 1
    left = {"image": 6 - done["image"], "image_region": 4 - done["image_region"]}
    assert mixed.upcoming(5) == left
    assert mixed.upcoming(25) == {"image": left["image"] + 12, "image_region": left["image_region"] + 8}
    assert sum(mixed.upcoming(27).values()) == pytest.approx(27) and sum(mixed.upcoming(3).values()) == pytest.approx(3)
    if order == "sequential":
        assert mixed.upcoming(7) == {"image": left["image"] + 0, "image_region": left["image_region"] + 2}


@pytest.mark.parametrize("runner", ["runner_base", "runner_iter"])
def test_a_run_tells_the_time_left(tmp_path: Path, runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes a second of the clock: the time left is the number of steps left."""
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    given: dict[str, Any] = {"runner": runner, "log_freq": 1, "max_epoch": 2}
    if runner == "runner_iter":
        given |= {"max_iters": 23, "iters_per_inner_epoch": 7}
    built = build_runner(config(tmp_path / "out", **given), splits=["train"], config_name="config")
    step = built.task.train_step

    def a_second(model: Any, samples: Any) -> Any:
        clock.now += 1
        return step(model, samples)

    built.task.train_step = a_second
    built.train()
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    steps = [row for row in rows if "modality" in row]
    total = 20 if runner == "runner_base" else 23
    assert [row["timing"]["eta_seconds"] for row in steps] == pytest.approx(list(range(total - 1, -1, -1)), abs=0.2)
    assert {row["timing"]["seconds_per_step"] for row in steps} == {1.0}
    assert {row["timing"]["samples_per_second"] for row in steps} == {4.0}
