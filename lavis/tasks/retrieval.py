"""Texts found by pictures (or clouds), and these by texts. Training is on the model's own losses."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lavis.common import dist_utils
from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.evaluation.retrieval import retrieval_metrics
from lavis.tasks.base_task import BaseTask, Row, gather_rows

logger = logging.getLogger(__name__)


@registry.register_task("retrieval")
class RetrievalTask(BaseTask):
    """Batches become parts of a gallery; once it is whole, every text meets every sample of the dataset (`run.k_test`)."""

    rows_are_json = False  # they are encoded inputs, on their way to the gallery
    model: Any = None  # of the evaluation that is going on

    def before_evaluation(self, *, model: Any, dataset: Any) -> None:
        super().before_evaluation(model=model, dataset=dataset)
        if not getattr(dataset, "text", None):
            name = getattr(dataset, "name", type(dataset).__name__)
            raise ConfigError(f"run.task retrieval: dataset {name} has no texts to find; coco_retrieval has")
        self.model = model

    @torch.no_grad()
    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[Row]:
        """One row, the encoded batch: its `gallery`, and which of its samples were `readable`."""
        gallery = model.add_to_gallery(None, samples)
        return [{"gallery": gallery, "readable": samples.get("readable") or [True] * len(gallery.features[0])}]

    def after_evaluation(
        self, rows: list[Row], *, split_name: str, epoch: int | str, result_dir: Path, dataset: Any
    ) -> dict[str, Any]:
        """LAVIS' recalls (`retrieval_metrics`), in percent; a sample that could not be read is never found."""
        readable = [good for row in gather_rows([{"readable": row["readable"]} for row in rows]) for good in row["readable"]]
        lost = {number for number, good in enumerate(readable) if not good}
        if lost:
            logger.warning("%s: %d of %d samples could not be read; they count as not found", split_name, len(lost), len(dataset))
        gallery = self.model.gather_gallery([row["gallery"] for row in rows])
        i2t, t2i = self.model.gallery_scores(gallery, dataset.text, k_test=self.run_cfg.k_test)
        self.model = None
        metrics: dict[str, float] = {}
        if dist_utils.is_main_process():
            metrics = retrieval_metrics(i2t, t2i, txt2img=dataset.txt2img, img2txt=dataset.img2txt, lost=lost)
        return {**dist_utils.broadcast_object(metrics), "num_samples": len(dataset), "num_unreadable": len(lost)}
