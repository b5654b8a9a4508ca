"""The fake model with a fault: at one training step of one rank the process dies, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lavis.common.config import ConfigError
from lavis.common.registry import registry
from tests.runners.fakes import FakeModel


@registry.register_model("faulty_model")
class FaultyModel(FakeModel):
    """``fault``: {rank, step (of this process, from 1), kind: kill | raise | refuse, mark}; the file ``mark`` is written before,
    and where it exists nothing happens."""

    fault: Any = None
    steps = 0

    @classmethod
    def from_config(cls, cfg: Any) -> FaultyModel:
        model = cls(dropout=cfg.get("dropout", 0.1))
        model.fault = cfg.fault
        return model

    def forward(self, samples: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        self.steps += self.training
        fault, rank = self.fault, int(os.environ.get("RANK", 0))
        if (rank, self.steps) == (fault.rank, fault.step) and not Path(fault.mark).exists():
            Path(fault.mark).touch()
            if fault.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault.kind == "refuse":
                raise ConfigError(f"the fault of rank {rank}")
            raise KeyError(f"the fault of rank {rank}")
        return super().forward(samples)
