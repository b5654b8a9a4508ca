"""Training on the model's own losses; validation is the mean of the same losses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lavis.common.registry import registry
from lavis.tasks.base_task import BaseTask, Row, batch_length, gather_rows


@registry.register_task("image_text_pretrain")
@registry.register_task("regionblip_pretrain")
class PretrainTask(BaseTask):
    """One class for every pre-training: which modality a batch is of, the batch itself says."""

    @torch.no_grad()
    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[Row]:
        """One row per batch: its size ``n``, its losses, and how many of its samples could not be read."""
        losses = {name: float(value) for name, value in model(samples).items() if "loss" in name}
        unreadable = sum(not readable for readable in samples.get("readable", ()))
        return [{"n": batch_length(samples), "unreadable": unreadable, "losses": losses}]

    def after_evaluation(
        self, rows: list[Row], *, split_name: str, epoch: int | str, result_dir: Path, dataset: Any
    ) -> dict[str, Any]:
        """Each loss averaged over the samples of the split; agg_metrics = -loss."""
        rows = gather_rows(rows)
        samples = sum(row["n"] for row in rows)
        if not samples:
            raise ValueError(f"the split {split_name} of dataset {getattr(dataset, 'name', dataset)} holds no sample")
        names = list(dict.fromkeys(name for row in rows for name in row["losses"]))
        metrics: dict[str, Any] = {name: sum(row["losses"].get(name, 0.0) * row["n"] for row in rows) / samples for name in names}
        counts = {"num_samples": samples, "num_unreadable": sum(row["unreadable"] for row in rows)}
        return {**metrics, **counts, "agg_metrics": -metrics["loss"]}
