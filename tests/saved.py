"""Counts what autograd keeps for backward."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import nn


class Saved:
    """Inside, `bytes` grows by every storage that autograd keeps and that holds no parameter."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {param.untyped_storage().data_ptr() for param in model.parameters()}
        self.held: dict[int, torch.UntypedStorage] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.held[storage.data_ptr()] = storage
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.held.values())

    def __enter__(self) -> Saved:
        self.hooks.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.hooks.__exit__(kind, error, trace)
