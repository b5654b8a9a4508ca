"""In which type frozen weights are held: low precision on a GPU, float32 on a CPU, whatever the YAML says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from lavis.common.errors import ConfigError

PRECISIONS = {
    "fp32": torch.float32, "float": torch.float32, "float32": torch.float32,
    "fp16": torch.float16, "float16": torch.float16,
    "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
}  # fmt: skip

_target = torch.device("cpu")


@contextmanager
def building_for(device: torch.device | str) -> Iterator[None]:
    """Models built inside will run on `device`: on a GPU their frozen parts take the precision that their config names."""
    global _target
    before, _target = _target, torch.device(device)
    try:
        yield
    finally:
        _target = before


def frozen_dtype(name: str, key: str) -> torch.dtype:
    """The type that a precision key asks for, float32 unless the model is built for a GPU. ConfigError on an unknown name."""
    if name not in PRECISIONS:
        raise ConfigError(f"{key} is {name!r}; accepted: {', '.join(PRECISIONS)}")
    return torch.float32 if _target.type == "cpu" else PRECISIONS[name]


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """The context of what computes in the type of its tensors. The meta device knows no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
