"""The Q-Former as a BERT with additive masks (LAVIS' Qformer.py with adapters on query and value).

Shapes: B rows, Q queries, L text tokens, T encoder tokens, D width, N heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.published.weights import Weights

KeyValue = tuple[Tensor, Tensor]
EPS = 1e-12
DROPOUT = 0.1


@dataclass
class Bert:
    """A Q-Former's weights, the adapters that are live, and whether dropout is."""

    w: Weights
    heads: int
    modality: str
    training: bool

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, DROPOUT, self.training)

    def split(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, N, S, D/N]"""
        return x.view(*x.shape[:2], self.heads, -1).permute(0, 2, 1, 3)

    def attend(self, w: Weights, x: Tensor, source: Tensor, mask: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """Attention of x [B, S, D] to source, its output block, and the keys and values."""
        key = self.split(w.linear(source, "self.key"))
        value = self.split(w.lora(source, "self.value", self.modality))
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        query = self.split(w.lora(x, "self.query", self.modality))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1]) + mask
        probabilities = self.drop(F.softmax(scores, dim=-1))
        mixed = torch.matmul(probabilities, value).permute(0, 2, 1, 3).contiguous().flatten(2)
        return w.norm(self.drop(w.linear(mixed, "output.dense")) + x, "output.LayerNorm", EPS), (key, value)

    def feed_forward(self, w: Weights, x: Tensor, kind: str) -> Tensor:
        wide = F.gelu(w.linear(x, f"intermediate{kind}.dense"))
        return w.norm(self.drop(w.linear(wide, f"output{kind}.dense")) + x, f"output{kind}.LayerNorm", EPS)

    def run(
        self,
        queries: Tensor | None,
        ids: Tensor | None,
        mask: Tensor,
        tokens: Tensor | None = None,
        past: list[KeyValue] | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Queries [B, Q, D] and text ids [B, L] through all layers, under a mask [B, L'] or [B, L, L'] of ones and zeros."""
        parts = [] if queries is None else [queries]
        if ids is not None:
            words = F.embedding(ids, self.w["bert.embeddings.word_embeddings.weight"])
            parts.append(words + self.w["bert.embeddings.position_embeddings.weight"][: ids.shape[1]])
        x = self.drop(self.w.norm(torch.cat(parts, dim=1), "bert.embeddings.LayerNorm", EPS))
        mask = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
        additive = (1.0 - mask.to(x.dtype)) * -10000.0
        seen = None if tokens is None else torch.zeros(len(tokens), 1, 1, tokens.shape[1])
        count = 0 if queries is None else queries.shape[1]
        cache = []
        for i in range(self.w.depth("bert.encoder.layer")):
            layer = self.w.below(f"bert.encoder.layer.{i}")
            x, kv = self.attend(layer.below("attention"), x, x, additive, None if past is None else past[i])
            cache.append(kv)
            outputs = []
            if count:
                q = x[:, :count]
                if layer.has("crossattention"):
                    assert tokens is not None and seen is not None
                    q = self.attend(layer.below("crossattention"), q, tokens, seen, None)[0]
                outputs.append(self.feed_forward(layer, q, "_query"))
            if x.shape[1] > count:
                outputs.append(self.feed_forward(layer, x[:, count:], ""))
            x = torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
        return x, cache

    def words(self, x: Tensor) -> Tensor:
        """x [B, L, D] -> logits [B, L, V]"""
        head = self.w.below("cls.predictions")
        x = head.norm(F.gelu(head.linear(x, "transform.dense")), "transform.LayerNorm", EPS)
        return F.linear(x, self.w["bert.embeddings.word_embeddings.weight"], head["bias"])
