"""Parameters by name, and the layers that are functions of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor


class Weights:
    """The parameters and buffers of a model below a prefix, by name."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        self.tensors, self.prefix = tensors, prefix

    def below(self, name: str) -> Weights:
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]

    def depth(self, name: str) -> int:
        """How many numbered parts stand below `name`."""
        start = f"{self.prefix}{name}."
        return 1 + max(int(key[len(start) :].split(".")[0]) for key in self.tensors if key.startswith(start))

    def has(self, name: str) -> bool:
        """Whether something stands below `name`."""
        return any(key.startswith(f"{self.prefix}{name}.") for key in self.tensors)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """x [..., in] -> [..., out]"""
        return F.linear(x, self[f"{name}.weight"], self.tensors.get(f"{self.prefix}{name}.bias"))

    def lora(self, x: Tensor, name: str, modality: str) -> Tensor:
        """A linear layer and its adapter of rank 8 with alpha 1."""
        a, b = self[f"{name}.lora_A.{modality}"], self[f"{name}.lora_B.{modality}"]
        return self.linear(x, name) + (x @ a.transpose(0, 1) @ b.transpose(0, 1)) * (1.0 / len(a))

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        """LayerNorm over the last dimension."""
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], eps)
