"""The gallery as an evaluation writes it: after its numbers, which nothing that goes wrong with a page can cost."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.runners.evaluation import evaluate_dataset
from lavis.tasks import captioning, setup_task
from tests.report import shown
from tests.runners.fakes import FakeDataset, FakeModel, config


class Captioner(FakeModel):
    def generate(self, samples: Any, **kwargs: Any) -> list[str]:
        return ["a red chair" for _ in samples["image_id"]]


def evaluate(folder: Path, dataset: Any, **options: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    given = {"task": "captioning", "caption_metrics": "[Bleu, CIDEr]", "bootstrap_resamples": 0, **options}
    cfg = config(folder / "out", **given)
    return evaluate_dataset(
        dataset,
        task=setup_task(cfg),
        model=Captioner(),
        run_cfg=cfg.run_cfg,
        device=torch.device("cpu"),
        name="test",
        epoch="best",
        output_dir=folder / "out",
    )


@pytest.mark.parametrize("make", [shown.regions, shown.rooms, shown.objects])
def test_an_evaluation_writes_both_pages(tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    dataset = make(tmp_path / "data", 5)
    metrics = evaluate(tmp_path, dataset, gallery=4)
    out = tmp_path / "out"
    text = (out / "result" / "test_epochbest_gallery.html").read_text(encoding="utf-8")
    assert text.count("data-score=") == 4 and "4 of 5 samples" in " ".join(text.split())
    assert "gallery of 4 of 5 samples" in caplog.text
    summary = (out / "summary.html").read_text(encoding="utf-8")
    assert f"{metrics['CIDEr']:.3f}" in summary and 'href="result/test_epochbest_gallery.html"' in summary
    without = evaluate(tmp_path / "without", dataset)
    assert without == metrics
    assert not list((tmp_path / "without").rglob("*.html"))


def test_unreadable_samples_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = shown.regions(tmp_path / "data", 3)
    (tmp_path / "data" / "1.png").unlink()
    metrics = evaluate(tmp_path, dataset, gallery=48)
    assert metrics["num_unreadable"] == 1
    assert "1 of 3 samples have no picture: 1_box_15_10_30_13: missing image" in caplog.text
    text = (tmp_path / "out" / "result" / "test_epochbest_gallery.html").read_text(encoding="utf-8")
    assert text.count("Nothing to show") == 1


def test_a_dataset_that_shows_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluate(tmp_path, FakeDataset("fake", "test", modality="image", size=3), gallery=2)
    assert "2 of 2 samples have no picture" in caplog.text


def test_a_page_that_fails_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(captioning, "write_gallery", fail)
    metrics = evaluate(tmp_path, shown.regions(tmp_path / "data", 3), gallery=2)
    kept = json.loads((tmp_path / "out" / "evaluate.txt").read_text())
    assert kept["test"] == metrics and metrics["num_samples"] == 3
    assert (tmp_path / "out" / "summary.html").is_file()
    assert "the gallery of test_epochbest could not be made" in caplog.text and "no space left on device" in caplog.text


def test_without_scores_there_is_no_gallery(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluate(tmp_path, shown.regions(tmp_path / "data", 3), gallery=2, report_metric="false")
    assert "no gallery of test_epochbest: run.report_metric is false" in caplog.text
    assert (tmp_path / "out" / "summary.html").is_file()
