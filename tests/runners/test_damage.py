"""Checkpoint files that are damaged, and disks that are full: what a run does that starts, or saves, in spite of them."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lavis.common.checkpoint import find_latest, load_checkpoint_file
from lavis.common.logger import JsonlLog
from tests.runners.fakes import config
from tests.runners.test_runners import assert_same, lines, run, weights

ROOT = Path(__file__).parents[2]


def flip(path: Path) -> None:
    """One byte in the middle of the weights is another."""
    data = bytearray(path.read_bytes())
    state = torch.load(path, weights_only=True)
    weight = state["model"]["shared.weight"].numpy().tobytes()
    data[data.find(weight) + 5] ^= 0x10
    path.write_bytes(bytes(data))


def rewrite(**changes: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save({**torch.load(path, weights_only=True), **changes}, path)

    return write


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "emptied": (lambda path: path.write_bytes(b""), "is empty"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-200]), "may be truncated"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "may be truncated"),
    "a flipped bit": (flip, "damaged: its content does not match its own hash|cannot be read"),
    "another weight": (rewrite(model={"shared.weight": torch.zeros(6, 6)}), "damaged: its content does not match its own hash"),
    "text": (lambda path: path.write_text("not a checkpoint"), "no checkpoint at all|other than tensors"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    "weights alone": (lambda path: torch.save({"model": {}}, path), "is not a training checkpoint of ours"),
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("straight") / "out"
    return folder, weights(run(folder, save_freq="3 steps", valid_splits="[val]"))


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_said(
    tmp_path: Path, kind: str, straight: tuple[Path, dict[str, torch.Tensor]], caplog: pytest.LogCaptureFixture
) -> None:
    """The newest two are damaged; the run goes on from the one before and ends as it would have."""
    original, expected = straight
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(original / "log.txt", folder)
    for name in ("checkpoint_0_step3.pth", "checkpoint_0_step6.pth", "checkpoint_0_step9.pth"):
        shutil.copy(original / name, folder)
    damage, message = DAMAGE[kind]
    for name in ("checkpoint_0_step6.pth", "checkpoint_0_step9.pth"):
        damage(folder / name)
    assert find_latest(folder) == folder / "checkpoint_0_step3.pth"
    for name in ("checkpoint_0_step6.pth", "checkpoint_0_step9.pth"):
        assert re.search(rf"passed over: .*{name} .*({message})", caplog.text)
    if (folder / "checkpoint_0_step9.pth").is_dir():
        return  # a folder of that name has to be moved away by hand
    again = run(folder, save_freq="3 steps", valid_splits="[val]", resume_ckpt_path="auto")
    assert_same(expected, weights(again))
    assert lines(folder) == lines(original)


def train_command(folder: Path, output: Path, *options: str) -> list[str]:
    """`python train.py` on the fakes, saving every 2 of 20 steps."""
    cfg = config(folder / "run", save_freq="2 steps", log_freq=1)
    text = f"imports: [{ROOT / 'tests' / 'runners' / 'fakes.py'}]\n" + (folder / "run.yaml").read_text()
    (folder / "run.yaml").write_text(text)
    run_keys = {**cfg.run, "output_dir": str(output)}
    wanted = ("task", "output_dir", "max_epoch", "batch_size_train", "num_workers", "log_freq", "init_lr", "warmup_steps")
    keys = [f"run.{key}={run_keys[key]}" for key in wanted] + ['run.save_freq="2 steps"', "run.tensorboard=false"]
    return [sys.executable, str(ROOT / "train.py"), "--cfg-path", str(folder / "run.yaml"), "--options", *keys, *options]


def call(command: list[str], **keywords: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **keywords)  # type: ignore[call-overload,no-any-return]


def small_disk(folder: Path, kilobytes: int) -> list[str] | None:
    """A command prefix that runs with a tmpfs of that size at `folder`; None where this machine lets nobody mount one."""
    prefix = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size={kilobytes}k tmpfs {folder} && "$@"', "sh"]
    try:
        return prefix if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0 else None
    except FileNotFoundError:
        return None


def test_a_disk_that_fills_up_keeps_what_is_on_it(tmp_path: Path) -> None:
    """A disk with room for a few checkpoints. Where no tmpfs can be mounted, a limit on file sizes stands for it: then the
    checkpoints that are larger than the logs cannot be written at all."""
    output = tmp_path / "out"
    output.mkdir()
    prefix = small_disk(output, 100)
    script = tmp_path / "look.sh"  # a tmpfs is gone with its process: what is on it is told from inside
    script.write_text(f'"$@"; code=$?; ls {output}; tail -c 300 {output}/log.txt; cp {output}/* {tmp_path}/kept/; exit $code\n')
    (tmp_path / "kept").mkdir()
    command = train_command(tmp_path, output)
    if prefix is None:
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))  # noqa: E731
        done = call(["sh", str(script), *command], preexec_fn=limit)
    else:
        done = call([*prefix, "sh", str(script), *command])
    assert done.returncode == 2, done.stderr[-3000:]
    assert "could not be written: " in done.stderr and "Training goes on; make room on the disk" in done.stderr
    assert done.stderr.count("Traceback") == 0
    last = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(last) == 1 and "could not be written" in last[0]
    kept = sorted((tmp_path / "kept").glob("checkpoint_*.pth"))
    assert not list((tmp_path / "kept").glob(".*.tmp"))
    for path in kept:
        load_checkpoint_file(path)  # each that is there is whole
    if prefix is not None:
        assert 1 <= len(kept) <= 6 and "No space left on device; the last one is checkpoint_" in done.stderr
        steps = [json.loads(line).get("step") for line in (tmp_path / "kept" / "log.txt").read_text().splitlines()]
        assert steps[:3] == [1, 2, 3], "the log has whole lines"


def test_a_log_waits_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    log = JsonlLog(tmp_path / "log.txt")
    log.write({"step": 1})
    original = JsonlLog._append

    def full(self: JsonlLog, text: bytes) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(JsonlLog, "_append", full)
    log.write({"step": 2})
    log.write({"step": 3})
    assert caplog.text.count("log.txt cannot be written: No space left on device") == 1
    monkeypatch.setattr(JsonlLog, "_append", original)
    log.write({"step": 4})
    assert [json.loads(line)["step"] for line in (tmp_path / "log.txt").read_text().splitlines()] == [1, 2, 3, 4]
    assert log.lines == 4


def test_a_torn_line_is_cut_before_more_is_written(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text('{"step": 1}\n{"st')
    log = JsonlLog(tmp_path / "log.txt")
    log.write({"step": 2})
    assert (tmp_path / "log.txt").read_text() == '{"step": 1}\n{"step": 2}\n'
