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
from lavis.tasks.base_task import BaseTask, Row

logger = logging.getLogger(__name__)


@registry.register_task("retrieval")
class RetrievalTask(BaseTask):
    """Batches fill a gallery; once it is whole, every text meets every sample of the dataset (`run.k_test`)."""

    model: Any = None  # of the evaluation that is going on
    gallery: Any = None  # what it has encoded so far

    def before_evaluation(self, *, model: Any, dataset: Any) -> None:
        super().before_evaluation(model=model, dataset=dataset)
        if not getattr(dataset, "text", None):
            name = getattr(dataset, "name", type(dataset).__name__)
            raise ConfigError(f"run.task retrieval: dataset {name} has no texts to find; coco_retrieval has")
        if self.run_cfg.use_dist_eval_sampler and dist_utils.get_world_size() > 1:
            raise ConfigError(
                "run.use_dist_eval_sampler is true; retrieval by several processes needs false: each sees all samples"
            )
        self.model, self.gallery = model, None
        self.readable: list[bool] = []

    @torch.no_grad()
    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[Row]:
        """Encodes a batch; there are no rows until all are there."""
        self.gallery = model.add_to_gallery(self.gallery, samples)
        size = len(self.gallery.features[-1])
        self.readable += samples.get("readable") or [True] * size
        return []

    def after_evaluation(
        self, rows: list[Row], *, split_name: str, epoch: int | str, result_dir: Path, dataset: Any
    ) -> dict[str, Any]:
        """LAVIS' recalls (`retrieval_metrics`), in percent; a sample that could not be read is never found."""
        lost = {number for number, good in enumerate(self.readable) if not good}
        if lost:
            logger.warning("%s: %d of %d samples could not be read; they count as not found", split_name, len(lost), len(dataset))
        i2t, t2i = self.model.gallery_scores(self.gallery, dataset.text, k_test=self.run_cfg.k_test)
        self.model = self.gallery = None
        metrics: dict[str, float] = {}
        if dist_utils.is_main_process():
            metrics = retrieval_metrics(i2t, t2i, txt2img=dataset.txt2img, img2txt=dataset.img2txt, lost=lost)
        return {**dist_utils.broadcast_object(metrics), "num_samples": len(dataset), "num_unreadable": len(lost)}
