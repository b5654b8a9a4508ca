"""Rows and metrics of the tasks, and how datasets are chosen by split."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common.config import ConfigError
from lavis.common.registry import registry
from lavis.evaluation.captions.caption import CaptionScores
from lavis.tasks import captioning, setup_task
from lavis.tasks.base_task import batch_length, gather_rows
from tests.runners.fakes import FakeDataset, FakeModel, config


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Metrics that remember what they were asked for."""
    asked: dict[str, Any] = {}

    def score_captions(truth: Path, results: list[dict[str, Any]], **options: Any) -> CaptionScores:
        asked.update(truth=Path(truth), results=results, **options)
        return CaptionScores({"CIDEr": 1.0, "Bleu_4": 0.5, "agg_metrics": 1.5}, {}, {}, [], {}, {})

    def build_ground_truth(rows: list[tuple[int, str]], path: Path) -> None:
        asked["built"] = rows
        Path(path).write_text("{}")

    monkeypatch.setattr(captioning, "score_captions", score_captions)
    monkeypatch.setattr(captioning, "build_ground_truth", build_ground_truth)
    return asked


def caption_rows(task: Any, dataset: FakeDataset) -> list[dict[str, Any]]:
    model = FakeModel().eval()
    rows = task.valid_step(model, dataset.collater([dataset[index] for index in range(len(dataset))]))
    task.model = model
    return rows


def test_names_of_the_tasks() -> None:
    names = {"image_text_pretrain", "regionblip_pretrain", "image_captioning_coco", "imageregion_captioning_refcoco"}
    assert names <= set(registry.list_tasks())


def test_captions_are_deduplicated_saved_and_scored(tmp_path: Path, scored: dict[str, Any]) -> None:
    task = setup_task(
        config(tmp_path / "out", task="image_captioning_coco", prompt="a photo of", num_beams=2, caption_metrics="[Bleu]")
    )
    dataset = FakeDataset("fake", "test", modality="image", size=6, ids=4)
    rows = caption_rows(task, dataset)
    assert rows[1] == {"caption": "", "image_id": 1, "readable": False}  # row 1 cannot be read
    asked = task.model.asked
    assert (asked["prompt"], asked["num_beams"], asked["max_length"], asked["min_length"]) == ("a photo of", 2, 30, 8)
    metrics = task.after_evaluation(rows, split_name="test", epoch=3, result_dir=tmp_path / "result", dataset=dataset)
    saved = json.loads((tmp_path / "result" / "test_epoch3.json").read_text())
    assert [row["image_id"] for row in saved] == [0, 1, 2, 3] and set(saved[0]) == {"caption", "image_id"}
    assert scored["results"] == saved and scored["metrics"] == ("Bleu",)
    assert scored["built"] == dataset.references()
    assert scored["truth"] == tmp_path / "result" / "test_ground_truth.json"
    counts = {"num_samples": 4, "num_unreadable": 1, "num_duplicates": 2}
    assert metrics == {"CIDEr": 1.0, "Bleu_4": 0.5, "agg_metrics": 1.5, **counts}
    assert (scored["resamples"], scored["seed"], scored["java_timeout"]) == (1000, 42, 840.0)


def test_ground_truth_is_the_users_file_where_it_exists(tmp_path: Path, scored: dict[str, Any]) -> None:
    dataset = FakeDataset("fake", "test", modality="image", size=2)
    path = tmp_path / "deep" / "truth.json"
    for annotation_file in (path, f"{{fake: {path}}}"):
        task = setup_task(config(tmp_path / "out", task="imageregion_captioning_refcoco", annotation_file=annotation_file))
        task.after_evaluation(caption_rows(task, dataset), split_name="test", epoch=0, result_dir=tmp_path, dataset=dataset)
        assert scored.pop("truth") == path
    assert scored.pop("built")  # the first time only: then the file was there
    task.after_evaluation(caption_rows(task, dataset), split_name="test", epoch=0, result_dir=tmp_path, dataset=dataset)
    assert "built" not in scored
    task = setup_task(config(tmp_path / "out", task="captioning", annotation_file="{other: x}"))
    with pytest.raises(ConfigError, match="names other, but not dataset fake"):
        task.ground_truth(dataset, result_dir=tmp_path, split_name="test")


def test_real_metrics(tmp_path: Path) -> None:
    """Through the evaluation package: 1 of the captions is right, and so is the file that was made of the
    annotation."""
    task = setup_task(config(tmp_path / "out", task="captioning", caption_metrics="[Bleu, CIDEr]"))
    dataset = FakeDataset("fake", "test", modality="image", size=3)
    rows = caption_rows(task, dataset)
    metrics = task.after_evaluation(rows, split_name="test", epoch=0, result_dir=tmp_path, dataset=dataset)
    assert metrics["agg_metrics"] == pytest.approx(metrics["CIDEr"] + metrics["Bleu_4"])
    assert 0 < metrics["Bleu_1"] <= 1 and metrics["num_unreadable"] == 1
    low, high = metrics["Bleu_1_ci95"]
    assert low < metrics["Bleu_1"] < high and "agg_metrics_ci95" not in metrics
    task = setup_task(config(tmp_path / "out", task="captioning", caption_metrics="[Bleu]"))
    assert "agg_metrics" in task.after_evaluation(rows, split_name="b", epoch=0, result_dir=tmp_path, dataset=dataset)
    with pytest.raises(ConfigError, match="Unknown run.caption_metrics 'Blue'. Did you mean 'Bleu'"):
        setup_task(config(tmp_path / "out", task="captioning", caption_metrics="[Blue]"))


def test_what_the_numbers_were_made_of_is_kept(tmp_path: Path) -> None:
    options = dict(caption_metrics="[Bleu, CIDEr]", num_beams=2, prompt="a photo of", bootstrap_resamples=20)
    task = setup_task(config(tmp_path / "out", task="captioning", **options))
    dataset = FakeDataset("fake", "test", modality="image", size=3)
    rows = caption_rows(task, dataset)
    metrics = task.after_evaluation(rows, split_name="test", epoch=2, result_dir=tmp_path, dataset=dataset)
    kept = json.loads((tmp_path / "test_epoch2_scores.json").read_text())
    assert kept["metrics"] == {key: value for key, value in metrics.items() if key not in ("num_samples", "num_unreadable")}
    settings = kept["settings"]
    assert (settings["results"], settings["dataset"], settings["prompt"]) == ("test_epoch2.json", "fake", "a photo of")
    asked = {name: value for name, value in task.model.asked.items() if name in settings["decoding"]}
    assert settings["decoding"] == asked and asked["num_beams"] == 2 and asked["use_nucleus_sampling"] is False
    assert {"lavis", "numpy", "torch", "transformers", "tokens"} <= set(kept["versions"])
    truth = tmp_path / "test_ground_truth.json"
    assert kept["ground_truth"] == {"path": str(truth), "sha256": hashlib.sha256(truth.read_bytes()).hexdigest()}
    assert (kept["bootstrap"]["resamples"], kept["bootstrap"]["seed"]) == (20, 42)
    samples = kept["samples"]
    assert [row["caption"] for row in samples] == [row["caption"] for row in rows]
    assert samples[0]["references"] == ["thing 1"] and set(samples[0]["scores"]) >= {"Bleu_4", "CIDEr"}
    off = setup_task(config(tmp_path / "out", task="captioning", caption_metrics="[Bleu]", bootstrap_resamples=0))
    plain = off.after_evaluation(rows, split_name="off", epoch=0, result_dir=tmp_path, dataset=dataset)
    assert not any(name.endswith("_ci95") for name in plain)
    with pytest.raises(ConfigError, match="run.bootstrap_resamples is -1; accepted: 1 or more, 0 for no intervals"):
        setup_task(config(tmp_path / "out", task="captioning", bootstrap_resamples=-1))


def test_captions_alone(tmp_path: Path) -> None:
    task = setup_task(config(tmp_path / "out", task="captioning", report_metric="false"))
    dataset = FakeDataset("fake", "test", modality="image", size=3)
    rows = caption_rows(task, dataset)
    metrics = task.after_evaluation(rows, split_name="test", epoch="best", result_dir=tmp_path, dataset=dataset)
    assert metrics == {"num_samples": 3, "num_unreadable": 1, "agg_metrics": 0.0}
    assert (tmp_path / "test_epochbest.json").is_file()


def test_validation_of_pretraining_is_the_mean_over_samples(tmp_path: Path) -> None:
    task = setup_task(config(tmp_path / "out"))
    rows = [
        {"n": 3, "unreadable": 1, "losses": {"loss": 1.0, "loss_itc": 2.0}},
        {"n": 1, "unreadable": 0, "losses": {"loss": 5.0, "loss_itc": 0.0}},
    ]
    metrics = task.after_evaluation(rows, split_name="val", epoch=0, result_dir=tmp_path, dataset=None)
    assert metrics == {"loss": 2.0, "loss_itc": 1.5, "num_samples": 4, "num_unreadable": 1, "agg_metrics": -2.0}
    with pytest.raises(ValueError, match="holds no sample"):
        task.after_evaluation([], split_name="val", epoch=0, result_dir=tmp_path, dataset=None)
    dataset = FakeDataset("fake", "val", modality="image", size=4)
    row = task.valid_step(FakeModel().eval(), dataset.collater([dataset[index] for index in range(4)]))[0]
    assert (row["n"], row["unreadable"]) == (4, 1)
    assert set(row["losses"]) == {"loss", "loss_itc", "loss_itm", "loss_reg"}


def with_annotations(cfg: Any, **annotations: Any) -> Any:
    for block in cfg.config.datasets.values():
        block.build_info = {"annotations": annotations}
    return cfg


def test_only_the_splits_a_run_needs_are_built(tmp_path: Path) -> None:
    cfg = config(tmp_path / "out")
    task = setup_task(cfg)
    built = task.build_datasets(cfg)
    assert {name: set(parts) for name, parts in built.items()} == {
        "fake_image": {"train", "val", "test"},
        "fake_region": {"train", "val", "test"},
    }
    with_annotations(cfg, train={"storage": "a"}, val={"storage": None, "dataset_repeat_num": 2}, test={"storage": ["b"]})
    cfg.config.datasets.fake_region.build_info.annotations.test = None
    built = task.build_datasets(cfg, splits=["test", "test"])
    assert {name: list(parts) for name, parts in built.items()} == {"fake_image": ["test"]}
    with pytest.raises(ConfigError, match="asks for the split 'val', which no dataset has. Splits there: train"):
        task.build_datasets(cfg, splits=["train", "val"])
    cfg.config.datasets = {}
    with pytest.raises(ConfigError, match="datasets: none is configured. Known: .*fake_image"):
        task.build_datasets(cfg)


def test_rows_with_one_id_count_once() -> None:
    rows = [{"id": 1, "x": "first"}, {"id": 2, "x": ""}, {"id": 1, "x": "second"}]
    assert gather_rows(rows, unique="id") == rows[:2]
    assert gather_rows(rows) == rows


def test_batch_length() -> None:
    assert batch_length({"image": torch.zeros(2, 3), "text_input": ["a", "b", "c"], "skipped": []}) == 3
    assert batch_length({"modality": "image", "scale": torch.tensor(1.0), "image": torch.zeros(2, 3)}) == 2
    with pytest.raises(ValueError, match="without lists or tensors: modality"):
        batch_length({"modality": "image"})
