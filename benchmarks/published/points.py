"""Point-BERT as released: sampling by a loop in Python, all distances and topk, convolutions over groups.

Shapes: B clouds, N points, G groups of K points, C channels, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.published.vit import block
from benchmarks.published.weights import Weights


def farthest_points(xyz: Tensor, picks: int, start: Tensor) -> Tensor:
    """Indices [B, picks] of points of xyz [B, N, 3], each farthest from those before; the first is `start` [B]."""
    clouds, size, _ = xyz.shape
    chosen = torch.zeros(clouds, picks, dtype=torch.long)
    distance = torch.ones(clouds, size) * 1e10
    farthest, rows = start, torch.arange(clouds)
    for i in range(picks):
        chosen[:, i] = farthest
        centre = xyz[rows, farthest, :].view(clouds, 1, 3)
        found = torch.sum((xyz - centre) ** 2, -1)
        distance = torch.min(distance, found)
        farthest = torch.max(distance, -1)[1]
    return chosen


def square_distance(a: Tensor, b: Tensor) -> Tensor:
    """|a|^2 + |b|^2 - 2ab of [B, G, 3] and [B, N, 3] -> [B, G, N]"""
    found = -2 * torch.matmul(a, b.permute(0, 2, 1))
    found += torch.sum(a**2, -1).view(*a.shape[:2], 1)
    found += torch.sum(b**2, -1).view(len(b), 1, -1)
    return found


def group(xyz: Tensor, groups: int, size: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """Groups [B, G, K, 3] relative to their centres [B, G, 3]."""
    clouds, count, _ = xyz.shape
    rows = torch.arange(clouds)
    centres = xyz[rows[:, None], farthest_points(xyz, groups, start)]
    index = torch.topk(square_distance(centres, xyz), size, dim=-1, largest=False, sorted=False)[1]
    flat = (index + rows.view(-1, 1, 1) * count).view(-1)
    found = xyz.view(clouds * count, -1)[flat].view(clouds, groups, size, 3).contiguous()
    return found - centres.unsqueeze(2), centres


def mini_pointnet(w: Weights, groups: Tensor) -> Tensor:
    """[B, G, K, C] -> [B, G, D]: two pairs of convolutions, the group's maximum copied beside each of its points."""
    clouds, count, size, channels = groups.shape

    def pair(x: Tensor, name: str) -> Tensor:
        part = w.below(name)
        x = F.conv1d(x, part["0.weight"], part["0.bias"])
        x = F.batch_norm(x, part["1.running_mean"], part["1.running_var"], part["1.weight"], part["1.bias"])
        return F.conv1d(F.relu(x, inplace=True), part["3.weight"], part["3.bias"])

    x = pair(groups.reshape(clouds * count, size, channels).transpose(2, 1), "first_conv")
    whole = torch.max(x, dim=2, keepdim=True)[0]
    x = pair(torch.cat([whole.expand(-1, -1, size), x], dim=1), "second_conv")
    return torch.max(x, dim=2, keepdim=False)[0].reshape(clouds, count, -1)


def point_bert(w: Weights, cloud: Tensor, groups: int, size: int, heads: int, start: Tensor) -> Tensor:
    """cloud [B, N, 3] -> tokens [B, 1 + G, D]; positions are added before every block."""
    neighbours, centres = group(cloud, groups, size, start)
    x = w.linear(mini_pointnet(w.below("encoder"), neighbours), "reduce_dim")
    places = w.linear(F.gelu(w.linear(centres, "pos_embed.0")), "pos_embed.2")
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1)
    places = torch.cat([w["cls_pos"].expand(len(x), -1, -1), places], dim=1)
    for i in range(w.depth("blocks.blocks")):
        x = block(w.below(f"blocks.blocks.{i}"), x + places, None, heads, 1e-5)
    return w.norm(x, "norm", 1e-5)
