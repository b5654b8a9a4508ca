"""The loop: what is learned, logged, evaluated and kept; a resumed run is the straight run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common.checkpoint import find_latest, load_checkpoint_file
from lavis.common.config import ConfigError
from lavis.runners.launch import build_runner
from tests.runners.fakes import config


def run(folder: Path, **options: Any) -> Any:
    cfg = config(folder, **options)
    runner = build_runner(cfg, splits=["train", *cfg.run.valid_splits, *cfg.run.test_splits], config_name="config")
    runner.train()
    return runner


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log without what the clock decides."""
    rows = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "timing"} for row in rows]


def weights(runner: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_run_learns_and_writes_what_it_should(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    before = weights(run(tmp_path / "other", init_lr=0, min_lr=0, warmup_lr=0, max_epoch=1, weight_decay=0))
    runner = run(folder, max_epoch=4, valid_splits="[val]", test_splits="[test]", num_workers=0)
    after = weights(runner)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"shared.weight", "shared.bias", "norm.weight"} | {
        f"heads.{head}.{part}" for head in ("image", "image_region") for part in ("weight", "bias")
    }
    rows = lines(folder)
    steps = [row for row in rows if "step" in row]
    assert [row["step"] for row in steps] == [1, *range(2, 41, 2)]
    expected = {"step", "epoch", "modality", "loss", "loss_itc", "loss_itm", "loss_reg", "lr", "grad_norm"}
    assert all(set(row) == expected for row in steps)
    first = json.loads((folder / "log.txt").read_text().splitlines()[0])["timing"]
    assert set(first) == {"seconds_per_step", "data_wait", "samples_per_second", "eta_seconds", "max_memory_gb"}
    epochs = [row for row in rows if "mean" in row]
    assert [row["epoch"] for row in epochs] == [0, 1, 2, 3]
    assert set(epochs[0]["mean"]) == {"image", "image_region"}
    assert epochs[3]["mean"]["image"]["loss_itc"] < epochs[0]["mean"]["image"]["loss_itc"] - 0.1
    assert epochs[0]["skipped"] == {"broken image": {"count": 2, "first": ["rows[3]"]}}
    assert rows[-1] == {
        "finished": True,
        "steps": 40,
        "skipped": {"broken image": {"count": 8, "first": ["rows[3]"]}},
        "dropped_at_reading": {"fake_image/train": 1, "fake_region/train": 1},
    }
    evaluated = [json.loads(line) for line in (folder / "evaluate.txt").read_text().splitlines()]
    assert [row["epoch"] for row in evaluated] == [0, 0, 1, 1, 2, 2, 3, 3, "best", "best"]
    assert evaluated[0]["fake_image_val"]["num_samples"] == 7
    assert evaluated[0]["fake_image_val"]["agg_metrics"] == -evaluated[0]["fake_image_val"]["loss"]
    names = {path.name for path in folder.glob("*.pth")}
    assert names == {"checkpoint_best.pth", *(f"checkpoint_{epoch}.pth" for epoch in range(4))}
    assert "arch: fake_model" in (folder / "config.yaml").read_text()


def test_a_checkpoint_holds_trainable_weights_and_the_state_of_everything(tmp_path: Path) -> None:
    run(tmp_path / "out", max_epoch=1)
    state = load_checkpoint_file(tmp_path / "out" / "checkpoint_0.pth")
    assert {
        "model",
        "optimizer",
        "scaler",
        "config",
        "epoch",
        "step",
        "progress",
        "loaders",
        "rng",
        "frozen_bases",
    } <= state.keys()
    assert not [name for name in state["model"] if name.startswith("base.")]
    assert (state["epoch"], state["step"], state["progress"]["epoch"]) == (0, 10, 1)
    assert state["config"]["run"]["max_epoch"] == 1


ORDERS = [("sequential", 1, 0), ("round_robin", 2, 2), ("sampled", 3, 0)]


@pytest.mark.parametrize(("order", "accum", "workers"), ORDERS)
def test_resume_equals_the_straight_run(tmp_path: Path, order: str, accum: int, workers: int) -> None:
    options = {
        "task_order": order,
        "accum_grad_iters": accum,
        "save_freq": "3 steps",
        "valid_splits": "[val]",
        "runner": "runner_regionblip",
    }
    straight = run(tmp_path / "straight", **options)
    expected = weights(straight)
    saved = sorted((tmp_path / "straight").glob("checkpoint_*_step*.pth"))
    assert len(saved) >= 2
    for number, path in enumerate(saved):
        again = tmp_path / f"again{number}"
        again.mkdir()
        shutil.copy(path, again)
        shutil.copy(tmp_path / "straight" / "log.txt", again)  # longer than the checkpoint knows: it is cut
        resumed = run(again, **options, resume_ckpt_path="auto", num_workers=workers if number == 0 else 0)
        assert_same(expected, weights(resumed))
        assert lines(again) == lines(tmp_path / "straight")


def test_resume_goes_on_from_a_finished_epoch_or_a_best_checkpoint(tmp_path: Path) -> None:
    options = {"max_epoch": 3, "valid_splits": "[val]"}
    straight = run(tmp_path / "straight", **options)
    best = load_checkpoint_file(tmp_path / "straight" / "checkpoint_best.pth")
    assert best["epoch"] == straight.progress.best["best"]["epoch"]
    for name in ("checkpoint_0.pth", "checkpoint_best.pth"):
        again = tmp_path / name
        again.mkdir()
        shutil.copy(tmp_path / "straight" / "log.txt", again)
        resumed = run(again, **options, resume_ckpt_path=tmp_path / "straight" / name)
        assert_same(weights(straight), weights(resumed))
        assert lines(again) == lines(tmp_path / "straight")


def test_auto_resume_passes_over_damaged_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "out"
    straight = run(folder, max_epoch=3)
    newest = folder / "checkpoint_2.pth"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert find_latest(folder) == folder / "checkpoint_1.pth"
    assert "checkpoint_2.pth" in caplog.text
    assert_same(weights(straight), weights(run(folder, max_epoch=3, resume_ckpt_path="auto")))


def test_auto_resume_without_checkpoints_is_a_new_run(tmp_path: Path) -> None:
    fresh = run(tmp_path / "a", max_epoch=1)
    assert_same(weights(fresh), weights(run(tmp_path / "b", max_epoch=1, resume_ckpt_path="auto")))


def test_a_new_run_sets_an_old_log_aside(tmp_path: Path) -> None:
    run(tmp_path / "out", max_epoch=1)
    first = lines(tmp_path / "out")
    run(tmp_path / "out", max_epoch=1)
    assert lines(tmp_path / "out") == first
    assert (tmp_path / "out" / "log.1.txt").is_file()


def test_resume_refuses_another_model_or_another_base(tmp_path: Path) -> None:
    run(tmp_path / "out", max_epoch=1)
    path = tmp_path / "out" / "checkpoint_0.pth"
    state = torch.load(path, weights_only=True)
    state["model"]["shared.weight"] = torch.zeros(2, 2)
    state["model"].pop("norm.weight")
    state.pop("content_hash")
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"norm.weight is not in the checkpoint; shared.weight is \(2, 2\), here \(6, 6\)"):
        run(tmp_path / "b", resume_ckpt_path=tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="stands on another base"):
        run(tmp_path / "c", resume_ckpt_path=path, seed=1)
    torch.save({"model": {}}, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match="not a training checkpoint"):
        run(tmp_path / "d", resume_ckpt_path=tmp_path / "weights.pth")


def test_iteration_runner_counts_batches_and_resumes(tmp_path: Path) -> None:
    options = {
        "runner": "runner_iter",
        "max_iters": 17,
        "iters_per_inner_epoch": 7,
        "save_freq": "5 steps",
        "task_order": "round_robin",
    }
    straight = run(tmp_path / "straight", **options)
    assert straight.progress.step == 17
    assert [row["steps"] for row in lines(tmp_path / "straight") if "mean" in row] == [7, 7, 3]
    for name in ("checkpoint_0_step5.pth", "checkpoint_1_step10.pth", "checkpoint_2_step15.pth"):
        again = tmp_path / name
        again.mkdir()
        shutil.copy(tmp_path / "straight" / "log.txt", again)
        resumed = run(again, **options, resume_ckpt_path=tmp_path / "straight" / name)
        assert_same(weights(straight), weights(resumed))
        assert lines(again) == lines(tmp_path / "straight")
    with pytest.raises(ConfigError, match="run.max_iters is not set"):
        run(tmp_path / "none", runner="runner_iter")


def test_regionblip_runner_has_batch_size_and_best_per_task(tmp_path: Path) -> None:
    sizes = "{task_alignLLM_ImageText: 8, image_region: 4, task_alignLLM_PointcloudText: 2}"
    options = {"runner": "runner_regionblip", "batch_size_train_per_task": sizes, "log_freq": 1, "max_epoch": 1}
    runner = run(tmp_path / "out", **options, valid_splits="[val]", test_splits="[test]")
    modalities = [row["modality"] for row in lines(tmp_path / "out") if "step" in row]
    assert modalities == ["image_region"] * 4 + ["image"] * 3  # sorted by published task name
    assert {path.name for path in (tmp_path / "out").glob("checkpoint_best*")} == {
        "checkpoint_best_image.pth",
        "checkpoint_best_image_region.pth",
    }
    assert all(entry["value"] < 0 for entry in runner.progress.best.values())  # -loss: best although negative
    with pytest.raises(ConfigError, match="no entry for image_region, which a dataset has; it names image"):
        run(tmp_path / "b", runner="runner_regionblip", batch_size_train_per_task="{image: 8}")


def test_warm_up_restarts_per_task_or_runs_through(tmp_path: Path) -> None:
    rates = {}
    for schedule in ("per_task", "global"):
        run(tmp_path / schedule, max_epoch=1, lr_schedule=schedule, log_freq=1, warmup_steps=4, warmup_lr=0, init_lr=0.4)
        rates[schedule] = [round(row["lr"], 6) for row in lines(tmp_path / schedule) if "step" in row]
    assert rates["per_task"] == [0, 0.1, 0.2, 0.3] + [0, 0.1, 0.2, 0.3, 0.4, 0.4]
    assert rates["global"] == [0, 0.1, 0.2, 0.3] + [0.4] * 6


def test_global_counts_the_steps_of_the_whole_run(tmp_path: Path) -> None:
    """A warm-up of 16 steps, over epochs of 10; a run that resumes in it follows it as the straight run does."""
    options = {"lr_sched": "constant_lr", "log_freq": 1, "warmup_steps": 16, "warmup_lr": 0, "init_lr": 0.16}
    rates = {}
    for schedule in ("per_task", "global"):
        run(tmp_path / schedule, max_epoch=2, lr_schedule=schedule, **options)
        rates[schedule] = [row["lr"] for row in lines(tmp_path / schedule) if "step" in row]
    assert rates["per_task"] == pytest.approx([*(0.01 * step for step in [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]), *[0.16] * 10])
    assert rates["global"] == pytest.approx([*(0.01 * step for step in range(16)), *[0.16] * 4])

    run(tmp_path / "resumed", max_epoch=1, lr_schedule="global", **options)
    run(tmp_path / "resumed", max_epoch=2, lr_schedule="global", resume_ckpt_path="auto", **options)
    assert [row["lr"] for row in lines(tmp_path / "resumed") if "step" in row] == rates["global"]


def test_accumulation_equals_the_larger_batch_where_losses_are_means(tmp_path: Path) -> None:
    class Mean:
        """Only the loss that is a mean over samples."""

        def train_step(self, model: Any, samples: Any) -> Any:
            return {"loss": model(samples)["loss_reg"]}

    results = []
    for number, (batch, accum) in enumerate([(12, 1), (4, 3)]):
        cfg = config(tmp_path / str(number), batch_size_train=batch, accum_grad_iters=accum, max_epoch=1, model__dropout=0)
        cfg.config.run.warmup_lr = cfg.config.run.init_lr
        cfg.config.datasets.pop("fake_region")
        runner = build_runner(cfg, splits=["train"], config_name="config")
        runner.task.train_step = Mean().train_step
        runner.train()
        results.append(weights(runner))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    runner = run(tmp_path / "a", max_epoch=1, grad_clip_norm=0.001)
    unclipped = run(tmp_path / "b", max_epoch=1)
    first = [row for row in lines(tmp_path / "a") if "step" in row][0]
    assert first["grad_norm"] == [row for row in lines(tmp_path / "b") if "step" in row][0]["grad_norm"] > 0.001
    moment = sum(float(state["exp_avg"].norm()) for state in runner.step.optimizer.state.values())
    assert moment < 0.1 * sum(float(state["exp_avg"].norm()) for state in unclipped.step.optimizer.state.values())


def test_keep_last_and_save_last(tmp_path: Path) -> None:
    run(tmp_path / "a", max_epoch=4, keep_last=2, valid_splits="[val]")
    assert {path.name for path in (tmp_path / "a").glob("*.pth")} == {
        "checkpoint_2.pth",
        "checkpoint_3.pth",
        "checkpoint_best.pth",
    }
    run(tmp_path / "b", max_epoch=3, save_freq=2, save_last="false")
    assert {path.name for path in (tmp_path / "b").glob("*.pth")} == {"checkpoint_1.pth"}
    run(tmp_path / "c", max_epoch=1, save_freq="0.00001 minutes", log_freq=4)
    assert {path.name for path in (tmp_path / "c").glob("*.pth")} == {
        "checkpoint_0_step1.pth",
        "checkpoint_0_step4.pth",
        "checkpoint_0_step8.pth",
        "checkpoint_0.pth",
    }


def test_two_datasets_of_one_modality_are_one_task(tmp_path: Path) -> None:
    path = tmp_path / "joined.yaml"
    path.write_text("model: {arch: fake_model}\ndatasets: {fake_image: {size: 10}, fake_image_more: {size: 6}}\n")
    cfg = config(tmp_path / "out", max_epoch=1)
    cfg.config.datasets = {"fake_image": {"size": 10}, "fake_image_more": {"size": 6}}
    runner = build_runner(cfg, splits=["train"], config_name="config")
    runner.train()
    assert list(runner.loader.loaders) == ["image"]
    assert runner.progress.step == 4


def test_a_batch_that_trains_nothing_is_an_error(tmp_path: Path) -> None:
    cfg = config(tmp_path / "out")
    runner = build_runner(cfg, splits=["train"], config_name="config")
    runner.task.train_step = lambda model, samples: {"loss": torch.zeros(())}
    with pytest.raises(ConfigError, match="no trainable parameter"):
        runner.train()


def test_tensorboard_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(tmp_path / "out", max_epoch=1, tensorboard="true")
    assert list((tmp_path / "out" / "tensorboard").glob("events*"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_precisions_on_a_gpu(tmp_path: Path, dtype: str) -> None:
    options = {"amp_dtype": dtype, "save_freq": "3 steps", "valid_splits": "[val]", "device": "cuda"}
    straight = run(tmp_path / "out", **options)
    assert straight.step.scaler.is_enabled() == (dtype == "fp16")
    assert next(iter(weights(straight).values())).device.type == "cuda"
    resumed = run(tmp_path / "again", **options, resume_ckpt_path=tmp_path / "out" / "checkpoint_0_step3.pth")
    assert_same(weights(straight), weights(resumed))


def test_a_save_waits_for_the_end_of_an_update_and_of_an_epoch(tmp_path: Path) -> None:
    run(tmp_path / "a", accum_grad_iters=3, save_freq="5 steps", save_last="false")  # updates end at 3, 6, 9, 10 of 10
    names = {path.name for path in (tmp_path / "a").glob("*.pth")}
    assert names == {"checkpoint_0_step6.pth", "checkpoint_0.pth", "checkpoint_1_step16.pth", "checkpoint_1.pth"}
