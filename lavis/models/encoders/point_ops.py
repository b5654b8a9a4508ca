"""Point operations of Point-BERT: farthest point sampling and grouping of nearest neighbours.

On a CPU each cloud goes to a thread (`lavis.processors.point_groups`). On CUDA sampling is a loop over picks that never waits for
the host, and all distances are one product (knn_cuda groups where it can be imported). Each equals a brute-force statement
(tests/models/test_point_ops.py). Of points at equal distances, such as copies of one point, which is picked is not defined.

Shapes: B clouds, N points, G picks (groups), K neighbours, C channels (xyz first).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavis.common.precision import without_autocast
from lavis.processors.point_groups import farthest_points, nearest_points

Array = NDArray[Any]

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
    def of_one(cloud: Array, first: int) -> Array:
        return farthest_points(cloud, picks, start=first)

    return torch.from_numpy(np.stack(_each_cloud(of_one, xyz.contiguous().numpy(), start.tolist())))


def _each_cloud(function: Callable[..., Array], *clouds: Iterable[Any]) -> list[Array]:
    """function(cloud, ...) of every cloud, on as many threads as torch has (one in a loader worker)."""
    if torch.get_num_threads() == 1:
        return [function(*values) for values in zip(*clouds, strict=True)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(function, *clouds))


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
    """Indices [B, G, K] of the points nearest to every centre, in no order: points [B, N, 3], centres [B, G, 3].

    ValueError with fewer points than neighbours.
    """
    if points.shape[1] < count:
        raise ValueError(f"a cloud has {points.shape[1]} points, fewer than the {count} neighbours of a group")
    points, centres = points.detach().float(), centres.detach().float()
    if points.device.type == "cpu" and bool(points.isfinite().all()):
        rows = _each_cloud(lambda cloud, of: nearest_points(cloud, of, count), points.numpy(), centres.numpy())
        return torch.from_numpy(np.stack(rows))
    if points.is_cuda and importlib.util.find_spec("knn_cuda") is not None:
        from knn_cuda import KNN

        return KNN(k=count, transpose_mode=True)(points, centres)[1]
    return _neighbours_by_matrix(points, centres, count)


def _neighbours_by_matrix(points: Tensor, centres: Tensor, count: int) -> Tensor:
    """As `nearest_neighbours`, by all distances |a|^2 + |b|^2 - 2ab, as published."""
    squares = centres.square().sum(-1, keepdim=True) + points.square().sum(-1).unsqueeze(1)
    with without_autocast(points.device):
        distance = torch.baddbmm(squares, centres, points.transpose(1, 2), alpha=-2)
    return distance.topk(count, dim=-1, largest=False, sorted=False).indices


def group_points(
    points: Tensor, groups: int, size: int, *, start: Tensor | None = None, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Groups [B, G, K, C] around farthest points, xyz relative to the group's centre (not scaled), and the centres [B, G, 3].

    `start` [B]: the point at which sampling begins (None: 0). `index` [B, G, 1 + K]: what `lavis.processors.point_groups` found
    for each cloud, in place of sampling and grouping here. ValueError where it is of another shape.
    """
    rows = torch.arange(len(points), device=points.device)
    if index is None:
        centres = points[rows[:, None], farthest_point_sample(points, groups, start=start), :3]
        members = nearest_neighbours(points[..., :3], centres, size)
    else:
        wanted = (len(points), groups, 1 + size)
        if index.shape != wanted:
            raise ValueError(f"point_groups has shape {tuple(index.shape)}; this encoder was built for {wanted}")
        index = index.to(points.device, torch.long)
        centres, members = points[rows[:, None], index[..., 0], :3], index[..., 1:]
    grouped = points[rows[:, None, None], members]
    relative = grouped[..., :3] - centres.unsqueeze(2)
    return torch.cat([relative, grouped[..., 3:]], dim=-1), centres
