"""One run writes a folder; a second start is told so; a worker ends with its launcher."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import evaluate
import train
from lavis.common.errors import ConfigError
from lavis.runners import run_lock
from lavis.runners.run_lock import Lock, Owner

ROOT = Path(train.__file__).resolve().parent
LIMIT = 120  # seconds that a test waits on a busy machine
SLOW_MODEL = """
import time
from lavis.common.registry import registry
from lavis.runners import run_lock
from tests.runners.fakes import FakeModel

run_lock.POLL_SECONDS = 0.1


@registry.register_model("slow_model")
class SlowModel(FakeModel):
    def forward(self, samples):
        time.sleep(0.1)
        return super().forward(samples)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of a minute, whose folder is ``out``."""
    (tmp_path / "slow.py").write_text(SLOW_MODEL)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"imports: [{tmp_path / 'slow.py'}]\n"
        "model: {arch: slow_model, dropout: 0}\n"
        "datasets: {fake_image: {size: 24}}\n"
        "run: {task: regionblip_pretrain, max_epoch: 100, batch_size_train: 4, num_workers: 0, log_freq: 1,\n"
        f"      save_freq: 1000, test_splits: [test], output_dir: {tmp_path / 'out'}, tensorboard: false}}\n"
    )
    return path


def start(config: Path, *launcher: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TORCH", "RANK", "WORLD"))}
    command = [sys.executable, *launcher, str(ROOT / "train.py"), "--cfg-path", str(config)]
    with (config.parent / "output.txt").open("w") as output:
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=config.parent, env=environment, stdout=output, stderr=output)


def wait_until(found: Callable[[], bool], config: Path) -> None:
    end = time.monotonic() + LIMIT
    while not found():
        assert time.monotonic() < end, (config.parent / "output.txt").read_text()
        time.sleep(0.05)


def steps(config: Path) -> int:
    log = config.parent / "out" / "log.txt"
    return log.read_text().count('"loss"') if log.exists() else 0


def workers_of(agent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]


def lives(pid: int) -> bool:
    return run_lock._started(pid) is not None


def test_a_second_start_is_refused_and_touches_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """train.py and evaluate.py alike, while the first trains; asked to end, the first saves and frees the folder."""
    out = config.parent / "out"
    first = start(config)
    try:
        wait_until(lambda: steps(config) >= 2, config)
        names, saved = {path.name for path in out.iterdir()}, (out / "config.yaml").read_bytes()
        for command in (train.main, evaluate.main):
            assert command(["--cfg-path", str(config), "--options", "run.init_lr=0.5"]) == 2
            assert f"is being written by another run (process {first.pid} on " in capsys.readouterr().err
        assert {path.name for path in out.iterdir()} == names and (out / "config.yaml").read_bytes() == saved
        first.send_signal(signal.SIGTERM)
        assert first.wait(LIMIT) == 0
    finally:
        first.kill()
        first.wait()
    lines = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    trained = [line["step"] for line in lines if "loss" in line]
    assert trained == list(range(trained[0], trained[0] + len(trained)))
    assert not (out / run_lock.NAME).exists() and len(list(out.glob("checkpoint_*.pth"))) == 1
    assert evaluate.main(["--cfg-path", str(config), "--options", "run.resume_ckpt_path=auto"]) == 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_workers_save_and_end_when_torchrun_is_killed(config: Path) -> None:
    agent = start(config, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    workers: list[int] = []
    try:
        wait_until(lambda: steps(config) >= 2, config)
        workers = workers_of(agent.pid)
        assert len(workers) == 2
        agent.kill()
        agent.wait()
        since = time.monotonic()
        wait_until(lambda: not any(map(lives, workers)), config)
        assert time.monotonic() - since < 60
    finally:
        agent.kill()
        agent.wait()
        for pid in filter(lives, workers):
            os.kill(pid, signal.SIGKILL)
    shown = (config.parent / "output.txt").read_text()
    out = config.parent / "out"
    assert "is gone: the run saves at the end of its step and ends" in shown
    assert len(list(out.glob("checkpoint_*_step*.pth"))) == 1 and not (out / run_lock.NAME).exists(), shown


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_worker_that_cannot_end_is_ended_by_force(tmp_path: Path) -> None:
    """Its main thread waits for ever; its launcher is a process that ends."""
    code = (
        "import os, sys, time\n"
        "from lavis.runners import run_lock\n"
        "os.environ['TORCHELASTIC_RUN_ID'] = 'test'\n"
        "run_lock.POLL_SECONDS, run_lock.END_SECONDS = 0.05, 0.3\n"
        "run_lock.Watch().start()\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()) + '.')\n"
        "time.sleep(600)\n"
    )
    launcher = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=True)\n"
        f"while not (os.path.exists({str(tmp_path / 'pid')!r}) and open({str(tmp_path / 'pid')!r}).read().endswith('.')):\n"
        "    time.sleep(0.05)\n"
    )
    done = subprocess.run([sys.executable, "-c", launcher], cwd=ROOT, timeout=LIMIT, stderr=subprocess.PIPE, text=True)
    worker = int((tmp_path / "pid").read_text().rstrip("."))
    end = time.monotonic() + LIMIT
    while lives(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not lives(worker)
    assert "has not ended: it ends by force" in done.stderr


def lock_of(folder: Path, **changes: object) -> Owner:
    """The lock of another live run (this process's parent), with changes."""
    folder.mkdir(exist_ok=True)
    mine = Lock(folder, agents=[]).owner
    parent = os.getppid()
    theirs = dataclasses.replace(mine, pid=parent, started=run_lock._started(parent) or "", **changes)  # type: ignore[arg-type]
    (folder / run_lock.NAME).write_text(json.dumps(dataclasses.asdict(theirs)))
    return theirs


def test_a_live_lock_is_respected(tmp_path: Path) -> None:
    theirs = lock_of(tmp_path / "out")
    os.utime(tmp_path / "out" / run_lock.NAME, (0, 0))  # a process that stands still still lives
    with pytest.raises(ConfigError, match=f"process {theirs.pid} on {theirs.host}"):
        Lock(tmp_path / "out", agents=["a"]).take()
    assert run_lock.read(tmp_path / "out" / run_lock.NAME) == theirs


@pytest.mark.parametrize(
    ("changes", "age", "agents", "reason"),
    [
        ({"started": "1"}, 0, [], "its process is gone"),  # another process of the same number
        ({"agents": ["a", "b"]}, 0, ["b"], "torchrun started this run again"),
        ({"system": "elsewhere", "agents": ["b"]}, 0, ["b"], "torchrun started this run again"),
        ({"system": "elsewhere"}, run_lock.STALE_SECONDS + 60, [], "it was not renewed for"),
    ],
)
def test_a_dead_lock_is_taken_over_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object], age: float, agents: list[str], reason: str
) -> None:
    folder = tmp_path / "out"
    theirs = lock_of(folder)
    (folder / run_lock.NAME).write_text(json.dumps(dataclasses.asdict(theirs) | changes))
    os.utime(folder / run_lock.NAME, (time.time() - age,) * 2)
    lock = Lock(folder, agents=agents)
    with caplog.at_level("WARNING", logger="lavis"):
        lock.take()
    assert reason in caplog.text
    assert run_lock.read(lock.path) == lock.owner
    lock.release()
    assert list(folder.iterdir()) == []


def test_a_lock_of_another_machine_is_respected_while_it_is_renewed(tmp_path: Path) -> None:
    theirs = lock_of(tmp_path / "out")
    (tmp_path / "out" / run_lock.NAME).write_text(json.dumps(dataclasses.asdict(theirs) | {"system": "elsewhere", "pid": 0}))
    with pytest.raises(ConfigError, match="process 0 on"):
        Lock(tmp_path / "out", agents=[]).take()


def test_a_lock_is_renewed_and_its_loss_is_seen(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "out", agents=[])
    lock.take()
    os.utime(lock.path, (0, 0))
    assert lock.renew() and lock.path.stat().st_mtime > time.time() - LIMIT
    lock.path.unlink()
    assert lock.renew() and run_lock.read(lock.path) == lock.owner
    theirs = lock_of(tmp_path / "out")
    assert not lock.renew()
    lock.release()
    assert run_lock.read(lock.path) == theirs


@pytest.mark.parametrize("command", [train.main, evaluate.main])
@pytest.mark.parametrize("below", ["", "/sub"])
def test_an_output_dir_that_is_a_file(
    config: Path, capsys: pytest.CaptureFixture[str], command: Callable[[list[str]], int], below: str
) -> None:
    (config.parent / "file").write_text("mine")
    assert command(["--cfg-path", str(config), "--options", f"run.output_dir={config.parent / 'file'}{below}"]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len([line for line in shown if line.startswith("error: ")]) == 1 and "is a file, or lies below one" in shown[-1]
    assert (config.parent / "file").read_text() == "mine"


def test_an_output_dir_that_cannot_be_written(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--cfg-path", str(config), "--options", "run.output_dir=/proc/run"]) == 2
    assert "error: run.output_dir: /proc/run cannot be written: " in capsys.readouterr().err


def test_a_start_that_fails_leaves_the_config_and_a_new_run_keeps_it(config: Path) -> None:
    out = config.parent / "out"
    short = ["--cfg-path", str(config), "--options", "run.max_epoch=1"]
    assert train.main(short) == 0
    first = (out / "config.yaml").read_text()
    assert train.main([*short, "run.train_splits=[nowhere]"]) == 2
    assert (out / "config.yaml").read_text() == first and not (out / "config.1.yaml").exists()
    assert train.main([*short, "run.init_lr=0.5"]) == 0
    assert (out / "config.1.yaml").read_text() == first and "init_lr: 0.5" in (out / "config.yaml").read_text()
    assert train.main([*short, "run.init_lr=0.5"]) == 0  # the same again
    assert not (out / "config.2.yaml").exists() and not (out / run_lock.NAME).exists()


def test_sigterm_while_nothing_is_trained_removes_the_lock(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from omegaconf import OmegaConf\n"
        "from lavis.runners import run_lock\n"
        f"with run_lock.held(OmegaConf.create({{'device': 'cpu', 'output_dir': {str(tmp_path)!r}}})):\n"
        f"    assert os.path.exists({str(tmp_path / run_lock.NAME)!r})\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert list(tmp_path.iterdir()) == []
