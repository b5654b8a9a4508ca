"""Frozen linear layers with their weights in the order in which the CPU's matrix units read them.

A product of few rows (the beams of a decode step) takes as long as its weights take to be read, and one in low precision with a
bias is two operations in torch. oneDNN's linear layer over weights that it has put into its own order once is faster for both.
Measured against `F.linear` on two cores with AMX, weights from main memory, layers 384 to 2048 wide: in float32 1.0 to 1.8 times
for 40 rows and about the same from 256 on; in bfloat16 1.4 to 1.9 times for 40 rows, mostly 1.1 to 2 times for more (a few
shapes were slower). The order costs a second copy of the weights, so it is used up to a bound (`model.packed_gb`).

The operations are among those that torch.compile itself uses for linear layers; a torch without them computes as ever.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis.common.errors import ConfigError
from lavis.common.precision import autocast_of

logger = logging.getLogger(__name__)

FEWEST_ROWS = 4  # F.linear was faster for 1 row in float32, slower or as fast for 5
MOST_ROWS = 256  # from here on F.linear is about as fast in float32
USUAL_ROWS = 64  # what the order is chosen for; others read it as well


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch has the operations, and this processor computes in `dtype`."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Packed:
    """A weight [out, in] in oneDNN's order, made at the first use and again after the weight was changed in place or replaced.

    A change through `.data.copy_()` cannot be seen: use `copy_` under `no_grad`, as load_state_dict does. Copies start empty.
    """

    def __init__(self) -> None:
        self._made: tuple[Tensor, Tensor, int, Tensor] | None = None

    def of(self, weight: Tensor) -> Tensor:
        if self._made is not None:
            parameter, storage, version, packed = self._made
            same_memory = storage.data_ptr() == weight.data_ptr() and storage.dtype == weight.dtype
            if parameter is weight and same_memory and version == weight._version:
                return packed
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), USUAL_ROWS)
        self._made = weight, weight.detach(), weight._version, packed  # kept: nothing else takes their place in memory
        return packed

    def __reduce__(self) -> tuple[type[Packed], tuple[()]]:
        return Packed, ()


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed | None) -> Tensor:
    """`F.linear` of frozen weights, x [..., in] -> [..., out]; through `packed` where no gradient is wanted and it is faster."""
    if packed is None or not _is_faster(x, weight):
        return F.linear(x, weight, bias)
    if (low := autocast_of(x.device)) is not None:
        x = x.to(low)
    if any(part is not None and part.dtype != weight.dtype for part in (x, bias)):
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, packed.of(weight), bias, "none", [], "")


def _is_faster(x: Tensor, weight: Tensor) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not x.device.type == weight.device.type == "cpu":
        return False
    if weight.is_inference() or not can_pack(weight.dtype):  # changes of an inference tensor are not counted
        return False
    rows = x.numel() // max(x.shape[-1], 1)
    return rows >= FEWEST_ROWS and (rows < MOST_ROWS or weight.dtype != torch.float32)


class PackedLinear(nn.Linear):
    """A linear layer whose weights do not learn. It adopts the weight and bias of another one."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)  # nothing of nn.Linear is built
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.packed: Packed | None = Packed()
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return frozen_linear(x, self.weight, self.bias, self.packed)


def check_limit(limit_gb: Any) -> None:
    """ConfigError for a `model.packed_gb` that is no bound."""
    if isinstance(limit_gb, bool) or not isinstance(limit_gb, int | float) or not limit_gb >= 0:
        raise ConfigError(f"model.packed_gb is {limit_gb!r}; accepted: numbers from 0 (0: no second copy)")


def pack_frozen_linear(modules: Iterable[nn.Module], *, dtype: torch.dtype, limit_gb: float) -> int:
    """Let the frozen linear layers below `modules` that hold their weights in `dtype`, in which they are to compute, use the
    order, one after the other up to `limit_gb` of weights (0: none).

    Plain `nn.Linear` are replaced in their parents, keys stay; layers with an attribute `packed` get a `Packed`. Returns the
    bytes that the second copies take when all of them have been called.
    """
    total, left_out = 0, 0
    places = [place for module in modules for parent in module.modules() for place in _linear_children(parent)]
    for parent, name, layer in places:
        weight = layer.weight
        if weight.requires_grad or weight.device.type != "cpu" or weight.dtype != dtype or not can_pack(dtype):
            continue
        if total + weight.nbytes > limit_gb * 1e9:
            left_out += 1
            continue
        if hasattr(layer, "packed"):
            layer.packed = Packed()
        else:
            setattr(parent, name, PackedLinear(layer))
        total += weight.nbytes
    if left_out and limit_gb:
        logger.info("%d frozen linear layers beyond model.packed_gb=%g keep one copy of their weights", left_out, limit_gb)
    return total


def _linear_children(parent: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Of plain linear layers, and of those that can be packed, the parent, name and layer."""
    children = [(parent, name, child) for name, child in parent.named_children() if isinstance(child, nn.Linear)]
    return [place for place in children if type(place[2]) is nn.Linear or hasattr(place[2], "packed")]


def unpack(modules: Iterable[nn.Module]) -> None:
    """Make every layer below `modules` compute as ever: their weights are about to be spread over processes."""
    for layer in (layer for module in modules for layer in module.modules()):
        if isinstance(getattr(layer, "packed", None), Packed):
            layer.packed = None  # type: ignore[assignment]
