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
        """One row per batch: its size ``n``, its losses, of how many terms each is the mean where the model says so
        (``counts``), and how many of its samples could not be read."""
        found = model(samples)
        losses = {name: float(value) for name, value in found.items() if "loss" in name}
        counts = {name: float(count) for name, count in getattr(found, "counts", {}).items()}
        unreadable = sum(not readable for readable in samples.get("readable", ()))
        return [{"n": batch_length(samples), "unreadable": unreadable, "losses": losses, "counts": counts}]

    def after_evaluation(
        self, rows: list[Row], *, split_name: str, epoch: int | str, result_dir: Path, dataset: Any
    ) -> dict[str, Any]:
        """Each loss averaged over the split; agg_metrics = -loss.

        A batch counts by its terms (tokens, rows) where the model gives them, and ``loss`` is then the sum of those means:
        what is a mean over tokens or rows does not depend on the batches. Where it does not, a batch counts by its samples.
        ITC and ITM compare the rows of a batch, and depend on which these are.
        """
        rows = gather_rows(rows)
        samples = sum(row["n"] for row in rows)
        if not samples:
            raise ValueError(f"the split {split_name} of dataset {getattr(dataset, 'name', dataset)} holds no sample")
        names = list(dict.fromkeys(name for row in rows for name in row["losses"]))
        metrics: dict[str, Any] = {name: _mean(rows, name) for name in names}
        if counted := {name for row in rows for name in row.get("counts", ())}:
            metrics["loss"] = sum(metrics[name] for name in sorted(counted))
        counts = {"num_samples": samples, "num_unreadable": sum(row["unreadable"] for row in rows)}
        return {**metrics, **counts, "agg_metrics": -metrics["loss"]}


def _mean(rows: list[Row], name: str) -> float:
    """Mean of a loss over batches that count by its terms, or by their samples."""
    weights = [counts.get(name, 0.0) if (counts := row.get("counts")) else row["n"] for row in rows]
    values = [row["losses"].get(name, 0.0) for row in rows]
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / max(sum(weights), 1e-12)
