"""A run that is killed at any moment and started again is the run that was never killed: log lines and weights, bit by bit.

Real processes of train.py on a tiny RegionBLIP (three modalities, dropout, augmentation, data workers), killed by SIGKILL: at
random moments of training and validation, and in every stage of a save. Each goes on from what the one before left, with
another number of data workers.
"""

from __future__ import annotations

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from lavis.common.checkpoint import load_checkpoint_file
from tests.mixed_run import make_data, outcome, start, write_run

LIMIT = 240.0  # seconds that one process may take on a busy machine
STAGES = ("half", "fsync", "rename", "renamed")
WORKERS = (2, 3, 0)


class Straight(NamedTuple):
    """The run that is never killed."""

    folder: Path
    config: Path
    log: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]
    seconds: float  # from its first log line to its end


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """Tasks in turn."""
    return run_straight(tmp_path_factory.mktemp("kill"))


def run_straight(folder: Path, **options: Any) -> Straight:
    """The data, and the run that nothing happens to."""
    make_data(folder)
    return run_config(folder, write_run(folder, **options))


def run_config(folder: Path, config: Path) -> Straight:
    """The run of a configuration that nothing happens to."""
    process = start(config, folder / "straight")
    wait_for_log(process, folder / "straight", lines=0)
    begun = time.monotonic()
    assert process.wait(LIMIT) == 0, (folder / "straight.console").read_text()[-4000:]
    return Straight(folder, config, *outcome(folder / "straight"), seconds=time.monotonic() - begun)


def log_length(output: Path) -> int:
    path = output / "log.txt"
    return path.stat().st_size if path.exists() else 0


def wait_for_log(process: Any, output: Path, *, lines: int) -> None:
    """Until the process has written to its log (or has ended)."""
    deadline = time.monotonic() + LIMIT
    while log_length(output) <= lines and process.poll() is None:
        assert time.monotonic() < deadline, "no step within the time limit"
        time.sleep(0.01)


def kill_at_random(straight: Straight, output: Path, rng: random.Random, workers: int) -> bool:
    """Kill a process at a random moment after its first step; False where it was through before."""
    process = start(straight.config, output, f"run.num_workers={workers}")
    before = log_length(output)
    wait_for_log(process, output, lines=before)
    try:
        process.wait(rng.uniform(0, straight.seconds / 2))
    except Exception:  # subprocess.TimeoutExpired: it is still at work
        process.kill()
    return process.wait(LIMIT) == -signal.SIGKILL


def kill_in_save(straight: Straight, output: Path, number: int, stage: str, workers: int) -> bool:
    """Let a process kill itself in a stage of its n-th save; False where it was through before."""
    process = start(straight.config, output, f"run.num_workers={workers}", KILL_IN_SAVE=f"{number} {stage}")
    return process.wait(LIMIT) == -signal.SIGKILL


def finish(straight: Straight, output: Path) -> None:
    """Run to the end, and compare."""
    console = output.with_suffix(".console")
    assert start(straight.config, output).wait(LIMIT) == 0, console.read_text()[-4000:]
    log, weights = outcome(output)
    assert log == straight.log
    assert weights.keys() == straight.weights.keys()
    assert [name for name in weights if not torch.equal(weights[name], straight.weights[name])] == []
    assert not list(output.glob(".*.tmp"))


def test_the_straight_run_trains_every_modality(straight: Straight) -> None:
    """Otherwise equal outcomes would mean nothing."""
    assert {row["modality"] for row in straight.log if "modality" in row} == {"image", "image_region", "pointcloud"}
    for modality in ("image_region", "pointcloud"):  # whole images have no adapters
        adapters = [value for name, value in straight.weights.items() if name.endswith(f"lora_B.{modality}")]
        assert any(value.abs().max() > 1e-3 for value in adapters), f"{modality}: B, zero at first, did not move"
    earlier = load_checkpoint_file(sorted((straight.folder / "straight").glob("checkpoint_*step*.pth"))[0])["model"]
    moved = [name for name, value in earlier.items() if (straight.weights[name] - value).abs().max() > 1e-4]
    for part in ("branches.image_region.", "branches.image."):
        assert any(name.startswith(part) for name in moved), f"{part} did not move; these did: {moved}"
    assert [row["epoch"] for row in straight.log if "split" in row] == [0, 0, 1, 1]


def test_killed_four_times(straight: Straight) -> None:
    """Half-way through a save, at a random moment, between writing and renaming, and at a random moment again."""
    output, rng = straight.folder / "four", random.Random()
    assert kill_in_save(straight, output, 2, "half", 2)
    kill_at_random(straight, output, rng, 3)
    kill_in_save(straight, output, 1, "rename", 0)
    kill_at_random(straight, output, rng, 2)
    finish(straight, output)


def chain(straight: Straight, name: str, seed: int, kills: int) -> int:
    """Kill, start again, kill, ...; when a process is through before it could be killed, begin anew. Returns the kills."""
    rng, done, number = random.Random(seed), 0, 0
    while done < kills:
        output = straight.folder / f"{name}_{number}"
        killed = True
        while killed and done < kills:
            workers = WORKERS[done % len(WORKERS)]
            if done % 2:
                killed = kill_in_save(straight, output, rng.randint(1, 4), STAGES[done // 2 % len(STAGES)], workers)
            else:
                killed = kill_at_random(straight, output, rng, workers)
            done += killed
        finish(straight, output)
        number += 1
    return done


@pytest.mark.slow
def test_killed_at_many_moments(straight: Straight, tmp_path: Path) -> None:
    """Two chains at once, 24 kills in all, half of them in a save: tasks in turn, and one task after the other with updates
    over two batches."""
    other = run_straight(tmp_path, task_order="sequential", accum_grad_iters=2, save_freq="3 steps")
    seeds = [random.SystemRandom().randrange(2**32) for _ in range(2)]
    print(f"seeds of the moments: {seeds}")  # shown where the test fails
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(chain, straight, "turns", seeds[0], 12)
        second = pool.submit(chain, other, "sequential", seeds[1], 12)
        assert first.result() + second.result() >= 24


def test_asked_to_stop(straight: Straight) -> None:
    """SIGTERM to every process of the run, data workers too, as schedulers send it: it saves and ends well, and goes on."""
    output = straight.folder / "stopped"
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process = start(straight.config, output, 'run.save_freq="1000 steps"')
        before = log_length(output)
        wait_for_log(process, output, lines=before)
        os.killpg(process.pid, number)
        assert process.wait(LIMIT) == 0, output.with_suffix(".console").read_text()[-4000:]
        assert f"{number.name}: the run is saved and ends here" in output.with_suffix(".console").read_text()
    finish(straight, output)
