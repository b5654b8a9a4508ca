"""Real processes under torchrun, one node and two: a process dies, and the run goes on or says whose error ended it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lavis.common.checkpoint import load_checkpoint_file
from tests.distributed import run_distributed
from train import train as run_command

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
MINUTE, LIMIT = 60, 240  # seconds: what is promised of a run that ends; what a test waits on a busy machine
STEPS = 20  # 2 epochs of 6 batches of one modality and 4 of the other
ROOT_CAUSE = "Root Cause"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of two modalities with dropout and augmentation, saved every 3 steps; its fault is given on the command line."""
    path = tmp_path / "run.yaml"
    path.write_text(
        f"imports: [{ROOT / 'tests/runners/faulty.py'}]\n"
        "model: {arch: faulty_model, fault: {rank: 1, step: 0, kind: kill, mark: happened}}\n"
        "datasets: {fake_image: {size: 24}, fake_region: {size: 16}}\n"
        "run: {task: regionblip_pretrain, max_epoch: 2, batch_size_train: 2, num_workers: 0, task_order: round_robin,\n"
        "      warmup_lr: 0.01, init_lr: 0.01, log_freq: 1, save_freq: 3 steps, output_dir: out, tensorboard: false}\n"
    )
    return path


def environment(**extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TORCH", "MASTER_", "NODE_", "RANK", "WORLD"))}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **extra}


@contextmanager
def started(commands: list[list[str]], folder: Path, **extra: str) -> Iterator[list[subprocess.Popen[str]]]:
    """The commands at once, their output in node<n>.txt; ended when the block is left. ``{node}`` in a value: the number."""
    processes = []
    for node, words in enumerate(commands):
        given = environment(**{key: value.format(node=node) for key, value in extra.items()})
        with (folder / f"node{node}.txt").open("w") as output:
            processes.append(subprocess.Popen(words, cwd=folder, env=given, stdout=output, stderr=subprocess.STDOUT, text=True))
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(LIMIT)


def finish(commands: list[list[str]], folder: Path, **extra: str) -> tuple[list[int], list[str]]:
    """Exit codes and outputs."""
    with started(commands, folder, **extra) as processes:
        codes = [process.wait(LIMIT) for process in processes]
    return codes, [(folder / f"node{node}.txt").read_text() for node in range(len(commands))]


def train(config: Path, **options: Any) -> list[str]:
    words = [f"{key.replace('__', '.')}={value}" for key, value in options.items()]
    return [str(ROOT / "train.py"), "--cfg-path", str(config), *(["--options", *words] if words else [])]


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The log without what the clock decides, and the weights of the end."""
    rows = [json.loads(line) for line in (folder / "out" / "log.txt").read_text().splitlines()]
    weights = load_checkpoint_file(folder / "out" / "checkpoint_1.pth")["model"]
    return [{key: value for key, value in row.items() if key != "timing"} for row in rows], weights


def train_here(config: str, folder: str) -> None:
    os.chdir(folder)
    run_command(["--cfg-path", config])


def straight(config: Path, folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The same run by two processes, without torchrun and never killed."""
    folder.mkdir()
    run_distributed(train_here, str(config), str(folder), folder=folder / "returned")
    rows, weights = outcome(folder)
    first = load_checkpoint_file(folder / "out" / "checkpoint_0_step3.pth")["model"]
    assert sum("lr" in row for row in rows) == STEPS and (weights["shared.weight"] - first["shared.weight"]).abs().max() > 1e-3
    return rows, weights


def assert_same(found: tuple[Any, dict[str, torch.Tensor]], expected: tuple[Any, dict[str, torch.Tensor]], message: str) -> None:
    assert found[0] == expected[0], message
    assert found[1].keys() == expected[1].keys()
    assert [name for name, value in found[1].items() if not torch.equal(value, expected[1][name])] == [], message


def two_nodes(config: Path, folder: Path, *options: str, restarts: int) -> tuple[list[int], list[str]]:
    """launch.sh as two nodes of one process each; again where another program took the port between its choice and its use."""
    words = ["bash", str(ROOT / "run_scripts" / "launch.sh"), str(config), *options]
    given = {"NNODES": "2", "NPROC_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "NODE_RANK": "{node}", "LOG_DIR": "logs"}
    for _ in range(3):
        port = str(free_port())
        codes, outputs = finish([words, words], folder, MASTER_PORT=port, MAX_RESTARTS=str(restarts), **given)
        if "EADDRINUSE" not in outputs[0]:
            break
        shutil.rmtree(folder / "out", ignore_errors=True)
        (folder / "happened").unlink(missing_ok=True)
    return codes, outputs


def test_two_nodes_go_on_after_a_process_was_killed(config: Path, tmp_path: Path) -> None:
    """At any step, also before the first checkpoint. The lost process counts as a restart of its own node only."""
    expected = straight(config, tmp_path / "straight")
    step = random.randint(1, STEPS)
    shutil.copytree(tmp_path / "straight" / "out", tmp_path / "out")  # an earlier run, which null does not go on from
    options = ["run.resume_ckpt_path=null", f"model.fault.step={step}"]
    codes, outputs = two_nodes(config, tmp_path, *options, restarts=1)
    shown = f"killed at step {step}\n" + "\n".join(outputs)
    assert codes == [0, 0] and (tmp_path / "happened").exists(), shown
    assert ("the run goes on from its own checkpoint" in shown) == (step > 3), shown
    assert_same(outcome(tmp_path), expected, shown)
    assert (tmp_path / "out" / "before_1" / "checkpoint_1.pth").is_file()


@pytest.mark.parametrize("kind", ["raise", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("kill", "refuse"))])
def test_the_guilty_process_is_named_with_its_own_error(config: Path, tmp_path: Path, kind: str) -> None:
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2", *train(config, model__fault__step=5, model__fault__kind=kind)]
    with started([command], tmp_path) as (process,):
        end = time.monotonic() + LIMIT
        while not (tmp_path / "happened").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        since = time.monotonic()
        code = process.wait(LIMIT)
        seconds = time.monotonic() - since
    shown = (tmp_path / "node0.txt").read_text()
    assert code != 0 and seconds < MINUTE, shown
    cause = shown[shown.index(ROOT_CAUSE) :]
    assert "rank      : 1 (local_rank: 1)" in cause and "rank      : 0" not in cause, shown
    expected = {"raise": "KeyError: 'the fault of rank 1'", "kill": "SIGKILL", "refuse": "ConfigError: the fault of rank 1"}
    assert expected[kind] in cause, shown
    assert "Traceback" not in cause.split("traceback :")[0] and "Connection closed" not in cause
    if kind == "refuse":
        assert "exitcode  : 2" in cause and "error (rank 1): the fault of rank 1" in shown


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_two_torchrun_agents_as_two_nodes(config: Path, tmp_path: Path, attempt: int) -> None:
    """Without launch.sh; the rendezvous is kept by the test. One rank, on either node, dies."""
    expected = straight(config, tmp_path / "straight")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=LIMIT))
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{store.port}", "--rdzv-id=test", "--rdzv-conf=is_host=0"]
    agent = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--max-restarts=2", *rendezvous]
    rank, step = random.randint(0, 1), random.randint(1, STEPS)
    codes, outputs = finish([[*agent, *train(config, model__fault__step=step, model__fault__rank=rank)]] * 2, tmp_path)
    shown = f"rank {rank} killed at step {step}\n" + "\n".join(outputs)
    assert codes == [0, 0] and (tmp_path / "happened").exists(), shown
    assert_same(outcome(tmp_path), expected, shown)


@pytest.mark.slow
def test_both_nodes_end_when_no_restart_is_left(config: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    codes, outputs = two_nodes(config, tmp_path, "model.fault.step=5", "model.fault.kind=raise", restarts=0)
    assert 0 not in codes and time.monotonic() - start < LIMIT
    guilty = [
        shown for shown in outputs if ROOT_CAUSE in shown and "KeyError: 'the fault of rank 1'" in shown.split(ROOT_CAUSE)[1]
    ]
    assert len(guilty) == 1, "\n".join(outputs)
    logs = [path.read_text() for path in (tmp_path / "logs").rglob("stderr.log")]
    assert sum("the fault of rank 1" in log for log in logs) == 1


@pytest.mark.slow
def test_one_node_restarts_under_torchrun_alone(config: Path, tmp_path: Path) -> None:
    expected = straight(config, tmp_path / "straight")
    step = random.randint(1, STEPS)
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=1", *train(config, model__fault__step=step)]
    codes, outputs = finish([command], tmp_path)
    assert codes == [0] and (tmp_path / "happened").exists(), outputs[0]
    assert_same(outcome(tmp_path), expected, f"killed at step {step}\n{outputs[0]}")


@pytest.mark.slow
def test_a_signal_to_launch_saves_and_the_next_launch_goes_on(config: Path, tmp_path: Path) -> None:
    words = ["bash", str(ROOT / "run_scripts" / "launch.sh"), str(config)]
    given = {"NPROC_PER_NODE": "2", "LOG_DIR": "logs"}
    with started([[*words, "run.max_epoch=100000", "run.save_freq=50000"]], tmp_path, **given) as (process,):
        end = time.monotonic() + LIMIT
        while not (tmp_path / "out" / "log.txt").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        code = process.wait(LIMIT)
    shown = (tmp_path / "node0.txt").read_text()
    assert code == 0 and "SIGUSR1: the run is saved and ends here" in shown, shown
    (saved,) = (tmp_path / "out").glob("checkpoint_*.pth")
    epoch = load_checkpoint_file(saved)["progress"]["epoch"] + 1
    codes, outputs = finish([[*words, f"run.max_epoch={epoch}"]], tmp_path, **given)
    assert codes == [0] and f"resuming out/{saved.name}" in outputs[0], outputs[0]
