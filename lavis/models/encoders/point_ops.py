"""Point operations of Point-BERT: farthest point sampling and grouping of nearest neighbours.

On a CPU fpsample does the sampling (its plain exact version: its bucketed ones number the start point otherwise). On CUDA it is
a loop over picks that never waits for the host, and knn_cuda groups where it can be imported. Each equals a brute-force statement
(tests/models/test_point_ops.py).

Shapes: B clouds, N points, G picks (groups), K neighbours, C channels (xyz first).
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

FAR = 1e10  # published start of every point's distance to the picks


def farthest_point_sample(points: Tensor, picks: int, *, start: Tensor | None = None) -> Tensor:
    """Indices [B, G] of picks that are each farthest from those before, by xyz of points [B, N, C].

    The first pick is point `start` [B] (None: 0). ValueError with fewer points than picks.
    """
    clouds, size = points.shape[:2]
    if size < picks:
        raise ValueError(f"a cloud has {size} points, fewer than the {picks} groups that the encoder makes of it")
    start = points.new_zeros(clouds, dtype=torch.long) if start is None else start
    xyz = points[..., :3].detach().float()
    return _sample_cpu(xyz, picks, start) if points.device.type == "cpu" else _sample_loop(xyz, picks, start)


def _sample_cpu(xyz: Tensor, picks: int, start: Tensor) -> Tensor:
    import fpsample

    pairs = zip(xyz.contiguous().numpy(), start.tolist(), strict=True)
    rows = [fpsample.fps_sampling(cloud, picks, start_idx=first) for cloud, first in pairs]
    return torch.stack([torch.from_numpy(row.astype("int64")) for row in rows])


def _sample_loop(xyz: Tensor, picks: int, start: Tensor) -> Tensor:
    rows = torch.arange(len(xyz), device=xyz.device)
    chosen = torch.empty(len(xyz), picks, dtype=torch.long, device=xyz.device)
    nearest = torch.full(xyz.shape[:2], FAR, device=xyz.device)
    pick = start
    for i in range(picks):
        chosen[:, i] = pick
        distance = (xyz - xyz[rows, pick].unsqueeze(1)).square().sum(dim=-1)
        nearest = torch.minimum(nearest, distance)
        pick = nearest.argmax(dim=-1)
    return chosen


def nearest_neighbours(points: Tensor, centres: Tensor, count: int) -> Tensor:
    """Indices [B, G, K] of the points nearest to every centre: points [B, N, 3], centres [B, G, 3].

    Distances are |a|^2 + |b|^2 - 2ab, as published. ValueError with fewer points than neighbours.
    """
    if points.shape[1] < count:
        raise ValueError(f"a cloud has {points.shape[1]} points, fewer than the {count} neighbours of a group")
    if points.is_cuda and importlib.util.find_spec("knn_cuda") is not None:
        from knn_cuda import KNN

        return KNN(k=count, transpose_mode=True)(points.float(), centres.float())[1]
    points, centres = points.float(), centres.float()
    squares = centres.square().sum(-1, keepdim=True) + points.square().sum(-1).unsqueeze(1)
    distance = torch.baddbmm(squares, centres, points.transpose(1, 2), alpha=-2)
    return distance.topk(count, dim=-1, largest=False, sorted=False).indices


def group_points(points: Tensor, groups: int, size: int, *, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Groups [B, G, K, C] around farthest points, xyz relative to the group's centre (not scaled), and the centres [B, G, 3].

    `start` [B]: the point at which sampling begins (None: 0).
    """
    rows = torch.arange(len(points), device=points.device)
    centres = points[rows[:, None], farthest_point_sample(points, groups, start=start), :3]
    index = nearest_neighbours(points[..., :3], centres, size)
    grouped = points[rows[:, None, None], index]
    relative = grouped[..., :3] - centres.unsqueeze(2)
    return torch.cat([relative, grouped[..., 3:]], dim=-1), centres
