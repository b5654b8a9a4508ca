"""RegionBLIP's runner: a batch size and a best checkpoint of its own for every task (published
runner_regionblip).

What differs from the published one: batch sizes may be keyed by modality too, validation within training
works, and the tasks of an epoch may be interleaved (run.task_order).
"""

from __future__ import annotations

from typing import Any

from lavis.common.config import ConfigError
from lavis.common.errors import listed
from lavis.common.modalities import modality_of
from lavis.common.registry import registry
from lavis.runners.runner_base import RunnerBase


@registry.register_runner("runner_regionblip")
class RunnerRegionBLIP(RunnerBase):
    """A task is a modality; its best weights are ``checkpoint_best_<modality>.pth``."""

    def batch_size(self, modality: str) -> int:
        """Of ``run.batch_size_train_per_task``, whose keys are published task names or modalities; where that
        is empty, ``run.batch_size_train``."""
        sizes = {modality_of(str(key)): int(size) for key, size in self.run_cfg.batch_size_train_per_task.items()}
        if not sizes:
            return super().batch_size(modality)
        if modality not in sizes:
            raise ConfigError(
                f"run.batch_size_train_per_task has no entry for {modality}, which a dataset has; it names {listed(sizes)}"
            )
        return sizes[modality]

    def best_name(self, dataset: Any) -> str:
        return f"best_{dataset.modality}"
