"""Zero-shot classification among the class names of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lavis.common import dist_utils
from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.evaluation.classification import TOP, classification_metrics
from lavis.tasks.base_task import BaseTask, Row, count_samples, gather_rows, save_result


@registry.register_task("multimodal_3d_classification")
class ClassificationTask(BaseTask):
    """The dataset names the classes, and perhaps templates of prompts; samples carry the number of their class, label."""

    def before_evaluation(self, *, model: Any, dataset: Any) -> None:
        super().before_evaluation(model=model, dataset=dataset)
        self.classnames = list(getattr(dataset, "classnames", ()))
        self.templates = list(getattr(dataset, "templates", ()))
        self.classes: torch.Tensor | None = None  # what the model makes of their names, in every batch the same
        if not self.classnames:
            name = getattr(dataset, "name", type(dataset).__name__)
            raise ConfigError(f"run.task classifies, but dataset {name} has no classnames; mobilenet40 has")

    @torch.no_grad()
    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[Row]:
        """A row {"image_id", "prediction", "label", "top5", "readable"} per sample, classes by name; prediction null and
        no top5 for one that could not be read."""
        options: dict[str, Any] = {"templates": self.templates} if self.templates else {}
        if hasattr(model, "class_features"):
            if self.classes is None:
                self.classes = model.class_features(samples, self.classnames, **options)
            options["classes"] = self.classes
        logits = model.classify(samples, classnames=self.classnames, **options).float()
        labels = [self.classnames[label] for label in samples["label"]]
        if logits.shape != (len(labels), len(self.classnames)) or not bool(logits.isfinite().all()):
            wanted = f"finite numbers of shape {(len(labels), len(self.classnames))}"
            raise ValueError(f"classify returned logits of shape {tuple(logits.shape)}; accepted: {wanted}")
        ranked = logits.argsort(dim=-1, descending=True, stable=True)[:, : max(TOP)].tolist()
        readable = samples.get("readable") or [True] * len(labels)
        rows = []
        for image_id, label, guesses, good in zip(samples["image_id"], labels, ranked, readable, strict=True):
            top = [self.classnames[guess] for guess in guesses] if good else []
            prediction = top[0] if good else None
            rows.append({"image_id": image_id, "prediction": prediction, "label": label, "top5": top, "readable": bool(good)})
        return rows

    def after_evaluation(
        self, rows: list[Row], *, split_name: str, epoch: int | str, result_dir: Path, dataset: Any
    ) -> dict[str, Any]:
        """Writes ``<split>_epoch<e>.json``; top1, top5, agg_metrics = top1; one that could not be read counts as wrong."""
        rows = gather_rows(rows, unique="image_id")
        kept = [{key: row[key] for key in ("image_id", "prediction", "label", "top5")} for row in rows]
        path = save_result(kept, result_dir=result_dir, name=f"{split_name}_epoch{epoch}")
        counts = count_samples(rows, path=path, unreadable="count as wrong")
        if not self.run_cfg.report_metric:
            return {**counts, "agg_metrics": 0.0}
        metrics = classification_metrics(kept) if dist_utils.is_main_process() else {}
        return {**dist_utils.broadcast_object(metrics), **counts}
