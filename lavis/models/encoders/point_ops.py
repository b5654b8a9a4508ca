"""Point operations of Point-BERT: farthest point sampling and grouping of nearest neighbours.

On a CPU fpsample samples and scipy's k-d tree groups, a cloud per thread. On CUDA sampling is a loop over picks that never waits
for the host, and all distances are one product (knn_cuda groups where it can be imported). Each equals a brute-force statement
(tests/models/test_point_ops.py). Of points at equal distances, such as copies of one point, which is picked is not defined.

Shapes: B clouds, N points, G picks (groups), K neighbours, C channels (xyz first).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavis.common.precision import without_autocast

Array = NDArray[Any]

FAR = 1e10  # published start of every point's distance to the picks
BUCKETED = 2048  # points from which on sampling in buckets is quicker
TREE_HEIGHT = 5  # of fpsample's tree: 2 ** 5 buckets were the quickest of 2 ** 3 to 2 ** 9, at 8,192 and at 40,000 points
LEAF = 32  # points in a leaf of the k-d tree


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
    rows = _each_cloud(partial(_picks_of, picks=picks), xyz.contiguous().numpy(), start.tolist())
    return torch.from_numpy(np.stack(rows))


def _each_cloud(function: Callable[..., Array], *clouds: Iterable[Any]) -> list[Array]:
    """function(cloud, ...) of every cloud, on as many threads as torch has (one in a loader worker)."""
    if torch.get_num_threads() == 1:
        return [function(*values) for values in zip(*clouds, strict=True)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(function, *clouds))


def _picks_of(cloud: Array, start: int, *, picks: int) -> Array:
    """The picks [G] of one cloud [N, 3].

    fpsample's buckets leave out the points that a pick cannot concern. They number the start point in the order of their
    tree: so the start point changes places with the one that lies where its bucket will be, and building leaves it there.
    """
    import fpsample

    if len(cloud) >= BUCKETED and np.isfinite(cloud).all():
        place = _place_in_tree(cloud, start)
        moved = cloud.copy()
        moved[[start, place]] = cloud[[place, start]]
        found = fpsample.bucket_fps_kdline_sampling(moved, picks, TREE_HEIGHT, start_idx=place).astype(np.int64)
        found = np.where(found == place, start, np.where(found == start, place, found))
        if found[0] == start:
            return found
    return fpsample.fps_sampling(cloud, picks, start_idx=start).astype(np.int64)


def _place_in_tree(cloud: Array, point: int) -> int:
    """The middle of the range that the bucket of a point takes in fpsample's order of a cloud [N, 3].

    A node of its tree is cut at the mean of its longest axis, what lies below goes left; a point that lies in the range of
    its side already is not moved. From the middle of the range other rounding of a mean makes no difference.
    """
    columns = np.ascontiguousarray(cloud.T)
    here, first, last = columns[:, point], 0, len(cloud)
    for _ in range(TREE_HEIGHT):
        axis = int((columns.max(axis=1) - columns.min(axis=1)).argmax())
        cut = columns[axis].mean()
        side = columns[axis] < cut
        below = int(np.count_nonzero(side))
        if here[axis] < cut:
            last = first + below
        else:
            side, first = ~side, first + below
        columns = columns.compress(side, axis=1)
    return (first + last) // 2


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
        rows = _each_cloud(partial(_neighbours_of, count=count), points.numpy(), centres.numpy())
        return torch.from_numpy(np.stack(rows))
    if points.is_cuda and importlib.util.find_spec("knn_cuda") is not None:
        from knn_cuda import KNN

        return KNN(k=count, transpose_mode=True)(points, centres)[1]
    return _neighbours_by_matrix(points, centres, count)


def _neighbours_of(cloud: Array, centres: Array, *, count: int) -> Array:
    """The neighbours [G, K] of centres [G, 3] in one cloud [N, 3], by a k-d tree. It takes differences in float64: where two
    points are equally near up to the rounding of |a|^2 + |b|^2 - 2ab in float32, it may choose the other one."""
    from scipy.spatial import cKDTree

    tree = cKDTree(cloud, leafsize=LEAF, balanced_tree=False, compact_nodes=False)  # quick to build: it is asked once
    found: Array = tree.query(centres, count)[1]
    return found.reshape(len(centres), count)


def _neighbours_by_matrix(points: Tensor, centres: Tensor, count: int) -> Tensor:
    """As `nearest_neighbours`, by all distances |a|^2 + |b|^2 - 2ab, as published."""
    squares = centres.square().sum(-1, keepdim=True) + points.square().sum(-1).unsqueeze(1)
    with without_autocast(points.device):
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
