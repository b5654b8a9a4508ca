"""Validation losses: means over the tokens and rows of a split, however it falls into batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.models import load_model_from_config
from lavis.tasks import setup_task
from tests import tiny
from tests.runners.fakes import FakeDataset, FakeModel, config

TEXTS = ["a red square", "a lamp", "a blue circle on the right side of the table", "two green triangles and a small lamp"]


def metrics_of(task: Any, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    return task.after_evaluation(rows, split_name="val", epoch=0, result_dir=folder, dataset=None)


def test_token_and_row_means_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    task = setup_task(config(tmp_path / "out", task="regionblip_pretrain"))
    model = load_model_from_config(tiny.model_config(tmp_path, "regionblip_opt", enable_aux_regloss=True)).eval()
    batch = {**tiny.image_batch("image_region"), "text_input": TEXTS}
    found = {}
    for cuts in ([0, 4], [0, 1, 4], [0, 2, 3, 4]):
        rows: list[dict[str, Any]] = []
        for low, high in zip(cuts, cuts[1:], strict=False):
            rows += task.valid_step(model, {k: v if isinstance(v, str) else v[low:high] for k, v in batch.items()})
        found[len(cuts)] = metrics_of(task, rows, tmp_path)
    with torch.no_grad():
        whole = model(batch)
    for metrics in found.values():
        for name in ("loss_lm", "loss_llm", "loss_reg"):
            assert metrics[name] == pytest.approx(float(whole[name]), rel=1e-5), name
        assert metrics["loss"] == pytest.approx(sum(value for name, value in metrics.items() if name.startswith("loss_")))
        assert metrics["agg_metrics"] == -metrics["loss"] and metrics["num_samples"] == 4
    assert found[2]["loss"] == pytest.approx(float(whole.loss), rel=1e-5)
    assert found[2]["loss_itc"] != pytest.approx(found[4]["loss_itc"], rel=1e-2), "ITC compares the rows of a batch"


def test_a_batch_without_negatives_does_not_count_for_itm(tmp_path: Path) -> None:
    task = setup_task(config(tmp_path / "out", task="regionblip_pretrain"))
    model = load_model_from_config(tiny.model_config(tmp_path, "regionblip_opt")).eval()
    batch = tiny.image_batch()
    three = {key: value if isinstance(value, str) else value[:3] for key, value in batch.items()}
    one = {key: value if isinstance(value, str) else value[3:] for key, value in batch.items()}
    rows = [*task.valid_step(model, three), *task.valid_step(model, one)]
    assert rows[1]["losses"]["loss_itm"] == 0 < rows[0]["losses"]["loss_itm"]
    assert metrics_of(task, rows, tmp_path)["loss_itm"] == rows[0]["losses"]["loss_itm"]


def test_batches_of_other_models_count_by_their_samples(tmp_path: Path) -> None:
    task = setup_task(config(tmp_path / "out", task="regionblip_pretrain"))
    dataset, model = FakeDataset("fake", "val", modality="image", size=5), FakeModel(dropout=0).eval()
    rows = [row for part in ([0, 1, 2], [3, 4]) for row in task.valid_step(model, dataset.collater([dataset[i] for i in part]))]
    metrics = metrics_of(task, rows, tmp_path)
    assert metrics["loss"] == pytest.approx((3 * rows[0]["losses"]["loss"] + 2 * rows[1]["losses"]["loss"]) / 5)
    assert metrics["num_unreadable"] == 1
