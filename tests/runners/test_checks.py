"""What is refused before any long work starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lavis.common.config import ConfigError
from lavis.runners.checks import check_run, check_weight_sources
from lavis.runners.evaluation import evaluations
from lavis.runners.progress import LossSums, Progress, SkipCounts
from lavis.runners.saving import SaveFreq
from lavis.runners.step import amp_dtype
from tests.runners.fakes import FakeModel, config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("runner", "runner_bas", "Unknown runner 'runner_bas'. Did you mean 'runner_base'"),
        ("task", "regionblip_pretran", "Unknown task 'regionblip_pretran'. Did you mean 'regionblip_pretrain'"),
        ("lr_sched", "cosine", "Accepted: constant_lr, linear_warmup_cosine_lr, linear_warmup_step_lr"),
        ("task_order", "roundrobin", "Unknown run.task_order 'roundrobin'. Did you mean 'round_robin'"),
        ("lr_schedule", "per_tasks", "run.lr_schedule"),
        ("amp_dtype", "fp8", "Unknown run.amp_dtype 'fp8'"),
        ("batch_size_train", "0", "run.batch_size_train must be a whole number of at least 1, not 0"),
        ("max_iters", "x", "run.max_iters"),
        ("batch_size_train_per_task", "{image: none}", "run.batch_size_train_per_task.image"),
        ("grad_clip_norm", "-1", "run.grad_clip_norm must be a number above 0"),
        ("num_workers", "-1", "run.num_workers must be 0 or more"),
        ("gallery", "-1", "run.gallery must be a whole number of samples, or 0 for no gallery, not -1"),
        ("gallery", "4.5", "run.gallery must be a whole number"),
        ("gallery", "true", "run.gallery must be a whole number"),
        ("gallery", "some", "run.gallery must be a whole number"),
        ("gallery", "null", "run.gallery must be a whole number"),
        ("save_freq", "5 hours", "run.save_freq is '5 hours'; accepted"),
        ("resume_ckpt_path", "nowhere.pth", "run.resume_ckpt_path: no file nowhere.pth"),
    ],
)
def test_values_that_cannot_work(tmp_path: Path, key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_run(config(tmp_path / "out", **{key: value}).run_cfg)


def test_defaults_work(tmp_path: Path) -> None:
    check_run(config(tmp_path / "out", resume_ckpt_path="auto").run_cfg)


def test_random_parts_are_refused_unless_allowed() -> None:
    check_weight_sources(FakeModel(), allow_random_init=False)
    check_weight_sources(FakeModel(random_base=True), allow_random_init=True)
    with pytest.raises(ConfigError, match="loaded from nowhere and hold random weights: base.*model.allow_random_init: true"):
        check_weight_sources(FakeModel(random_base=True), allow_random_init=False)


def test_save_freq() -> None:
    assert SaveFreq.parse(5) == SaveFreq.parse("5 epochs") == SaveFreq(5, "epoch")
    assert SaveFreq.parse("500 steps") == SaveFreq(500, "step")
    assert SaveFreq.parse("1.5 minutes") == SaveFreq(1.5, "minute")
    for text in ("0", "1.5 epochs", "soon", None):
        with pytest.raises(ConfigError, match="run.save_freq"):
            SaveFreq.parse(text)


def test_amp_dtype(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert amp_dtype(config(tmp_path / "out").run_cfg, cpu) == torch.float32
    assert amp_dtype(config(tmp_path / "out", amp_dtype="bf16").run_cfg, cpu) == torch.bfloat16
    assert amp_dtype(config(tmp_path / "out", amp_dtype="bf16", amp="false").run_cfg, cpu) == torch.float32


def test_result_names_tell_datasets_apart() -> None:
    datasets = {"a": {"val": 1, "test": 2}, "b": {"test": 3}}
    names = [name for name, *_ in evaluations(datasets, ["val", "test"])]
    assert names == ["val", "a_test", "b_test"]


def test_skipped_rows_are_counted_by_reason() -> None:
    counts = SkipCounts()
    counts.add([("rows[2]", "missing image: a.jpg"), ("rows[1]", "missing image: b.jpg"), ("rows[2]", "missing image: a.jpg")])
    counts.add([("rows[7]", "empty caption")])
    other = SkipCounts()
    other.merge(counts.state_dict())
    assert other.summary() == {
        "empty caption": {"count": 1, "first": ["rows[7]"]},
        "missing image": {"count": 3, "first": ["rows[1]", "rows[2]"]},
    }


def test_sums_of_another_number_of_processes_are_kept_whole() -> None:
    sums = LossSums()
    sums.add("image", {"loss": torch.tensor(2.0)})
    part = {"losses": sums.state_dict(), **dict.fromkeys(("skipped_in_epoch", "skipped_in_run"), {"counts": {}, "names": {}})}
    progress = Progress()
    state = {**progress.state_dict(), "ranks": [part, part, part]}
    progress.load_state_dict(state, device=torch.device("cpu"))
    progress.losses.add("image", {"loss": torch.tensor(6.0)})
    assert progress.losses.means() == {"image": {"loss": 4.0}}  # two steps, one of them done by three processes
