"""Attention by the fastest of torch's ways for the processor at hand.

`scaled_dot_product_attention` is it everywhere but in one place: its backward pass on a CPU in low precision does not use the
matrix units (measured for 8 rows of 8 heads, 62 tokens: 13 ms against 4 ms of plain matrix products, forward and backward in
bfloat16 on one core with AMX).

Shapes: B rows, N heads, S queries, T keys, D width of a head.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def plain_is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether matrix products beat the fused attention: where a gradient is wanted in low precision on a CPU."""
    return device.type == "cpu" and dtype != torch.float32 and torch.is_grad_enabled()


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, dropout: float = 0.0) -> Tensor:
    """query [B, N, S, D], key and value [B, N, T, D], mask bool broadcastable to [B, N, S, T] (True: may look) -> [B, N, S, D].

    Under autocast all three are in its type.
    """
    if not plain_is_faster(query.device, query.dtype):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = F.dropout(scores.float().softmax(dim=-1).to(value.dtype), dropout)
    return weights @ value


def attention_of_libraries(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """The context in which a model of a library, computing in `dtype`, attends as fast as it can."""
    return sdpa_kernel(SDPBackend.MATH) if plain_is_faster(device, dtype) else contextlib.nullcontext()
