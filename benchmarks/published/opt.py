"""OPT as transformers 4.31 computes it, with adapters on q_proj and v_proj.

Shapes: B rows, S new positions, S' all positions, H width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.published.weights import Weights

KeyValue = tuple[Tensor, Tensor]
EPS = 1e-5
DROPOUT = 0.1
OFFSET = 2  # of the learned positions


@dataclass
class Opt:
    """An OPT's weights (names below `model.decoder`), the adapters that are live, and whether dropout is."""

    w: Weights
    heads: int
    modality: str
    training: bool

    def embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.w["embed_tokens.weight"])

    def fold(self, x: Tensor) -> Tensor:
        """[B, S, H] -> [B * N, S, H / N]"""
        rows, length, width = x.shape
        x = x.view(rows, length, self.heads, width // self.heads).transpose(1, 2).contiguous()
        return x.view(rows * self.heads, length, -1)

    def attend(self, w: Weights, x: Tensor, mask: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        rows, length, width = x.shape
        query = self.fold(w.lora(x, "q_proj", self.modality) * (width // self.heads) ** -0.5)
        key, value = self.fold(w.linear(x, "k_proj")), self.fold(w.lora(x, "v_proj", self.modality))
        if past is not None:
            key, value = torch.cat([past[0], key], dim=1), torch.cat([past[1], value], dim=1)
        scores = torch.bmm(query, key.transpose(1, 2)).view(rows, self.heads, length, -1) + mask
        scores = torch.max(scores, torch.tensor(torch.finfo(scores.dtype).min)).view(rows * self.heads, length, -1)
        mixed = torch.bmm(F.softmax(scores, dim=-1), value).view(rows, self.heads, length, -1)
        return w.linear(mixed.transpose(1, 2).reshape(rows, length, width), "out_proj"), (key, value)

    def run(self, x: Tensor, mask: Tensor, past: list[KeyValue] | None = None) -> tuple[Tensor, list[KeyValue]]:
        """Input embeddings x [B, S, H] under a mask [B, S'] of ones and zeros -> logits [B, S, V] and the cache."""
        length, total = x.shape[1], mask.shape[1]
        places = (mask.cumsum(dim=1) * mask - 1)[:, total - length :] + OFFSET
        x = x + F.embedding(places, self.w["embed_positions.weight"])
        lowest = torch.finfo(x.dtype).min
        causal = torch.full((length, total), lowest).triu(total - length + 1)
        additive = causal + (1.0 - mask.to(x.dtype))[:, None, None, :] * lowest
        additive = additive.clamp(min=lowest)
        cache = []
        for i in range(self.w.depth("layers")):
            layer = self.w.below(f"layers.{i}")
            normed = layer.norm(x, "self_attn_layer_norm", EPS)
            out, kv = self.attend(layer.below("self_attn"), normed, additive, None if past is None else past[i])
            cache.append(kv)
            x = x + F.dropout(out, DROPOUT, self.training)
            flat = layer.norm(x.reshape(-1, x.shape[-1]), "final_layer_norm", EPS)
            flat = F.dropout(layer.linear(F.relu(layer.linear(flat, "fc1")), "fc2"), DROPOUT, self.training)
            x = x + flat.view(x.shape)
        return F.linear(self.w.norm(x, "final_layer_norm", EPS), self.w["embed_tokens.weight"]), cache
