"""LAVIS' iteration runner: a run of max_iters batches, cut into inner epochs of iters_per_inner_epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

from lavis.common.config import ConfigError
from lavis.common.registry import registry
from lavis.runners.runner_base import RunnerBase


@registry.register_runner("runner_iter")
class RunnerIter(RunnerBase):
    """An epoch of the loop (schedule, evaluation, checkpoints) is an inner epoch; the data go on from where
    the one before stopped, in as many passes as it takes."""

    @staticmethod
    def check_run(run_cfg: Any) -> None:
        """ConfigError unless the length of the run is given."""
        if run_cfg.max_iters is None and not run_cfg.evaluate:
            raise ConfigError("run.max_iters is not set; runner_iter needs the number of batches of the whole run")

    def setup_training(self) -> None:
        self._stream: Iterator[tuple[str, Any]] | None = None
        super().setup_training()

    @property
    def num_epochs(self) -> int:
        return math.ceil(int(self.run_cfg.max_iters) / self.epoch_length())

    def epoch_length(self) -> int:
        return int(self.run_cfg.iters_per_inner_epoch or len(self.loader))

    def steps_left(self, *, of_epoch: int) -> int:
        return int(self.run_cfg.max_iters) - self.progress.step

    def epoch_batches(self, epoch: int) -> tuple[Iterator[tuple[str, Any]], int]:
        if self._stream is None:
            self._stream = self._passes()
        end = min((epoch + 1) * self.epoch_length(), int(self.run_cfg.max_iters))
        left = end - self.progress.step
        return islice(self._stream, left), left

    def _passes(self) -> Iterator[tuple[str, Any]]:
        """Batches without end, from where the loader's state says."""
        data_epoch = int(self.loader.state_dict()["epoch"])
        while True:
            yield from self.loader.epoch(data_epoch)
            data_epoch += 1
