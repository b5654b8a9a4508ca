"""What would stop an evaluation at its end, found before its beginning: answers, class names, ground truth files."""

from __future__ import annotations

from typing import Any

from lavis.tasks.base_task import BaseTask


def scoring_errors(task: BaseTask, dataset: Any) -> list[str]:
    """Why results on an evaluation dataset could not be scored; empty where they can."""
    try:
        task.before_evaluation(model=None, dataset=dataset)
    except ValueError as error:
        return [str(error)]
    return []
