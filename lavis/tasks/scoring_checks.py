"""What would stop an evaluation at its end, found before its beginning: answers, class names, ground truth files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lavis.common.paths import resolve
from lavis.evaluation.ground_truth import read_references, some
from lavis.tasks.base_task import BaseTask
from lavis.tasks.captioning import CaptionTask


def scoring_errors(task: BaseTask, dataset: Any) -> list[str]:
    """Why results on an evaluation dataset could not be scored; empty where they can."""
    try:
        task.before_evaluation(model=None, dataset=dataset)
        if isinstance(task, CaptionTask):
            _check_ground_truth(task.run_cfg, dataset)
    except ValueError as error:
        return [str(error)]
    return []


def _check_ground_truth(run_cfg: Any, dataset: Any) -> None:
    """ValueError where run.annotation_file is there and does not list a sample of the dataset."""
    named = run_cfg.annotation_file
    if isinstance(named, Mapping) or hasattr(named, "items"):
        named = named.get(dataset.name)
    if not run_cfg.report_metric or not named or not resolve(named).is_file():
        return
    known = {str(key) for key in read_references(resolve(named))}
    strangers = [row["image_id"] for row in dataset.rows if str(row["image_id"]) not in known]
    if strangers:
        counts = f"{len(strangers)} of the {len(dataset.rows)} ids of {dataset.name}, {dataset.split}"
        raise ValueError(f"run.annotation_file {named} does not list {counts}: {some(strangers)}")
