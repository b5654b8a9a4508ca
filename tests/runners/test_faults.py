"""What goes wrong while a run runs: numbers that are not finite, signals, a full disk."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common import checkpoint
from lavis.common.checkpoint import CheckpointError, load_checkpoint_file
from lavis.common.config import ConfigError
from lavis.runners.faults import TooManySkippedSteps
from lavis.runners.launch import build_runner
from lavis.runners.signals import Stopped, listening, received
from lavis.runners.step import apply_unless
from tests.distributed import run_distributed
from tests.runners.fakes import config
from tests.runners.test_runners import assert_same, lines, run, weights


def poisoned(runner: Any, steps: set[int], *, what: str = "loss", rank: int = 0, only_rank: int = 0) -> None:
    """Make what the forward passes of some steps (from 0) give not finite, on one rank."""
    original = runner.task.train_step

    def train_step(model: Any, samples: Any) -> Any:
        losses = dict(original(model, samples))
        if runner.progress.step in steps and rank == only_rank:
            if what == "gradient":  # the loss stays as it is
                nothing = losses["loss"] - losses["loss"].detach()
                losses["loss"] = losses["loss"] + nothing.abs().sqrt()
                assert losses["loss"].isfinite()
            else:
                losses["loss"] = losses["loss"] + float(what)
        return losses

    runner.task.train_step = train_step


def train(folder: Path, steps: set[int], what: str = "nan", **options: Any) -> Any:
    cfg = config(folder, **options)
    runner = build_runner(cfg, splits=["train", *cfg.run.valid_splits], config_name="config")
    poisoned(runner, steps, what=what)
    runner.train()
    return runner


@pytest.mark.parametrize("what", ["nan", "inf", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """The steps of one epoch but two; the two are told, with their samples."""
    runner = train(tmp_path / "out", {3, 4}, what, max_epoch=1, log_freq=1)
    assert runner.progress.step == 10 and runner.progress.skipped_updates == 2
    told = [json.loads(line) for line in (tmp_path / "out" / "skipped_steps.jsonl").read_text().splitlines()]
    assert [(row["step"], row["skipped_step"]) for row in told] == [(4, 1), (5, 2)]
    (batch,) = told[0]["ranks"][0]
    assert batch["modality"] == "image_region" and len(batch["samples"]) == 4
    rows = lines(tmp_path / "out")
    assert [row["step"] for row in rows if "skipped_step" in row] == [4, 5]
    order = [(row["step"], "skipped_step" in row) for row in rows if "step" in row]
    assert order[3:7] == [(4, False), (4, True), (5, False), (5, True)]
    mean = next(row["mean"] for row in rows if "mean" in row)
    assert all(isinstance(value, float) for losses in mean.values() for value in losses.values())
    assert "step 4: a loss or gradient was not finite" in caplog.text
    assert all(torch.isfinite(value).all() for value in weights(runner).values())

    finite = train(tmp_path / "finite", set(), max_epoch=1, log_freq=1)
    steps = [state["step"] for state in runner.step.optimizer.state.values()]
    assert max(steps) == 8 and max(state["step"] for state in finite.step.optimizer.state.values()) == 10


def test_weights_before_and_after_a_left_out_step_are_the_same(tmp_path: Path) -> None:
    train(tmp_path / "out", {2}, max_epoch=1, save_freq="1 steps")
    before, after = (load_checkpoint_file(tmp_path / "out" / f"checkpoint_0_step{n}.pth") for n in (2, 3))
    assert_same(before["model"], after["model"])
    for number, state in before["optimizer"]["state"].items():
        assert_same(state, after["optimizer"]["state"][number])
    assert not torch.equal(
        before["model"]["shared.weight"],
        load_checkpoint_file(tmp_path / "out" / "checkpoint_0_step4.pth")["model"]["shared.weight"],
    )


def test_too_many_end_the_run_and_keep_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(TooManySkippedSteps, match=r"3 updates .* run.max_skipped_steps \(2\) .*skipped_steps.jsonl"):
        train(tmp_path / "out", {1, 3, 5, 7}, max_epoch=1, max_skipped_steps=2, save_freq="1000 steps")
    saved = load_checkpoint_file(tmp_path / "out" / "checkpoint_0_step7.pth")
    assert saved["progress"]["skipped_updates"] == 3
    straight = train(tmp_path / "straight", {1, 3, 5, 7}, max_epoch=1, max_skipped_steps="null")
    resumed = config(tmp_path / "out", max_epoch=1, max_skipped_steps="null", resume_ckpt_path="auto")
    runner = build_runner(resumed, splits=["train"], config_name="config")
    poisoned(runner, {1, 3, 5, 7}, what="nan")
    runner.train()
    assert_same(weights(straight), weights(runner))
    assert lines(tmp_path / "out") == lines(tmp_path / "straight")
    files = [(tmp_path / name / "skipped_steps.jsonl").read_text() for name in ("out", "straight")]
    assert files[0] == files[1] and len(files[0].splitlines()) == 4
    with pytest.raises(ConfigError, match="run.max_skipped_steps must be"):
        train(tmp_path / "bad", set(), max_skipped_steps=-1)


def test_a_window_of_batches_is_left_out_as_a_whole(tmp_path: Path) -> None:
    runner = train(tmp_path / "out", {1}, max_epoch=1, accum_grad_iters=3)
    assert runner.progress.skipped_updates == 1
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "skipped_steps.jsonl").read_text().splitlines()]
    assert row["step"] == 3 and len(row["ranks"][0]) == 3


@pytest.mark.parametrize("left_out", [False, True])
def test_a_fused_optimizer_decides_on_the_device(left_out: bool) -> None:
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 3)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
        for step in range(3):
            layer(torch.ones(2, 4)).sum().backward()
            apply_unless(torch.tensor(left_out and step == 2), optimizer)
        results.append((layer.weight.detach().clone(), [float(state["step"]) for state in optimizer.state.values()]))
    assert results[0][1] == results[1][1] == [2.0 if left_out else 3.0] * 2
    torch.testing.assert_close(results[0][0], results[1][0])


def on_two(folder: str, kind: str) -> Any:
    """A run in which only rank 1 has a fault, or gets a signal."""
    from lavis.common.dist_utils import get_rank

    cfg = config(Path(folder), batch_size_train=2, max_epoch=1, log_freq=1, save_freq="1000 steps")
    runner = build_runner(cfg, splits=["train"], config_name="config")
    if kind == "nan":
        poisoned(runner, {3}, what="nan", rank=get_rank(), only_rank=1)
    else:
        original = runner.task.train_step

        def train_step(model: Any, samples: Any) -> Any:
            if runner.progress.step == 4 and get_rank() == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            return original(model, samples)

        runner.task.train_step = train_step
    stopped = ""
    try:
        runner.train()
    except Stopped as error:
        stopped = str(error)
    return {"stopped": stopped, "step": runner.progress.step, "weights": weights(runner)}


def test_a_fault_of_one_rank_is_left_out_on_all(tmp_path: Path) -> None:
    first, second = run_distributed(on_two, str(tmp_path / "out"), "nan", folder=tmp_path / "returned")
    assert_same(first["weights"], second["weights"])
    assert all(torch.isfinite(value).all() for value in first["weights"].values())
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "skipped_steps.jsonl").read_text().splitlines()]
    assert row["step"] == 4 and [len(batches[0]["samples"]) for batches in row["ranks"]] == [2, 2]


def test_a_signal_to_one_rank_stops_all_after_saving(tmp_path: Path) -> None:
    first, second = run_distributed(on_two, str(tmp_path / "out"), "signal", folder=tmp_path / "returned")
    assert first["step"] == second["step"] == 5
    assert (first["stopped"], second["stopped"]) == ("another process was asked to stop", "SIGUSR1")
    saved = load_checkpoint_file(tmp_path / "out" / "checkpoint_0_step5.pth")
    assert torch.equal(saved["model"]["shared.weight"], first["weights"]["shared.weight"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("step", [4, 10])
def test_a_signal_saves_and_the_resumed_run_is_the_straight_one(tmp_path: Path, number: signal.Signals, step: int) -> None:
    """In the middle of an epoch, and at its last step, when validation is next."""
    options = {"valid_splits": "[val]", "log_freq": 1, "accum_grad_iters": 2}
    straight = run(tmp_path / "straight", **options)
    cfg = config(tmp_path / "out", **options)
    runner = build_runner(cfg, splits=["train", "val"], config_name="config")
    original = runner.task.train_step

    def train_step(model: Any, samples: Any) -> Any:
        if runner.progress.step == step - 1:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # it may come twice
        return original(model, samples)

    runner.task.train_step = train_step
    with pytest.raises(Stopped, match=number.name):
        runner.train()
    assert {path.name for path in (tmp_path / "out").glob("*.pth")} == {f"checkpoint_0_step{step}.pth"}
    assert received() is None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    resumed = run(tmp_path / "out", **options, resume_ckpt_path="auto")
    assert_same(weights(straight), weights(resumed))
    assert lines(tmp_path / "out") == lines(tmp_path / "straight")
    assert {path.name for path in (tmp_path / "out").glob("*.pth")} >= {"checkpoint_best.pth", "checkpoint_1.pth"}


def test_signals_do_what_they_did_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert received() == "SIGTERM"
    assert received() is None and signal.getsignal(signal.SIGTERM) == before


class FullDisk:
    """torch.save raises ENOSPC at some of the saves, after it has written a part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, full: set[int]) -> None:
        self.calls = 0
        original = torch.save

        def save(state: Any, stream: Any) -> None:
            self.calls += 1
            if self.calls in full:
                stream.write(b"part")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(state, stream)

        monkeypatch.setattr(checkpoint.torch, "save", save)


def test_a_full_disk_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FullDisk(monkeypatch, full={3, 4})
    runner = run(tmp_path / "out", max_epoch=1, save_freq="2 steps")
    assert runner.progress.step == 10
    names = {path.name for path in (tmp_path / "out").iterdir() if ".pth" in path.name}
    assert names == {"checkpoint_0_step2.pth", "checkpoint_0_step4.pth", "checkpoint_0.pth"}
    assert (
        "checkpoint_0_step6.pth could not be written: No space left on device; the last one is checkpoint_0_step4" in caplog.text
    )


def test_a_disk_that_stays_full_ends_the_run_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch, full=set(range(2, 100)))
    with pytest.raises(CheckpointError, match=r"checkpoint_0.pth could not be written: No space left .*checkpoint_0_step2.pth"):
        run(tmp_path / "out", max_epoch=1, save_freq="2 steps", valid_splits="[val]", val_freq=5)
    assert load_checkpoint_file(tmp_path / "out" / "checkpoint_0_step2.pth")["step"] == 2


def test_room_is_made_by_the_checkpoint_that_would_go_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FullDisk(monkeypatch, full={3})
    run(tmp_path / "out", max_epoch=1, save_freq="2 steps", keep_last=2)
    assert {path.name for path in (tmp_path / "out").glob("*.pth")} == {"checkpoint_0_step8.pth", "checkpoint_0.pth"}
    assert "written again after the oldest checkpoint was removed" in caplog.text


def test_a_best_checkpoint_that_cannot_be_written_is_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch, full={2})  # the first save is that before validation
    runner = run(tmp_path / "out", max_epoch=1, valid_splits="[val]")
    assert runner.progress.best == {}
    assert {path.name for path in (tmp_path / "out").glob("*.pth")} == {"checkpoint_0.pth"}


def test_what_was_learned_is_saved_before_validation(tmp_path: Path) -> None:
    """A run killed while it validates goes on with the validation."""
    options = {"max_epoch": 2, "valid_splits": "[val]", "log_freq": 1}
    straight = run(tmp_path / "straight", **options)
    runner = build_runner(config(tmp_path / "out", **options), splits=["train", "val"], config_name="config")
    runner.validate = lambda epoch: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert {path.name for path in (tmp_path / "out").glob("*.pth")} == {"checkpoint_0_step10.pth"}
    resumed = run(tmp_path / "out", **options, resume_ckpt_path="auto")
    assert_same(weights(straight), weights(resumed))
    assert lines(tmp_path / "out") == lines(tmp_path / "straight")


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".checkpoint_0_step3.pth.123.tmp").write_bytes(b"half a checkpoint")
    run(tmp_path / "out", max_epoch=1)
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_another_schedule_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path / "out", max_epoch=1)
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "out", max_epoch=2, init_lr=0.02, resume_ckpt_path="auto")
    assert "another schedule than before: max_epoch 1 -> 2, init_lr 0.01 -> 0.02" in caplog.text


def test_a_run_killed_between_two_best_checkpoints_writes_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends an epoch is done again as a whole."""
    options = {"max_epoch": 1, "valid_splits": "[val]", "runner": "runner_regionblip"}
    straight = run(tmp_path / "straight", **options)
    runner = build_runner(config(tmp_path / "out", **options), splits=["train", "val"], config_name="config")
    original, names = runner.save, []

    def save(name: str, *, epoch: int) -> bool:
        names.append(name)
        if name == "checkpoint_best_image_region" or (name.startswith("checkpoint_best") and len(names) > 2):
            raise KeyboardInterrupt
        return original(name, epoch=epoch)

    monkeypatch.setattr(runner, "save", save)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert names[:2] == ["checkpoint_0_step10", "checkpoint_best_image"]
    resumed = run(tmp_path / "out", **options, resume_ckpt_path="auto")
    assert_same(weights(straight), weights(resumed))
    assert lines(tmp_path / "out") == lines(tmp_path / "straight")
    files = [{path.name for path in (tmp_path / name).glob("*.pth")} for name in ("out", "straight")]
    assert files[0] == files[1] == {"checkpoint_0.pth", "checkpoint_best_image.pth", "checkpoint_best_image_region.pth"}
    assert resumed.progress.best == straight.progress.best
