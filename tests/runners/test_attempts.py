"""What a training goes on from when torchrun starts it again, and what becomes of checkpoints that are not its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lavis.common.checkpoint import load_checkpoint_file
from lavis.common.config import ConfigError
from lavis.runners.attempts import this_agent
from lavis.runners.launch import build_runner
from tests.runners.fakes import config
from tests.runners.test_runners import assert_same, lines, run, weights


class Killed(BaseException):
    """No handler of errors sees it."""


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what an agent sets: torchrun(launch, attempt)."""

    def start(launch: str, attempt: int) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "same for all")
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"/logs/{launch}/attempt_{attempt}/0/error.json")

    yield start
    monkeypatch.undo()


def killed(folder: Path, *, after: int, **options: Any) -> None:
    """A run that ends without a word before its step ``after`` + 1."""
    cfg = config(folder, save_freq="3 steps", **options)
    runner = build_runner(cfg, splits=["train"], config_name="config")
    step = runner.train_step

    def dying(*args: Any, **kwargs: Any) -> None:
        if runner.progress.step == after:
            raise Killed
        step(*args, **kwargs)

    runner.train_step = dying
    with pytest.raises(Killed):
        runner.train()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.pth")}


def test_an_agent_is_known_through_its_attempts(torchrun: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert this_agent() is None
    found = []
    for launch, attempt in [("a", 0), ("a", 1), ("b", 0)]:
        torchrun(launch, attempt)
        found.append(this_agent())
    assert found[0] == found[1] != found[2] and None not in found
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "")  # torchrun --log-dir /dev/null
    assert this_agent() == this_agent() not in (None, *found)


def test_a_later_attempt_takes_its_own_checkpoint_and_no_earlier_runs(tmp_path: Path, torchrun: Any) -> None:
    """In a folder with a run that went further; the agent need not count the attempt."""
    straight = run(tmp_path / "straight", save_freq="3 steps")
    folder = tmp_path / "out"
    run(folder, max_epoch=3, init_lr=0.1)
    torchrun("first", 0)
    killed(folder, after=2)  # before its first checkpoint
    assert names(folder / "before_1") == {"checkpoint_0.pth", "checkpoint_1.pth", "checkpoint_2.pth"}
    killed(folder, after=7)
    assert names(folder) == {"checkpoint_0_step3.pth", "checkpoint_0_step6.pth"}
    torchrun("first", 1)
    assert_same(weights(straight), weights(run(folder, save_freq="3 steps")))
    assert lines(folder) == lines(tmp_path / "straight")
    assert not (folder / "before_2").exists()


def test_a_first_attempt_that_died_early_leaves_an_earlier_run_unused(tmp_path: Path, torchrun: Any) -> None:
    folder = tmp_path / "out"
    torchrun("earlier", 0)
    run(folder, max_epoch=3, init_lr=0.1)
    torchrun("first", 1)  # its attempt 0 never came as far as the folder
    again = run(folder)
    assert_same(weights(run(tmp_path / "straight")), weights(again))
    assert names(folder) == {"checkpoint_0.pth", "checkpoint_1.pth"} and len(names(folder / "before_1")) == 3


def test_a_path_gives_way_to_a_later_attempts_own_checkpoint(tmp_path: Path, torchrun: Any) -> None:
    """The path is of this folder: what the run had done beyond it is set aside; keep_last may have dropped it since."""
    folder, options = tmp_path / "out", {"max_epoch": 3, "keep_last": 1}
    straight = run(folder, max_epoch=3, save_freq="3 steps")
    shutil.copytree(folder, tmp_path / "straight")
    start = folder / "checkpoint_0_step6.pth"
    torchrun("first", 0)
    killed(folder, after=17, resume_ckpt_path=start, **options)
    assert names(folder) == {"checkpoint_1_step15.pth"} and not start.exists()
    kept = names(folder / "before_1")
    assert "checkpoint_2.pth" in kept and "checkpoint_0_step9.pth" in kept and start.name not in kept
    torchrun("first", 1)
    again = run(folder, save_freq="3 steps", resume_ckpt_path=start, **options)
    assert_same(weights(straight), weights(again))
    assert lines(folder) == lines(tmp_path / "straight")
    assert load_checkpoint_file(folder / "checkpoint_2.pth")["step"] == 30


def test_a_path_of_another_folder_counts_until_there_is_an_own_checkpoint(tmp_path: Path, torchrun: Any) -> None:
    straight = run(tmp_path / "straight", max_epoch=3)
    start, folder = tmp_path / "straight" / "checkpoint_0.pth", tmp_path / "out"
    run(folder, max_epoch=1, init_lr=0.1)
    shutil.copy(tmp_path / "straight" / "log.txt", folder)
    options = {"max_epoch": 3, "resume_ckpt_path": start}
    torchrun("first", 0)
    killed(folder, after=11, **options)
    assert names(folder) == set() and names(folder / "before_1") == {"checkpoint_0.pth"}
    torchrun("first", 1)
    killed(folder, after=13, **options)
    assert names(folder) == {"checkpoint_1_step12.pth"}
    torchrun("first", 2)
    assert_same(weights(straight), weights(run(folder, **options)))
    assert lines(folder) == lines(tmp_path / "straight")


def test_what_was_best_beyond_the_start_is_chosen_anew(tmp_path: Path) -> None:
    folder, options = tmp_path / "out", {"max_epoch": 3, "valid_splits": "[val]", "test_splits": "[test]"}
    straight = run(folder, **options)
    best = straight.progress.best["best"]
    assert best["epoch"] > 0
    again = run(folder, **options, resume_ckpt_path=folder / "checkpoint_0.pth")
    assert names(folder / "before_1") == {"checkpoint_1.pth", "checkpoint_2.pth", "checkpoint_best.pth"}
    assert again.progress.best["best"] == best
    assert_same(weights(straight), weights(again))
    kept = run(folder, **options, resume_ckpt_path=folder / f"checkpoint_{best['epoch']}.pth")
    assert not (folder / "before_2" / "checkpoint_best.pth").exists() and kept.progress.best["best"] == best


def test_a_damaged_checkpoint_does_not_stand_in_the_way(tmp_path: Path) -> None:
    """Were it kept as the furthest one, keep_last would drop the new ones."""
    folder = tmp_path / "out"
    straight = run(folder, max_epoch=3)
    (folder / "checkpoint_2.pth").write_bytes(b"")
    (folder / "checkpoint_1.pth").write_bytes(b"PK")
    again = run(folder, max_epoch=3, keep_last=1, save_freq="3 steps", resume_ckpt_path="auto")
    assert_same(weights(straight), weights(again))
    assert names(folder) == {"checkpoint_2.pth"} and names(folder / "before_1") == {"checkpoint_1.pth", "checkpoint_2.pth"}


def test_a_run_that_cannot_begin_moves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run(folder, max_epoch=1)
    run(tmp_path / "other", max_epoch=1, seed=1)
    with pytest.raises(ConfigError, match="stands on another base"):
        run(folder, resume_ckpt_path=tmp_path / "other" / "checkpoint_0.pth")
    assert names(folder) == {"checkpoint_0.pth"} and not (folder / "before_1").exists()
