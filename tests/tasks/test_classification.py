"""Zero-shot classification: rows, files and numbers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.datasets.datasets.modelnet import ShapeEvalDataset
from lavis.tasks import setup_task
from tests.datasets.files import cloud_options
from tests.runners.fakes import FakeDataset, FakeModel, config

CLASSES = [f"class{number}" for number in range(7)]


class Classifier(FakeModel):
    """Logits that prefer the class whose number is the batch row's; the last class always comes second."""

    def classify(self, samples: dict[str, Any], classnames: list[str], **options: Any) -> torch.Tensor:
        self.asked = {"classnames": classnames, **options}
        logits = torch.zeros(len(samples["label"]), len(classnames))
        logits[:, -1] = 0.5
        logits[torch.arange(len(logits)), torch.arange(len(logits))] = 1.0
        return logits


def shapes(tmp_path: Path, **kwargs: Any) -> ShapeEvalDataset:
    """Row 2 cannot be read; the labels are right for rows 0, 2 and 3, and row 1 has the last class."""
    clouds = [np.random.RandomState(seed).randn(8, 3) for seed in range(4)]
    clouds[2][:] = np.nan
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    (tmp_path / "test.dat").write_bytes(pickle.dumps([clouds, [0, 6, 2, 3]]))
    names = {"class_names": tmp_path / "names.txt", **kwargs}
    return ShapeEvalDataset(**cloud_options(tmp_path, tmp_path / "test.dat", split="test", **names))


def test_names_of_the_tasks() -> None:
    names = {"multimodal_3d_classification", "pointcloud_captioning_objaverse", "pointcloudregion_captioning_refscannet"}
    assert names <= set(registry.list_tasks())


def test_top_1_and_top_5(tmp_path: Path) -> None:
    task = setup_task(config(tmp_path / "out", task="multimodal_3d_classification"))
    dataset, model = shapes(tmp_path), Classifier()
    assert dataset.identity()["classnames"] == CLASSES and dataset.identity()["templates"] == dataset.templates
    task.before_evaluation(model=model, dataset=dataset)
    rows = task.valid_step(model, dataset.collater([dataset[i] for i in range(len(dataset))]))
    assert model.asked == {"classnames": CLASSES}, "the model's own template"
    assert (rows[1]["prediction"], rows[1]["label"], rows[1]["top5"][:2]) == ("class1", "class6", ["class1", "class6"])
    result_dir = tmp_path / "result"
    metrics = task.after_evaluation(rows, split_name="test", epoch=3, result_dir=result_dir, dataset=dataset)
    assert metrics == {"top1": 0.5, "top5": 0.75, "agg_metrics": 0.5, "num_samples": 4, "num_unreadable": 1}
    saved = json.loads((result_dir / "test_epoch3.json").read_text())
    assert saved[2] == {"image_id": 2, "prediction": None, "label": "class2", "top5": []}
    assert [row["image_id"] for row in saved] == [0, 1, 2, 3] and len(saved[0]["top5"]) == 5
    task = setup_task(config(tmp_path / "out", task="multimodal_3d_classification", report_metric="false"))
    metrics = task.after_evaluation(rows, split_name="test", epoch="best", result_dir=result_dir, dataset=dataset)
    assert metrics == {"num_samples": 4, "num_unreadable": 1, "agg_metrics": 0.0}


def test_an_ensemble_of_prompts_comes_from_the_dataset(tmp_path: Path) -> None:
    task = setup_task(config(tmp_path / "out", task="multimodal_3d_classification"))
    dataset, model = shapes(tmp_path, templates=["a {}.", "the {}"]), Classifier()
    task.before_evaluation(model=model, dataset=dataset)
    task.valid_step(model, dataset.collater([dataset[0]]))
    assert model.asked["templates"] == ["a {}.", "the {}"]


def test_classes_are_encoded_once_per_evaluation(tmp_path: Path) -> None:
    class Encoder(Classifier):
        encoded = 0

        def class_features(self, samples: dict[str, Any], classnames: list[str], **options: Any) -> torch.Tensor:
            self.encoded += 1
            return torch.full((len(classnames), 2), float(self.encoded))

    task = setup_task(config(tmp_path / "out", task="multimodal_3d_classification"))
    dataset, model = shapes(tmp_path), Encoder()
    for evaluation in (1, 2):
        task.before_evaluation(model=model, dataset=dataset)
        for index in (0, 1):
            task.valid_step(model, dataset.collater([dataset[index]]))
        assert model.encoded == evaluation and model.asked["classes"][0, 0] == evaluation, "weights may have changed in between"


def test_what_cannot_be_classified(tmp_path: Path) -> None:
    task = setup_task(config(tmp_path / "out", task="multimodal_3d_classification"))
    plain = FakeDataset("fake", "test", modality="image", size=3)
    with pytest.raises(ConfigError, match="dataset fake has no classnames; mobilenet40 has"):
        task.before_evaluation(model=Classifier(), dataset=plain)
    dataset = shapes(tmp_path)
    task.before_evaluation(model=Classifier(), dataset=dataset)
    model = Classifier()
    for logits in (torch.zeros(1, 3), torch.full((1, 7), torch.nan)):
        model.classify = lambda *args, logits=logits, **options: logits  # type: ignore[method-assign, misc]
        with pytest.raises(ValueError, match=r"accepted: finite numbers of shape \(1, 7\)"):
            task.valid_step(model, dataset.collater([dataset[0]]))
