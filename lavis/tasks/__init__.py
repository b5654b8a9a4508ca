"""What a run does with a model and data: a step, an evaluation, the metrics. Tasks hold no loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lavis.common.registry import registry

if TYPE_CHECKING:
    from lavis.common.config import Config
    from lavis.tasks.base_task import BaseTask


def setup_task(cfg: Config) -> BaseTask:
    """The task that ``run.task`` names."""
    return registry.get_task_class(cfg.run_cfg.task).setup_task(cfg)
