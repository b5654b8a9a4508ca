"""In which type frozen weights are held: low precision on a GPU, float32 on a CPU, whatever the YAML says, unless the run asks
for autocast there.

Under autocast a frozen weight in float32 is converted at every use (it is kept only for weights that have a gradient). So what is
frozen is held in autocast's type to begin with, where that changes no bit or where its precision key says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lavis.common.errors import ConfigError

PRECISIONS = {
    "fp32": torch.float32, "float": torch.float32, "float32": torch.float32,
    "fp16": torch.float16, "float16": torch.float16,
    "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
}  # fmt: skip

_target = torch.device("cpu")
_autocast = torch.float32
_on_meta: torch.dtype | None = None


@contextmanager
def building_for(device: torch.device | str, *, autocast: torch.dtype = torch.float32) -> Iterator[None]:
    """Models built inside will run on `device`, under autocast to `autocast` (float32: without): on a GPU their frozen parts take
    the precision that their config names, on a CPU that of autocast where their config names a low one."""
    global _target, _autocast
    before = _target, _autocast
    _target, _autocast = torch.device(device), autocast
    try:
        yield
    finally:
        _target, _autocast = before


def built_for() -> tuple[torch.device, torch.dtype]:
    """The device that models built here are for, and the type of its autocast (float32: without)."""
    return _target, _autocast


def frozen_dtype(name: str, key: str) -> torch.dtype:
    """The type that a precision key asks for, where the model is built for a GPU; on a CPU autocast's for a low one, which is
    float32 without autocast. ConfigError on an unknown name."""
    if name not in PRECISIONS:
        raise ConfigError(f"{key} is {name!r}; accepted: {', '.join(PRECISIONS)}")
    wanted = PRECISIONS[name]
    return _autocast if _target.type == "cpu" and wanted != torch.float32 else wanted


def hold_frozen_linear(*modules: nn.Module) -> None:
    """Hold the weights of frozen linear layers in the type of the autocast that is built for: the same bits as autocast's own
    conversion, without doing it at every use. Nothing without autocast."""
    if _autocast == torch.float32:
        return
    for layer in (layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)):
        own = [param for param in (layer.weight, layer.bias) if param is not None]
        if not any(param.requires_grad for param in own):
            for param in own:
                param.data = param.data.to(_autocast)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """The context of what computes in the type of its tensors. The meta device knows no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def autocast_of(device: torch.device) -> torch.dtype | None:
    """The type of the autocast that is on, None where it is off. The meta device has what `on_meta` says."""
    if device.type == "meta":
        return _on_meta
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


@contextmanager
def on_meta(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, the meta device counts as being under autocast to `dtype`."""
    global _on_meta
    before, _on_meta = _on_meta, dtype
    try:
        yield
    finally:
        _on_meta = before


def lowered(x: Tensor) -> Tensor:
    """What autocast's linear layers would make of x: converted once, where several layers read it. x without autocast."""
    dtype = autocast_of(x.device)
    return x if dtype is None else x.to(dtype)
