"""The EVA-ViT and the blocks of Point-BERT with explicit attention (LAVIS' eva_vit.py, Point-BERT's Transformer).

Shapes: B rows, T tokens, C width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.published.weights import Weights


def attention(w: Weights, x: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """x [B, T, C] -> [B, T, C]. The EVA-ViT, which has a bias, scales its queries; Point-BERT, which has none, all scores."""
    rows, tokens, width = x.shape
    qkv = F.linear(x, w["qkv.weight"], bias).reshape(rows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    scale = (width // heads) ** -0.5
    scores = (q @ k.transpose(-2, -1)) * scale if bias is None else (q * scale) @ k.transpose(-2, -1)
    mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(rows, tokens, width)
    return w.linear(mixed, "proj")


def block(w: Weights, x: Tensor, bias: Tensor | None, heads: int, eps: float) -> Tensor:
    """A pre-norm block."""
    x = x + attention(w.below("attn"), w.norm(x, "norm1", eps), bias, heads)
    return x + w.linear(F.gelu(w.linear(w.norm(x, "norm2", eps), "mlp.fc1")), "mlp.fc2")


def eva(w: Weights, image: Tensor, heads: int) -> Tensor:
    """image [B, 3, S, S] -> tokens [B, T, C]"""
    patch = w["patch_embed.proj.weight"]
    x = F.conv2d(image, patch, w["patch_embed.proj.bias"], stride=patch.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1) + w["pos_embed"]
    for i in range(w.depth("blocks")):
        part = w.below(f"blocks.{i}")
        q, v = part["attn.q_bias"], part["attn.v_bias"]
        x = block(part, x, torch.cat([q, torch.zeros_like(v), v]), heads, 1e-6)
    return x
