"""A model and data for evaluations: what the model says of a sample depends on the whole batch and on what it draws.

Two variables of the environment are for processes that a test starts: COUNT_CALLS names a file to which every call of `generate`
adds a line; from call number STOP_AFTER on, a process writes its id to a file `stopped_<id>` and waits to be killed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lavis.common.registry import registry
from tests.runners.fakes import FakeBuilder, FakeDataset, FakeModel

CLASSES = [f"class {number}" for number in range(7)]


@registry.register_model("batchwise_model")
class BatchwiseModel(FakeModel):
    calls = 0

    def _say(self, samples: Mapping[str, Any]) -> list[str]:
        images = samples["image"]
        tone = float(torch.tanh(self.shared(images)).mean() + torch.rand(()))
        return [f"{float(image.sum()):.9g} among {len(images)} in {tone:.9g}" for image in images]

    def generate(self, samples: Mapping[str, Any], **kwargs: Any) -> list[str]:
        self.calls += 1
        if self.calls > int(os.environ.get("STOP_AFTER", 1_000_000)):
            Path(f"stopped_{os.getpid()}").write_text("")
            threading.Event().wait()
        if "COUNT_CALLS" in os.environ:
            with open(os.environ["COUNT_CALLS"], "a") as stream:
                stream.write("call\n")
        return self._say(samples)

    def predict_answers(self, samples: Mapping[str, Any], **kwargs: Any) -> list[str]:
        return self._say(samples)

    def classify(self, samples: Mapping[str, Any], classnames: list[str], **kwargs: Any) -> torch.Tensor:
        images = samples["image"]
        return images.mean() * torch.rand(len(images), len(classnames)) + images.sum(dim=1, keepdim=True)


class BatchwiseDataset(FakeDataset):
    """What captions, answers and classes need; ids are texts where they are odd."""

    scoring, truth_files, classnames, answer_list = "vqa", (), CLASSES, None

    def _id(self, index: int) -> int | str:
        return f"id {index}" if index % 2 else index

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().collater(samples)
        ids = [self._id(index) for index in batch["image_id"]]
        return {**batch, "image_id": ids, "question_id": ids, "label": [index % len(CLASSES) for index in batch["image_id"]]}

    def references(self) -> list[tuple[Any, str]]:
        return [(self._id(index), "1 among 3 in 0.5") for index in range(self.size)]

    def own_answers(self) -> dict[Any, list[str]]:
        return {self._id(index): ["yes"] for index in range(self.size)}


@registry.register_builder("batchwise_data")
class BatchwiseBuilder(FakeBuilder):
    def build_datasets(self, **kwargs: Any) -> dict[str, FakeDataset]:
        return {"test": BatchwiseDataset("batchwise", "test", modality="image", size=self.cfg.get("size", 13))}
