"""Groups of points of one cloud, by numpy on one CPU thread: farthest point sampling by fpsample, nearest neighbours by scipy's
k-d tree. Exact; of points at equal distances, such as copies of one point, which is taken is not defined.

Loader workers call it, and the point encoder on a CPU (lavis/models/encoders/point_ops.py).

Letters: N points, G picks (groups), K neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.floating]
Indices = NDArray[np.int64]

BUCKETED = 2048  # points from which on sampling in buckets is quicker
TREE_HEIGHT = 5  # of fpsample's tree: 2 ** 5 buckets were the quickest of 2 ** 3 to 2 ** 9, at 8,192 and at 40,000 points
LEAF = 32  # points in a leaf of the k-d tree


def farthest_points(cloud: Points, picks: int, *, start: int = 0) -> Indices:
    """The picks [G] of a cloud [N, 3], each farthest from those before; the first is point `start`.

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
    plain: Indices = fpsample.fps_sampling(cloud, picks, start_idx=start).astype(np.int64)
    return plain


def _place_in_tree(cloud: Points, point: int) -> int:
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


def nearest_points(cloud: Points, centres: Points, count: int) -> Indices:
    """The neighbours [G, K] of centres [G, 3] in a cloud [N, 3] of finite numbers, in no order.

    Differences are taken in float64: where two points are equally near up to the rounding of |a|^2 + |b|^2 - 2ab in float32,
    which is the published formula, the other one may be chosen.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(cloud, leafsize=LEAF, balanced_tree=False, compact_nodes=False)  # quick to build: it is asked once
    found: Any = tree.query(centres, count)[1]
    nearest: Indices = found.reshape(len(centres), count)
    return nearest


def point_groups(cloud: Points, groups: int, size: int, *, start: int = 0) -> NDArray[np.int32]:
    """[G, 1 + K]: the index of each group's centre in a cloud [N, 3 or more], then those of its members.

    ValueError where the cloud has fewer points than groups, or than a group has members.
    """
    if len(cloud) < max(groups, size):
        raise ValueError(f"a cloud has {len(cloud)} points, too few for {groups} groups of {size}")
    xyz = np.ascontiguousarray(cloud[:, :3])
    centres = farthest_points(xyz, groups, start=start)
    return np.concatenate([centres[:, None], nearest_points(xyz, xyz[centres], size)], axis=1).astype(np.int32)
