"""What would stop an evaluation at its end is told before its beginning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lavis.common.config import Config
from lavis.datasets.datasets.captions import CaptionEvalDataset
from lavis.datasets.datasets.vqa import VQAEvalDataset
from lavis.evaluation.captions.ground_truth import build_ground_truth
from lavis.tasks import setup_task
from lavis.tasks.scoring_checks import scoring_errors
from tests.datasets.files import options, write_images, write_json
from tests.runners.fakes import config


def cfg(folder: Path, **run: Any) -> Config:
    return config(folder / "out", **run)


@pytest.fixture
def captions(tmp_path: Path) -> CaptionEvalDataset:
    write_images(tmp_path, ["x_1.jpg", "x_2.jpg"])
    rows = [{"image": f"x_{n}.jpg", "caption": ["a thing"]} for n in (1, 2)]
    return CaptionEvalDataset(**options(tmp_path, write_json(tmp_path / "test.json", rows), split="test"))


def test_ground_truth_of_other_samples(tmp_path: Path, captions: CaptionEvalDataset) -> None:
    truth = tmp_path / "truth.json"
    given = {"task": "image_captioning_coco", "annotation_file": str(truth)}
    task = setup_task(cfg(tmp_path, **given))
    assert scoring_errors(task, captions) == [], "made when it is not there"
    build_ground_truth(captions.references(), truth)
    assert scoring_errors(task, captions) == []
    build_ground_truth([(1, "a thing"), (7, "another")], truth)
    (error,) = scoring_errors(task, captions)
    assert "truth.json does not list 1 of the 2 ids of tiny, test: 2" in error
    per_dataset = setup_task(cfg(tmp_path, **{**given, "annotation_file": f"{{tiny: {truth}}}"}))
    assert scoring_errors(per_dataset, captions) == [error]
    assert scoring_errors(setup_task(cfg(tmp_path, **given, report_metric="false")), captions) == []
    truth.write_text('{"images": [')
    assert "truth.json is not a whole JSON file" in scoring_errors(task, captions)[0]


def test_questions_and_tasks_that_do_not_fit(tmp_path: Path, captions: CaptionEvalDataset) -> None:
    rows: list[dict[str, Any]] = [{"image": "x_1.jpg", "question": "q", "question_id": n, "answer": ["a"]} for n in (1, 2)]
    del rows[1]["answer"]
    dataset = VQAEvalDataset(**options(tmp_path, write_json(tmp_path / "val.json", rows), split="val"))
    task = setup_task(cfg(tmp_path, task="vqa", min_len=1))
    assert "1 of 2 questions have answers" in scoring_errors(task, dataset)[0]
    ranking = setup_task(cfg(tmp_path, task="vqa", min_len=1, inference_method="rank", report_metric="false"))
    assert "has no list of answers" in scoring_errors(ranking, dataset)[0]
    classifying = setup_task(cfg(tmp_path, task="multimodal_3d_classification"))
    assert "has no classnames" in scoring_errors(classifying, captions)[0]
