"""Pure functions of point clouds and of boxes in them.

A cloud is an array [P, C] of x, y, z and what else its points have, such as colours; only x, y, z are moved. A box
is 6 numbers, its centre and its extents along x, y and z (cx, cy, cz, dx, dy, dz), in the unit of the cloud.

Formulas and the order of the draws follow RegionBLIP (arXiv 2308.02299, code mightyzau/RegionBLIP): objects are
normalised and augmented as in ULIP, scenes sampled and augmented as in ScanRefer. Every draw comes from a legacy
numpy RandomState, whose streams never change.

Letters: P points of a file, N points of a sample, C columns.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Cloud = NDArray[np.floating]

MAX_DROPOUT = 0.875  # largest share of an object's points that augmentation drops
SCALES = (0.8, 1.25)
SHIFT = 0.1  # largest shift along an axis
TILT, MAX_TILT = 0.06, 0.18  # standard deviation and bound of the small rotations, in radians
TURN = math.pi / 36  # largest rotation of a scene about z: 5 degrees

# Signs of the half extents at the 8 corners, in the order that trained checkpoints expect
_CORNER_X = (1, 1, -1, -1, 1, 1, -1, -1)
_CORNER_Y = (1, 1, 1, 1, -1, -1, -1, -1)
_CORNER_Z = (1, -1, -1, 1, 1, -1, -1, 1)


def as_cloud(points: ArrayLike, *, use_color: bool = False) -> NDArray[np.float32]:
    """The first 3 columns of points [P, C], 6 with colour, as float32.

    ValueError, whose words before the colon name the defect: another shape, no colour where it is asked for, NaN or
    infinity, or one point repeated.
    """
    array = np.asarray(points)
    if array.ndim != 2 or array.dtype.kind not in "iuf" or array.shape[1] < 3 or not len(array):
        raise ValueError(f"malformed point cloud: {array.dtype} {array.shape} is not [P, 3] numbers")
    if use_color and array.shape[1] < 6:
        raise ValueError(f"no colour: a cloud of shape {array.shape} has no columns 3, 4 and 5")
    cloud = array[:, : 6 if use_color else 3].astype(np.float32)
    bad = int((~np.isfinite(cloud)).any(axis=1).sum())
    if bad:
        raise ValueError(f"not finite: {bad} of {len(cloud)} points have NaN or infinity")
    if (cloud[:, :3] == cloud[0, :3]).all():
        raise ValueError(f"one repeated point: all {len(cloud)} points are {cloud[0, :3].tolist()}")
    return cloud


def shuffled(points: Cloud, count: int, rng: np.random.RandomState) -> Cloud:
    """`count` of the points [P, C] in random order: [N, C]. ValueError where there are fewer.

    Published for P = count; of larger files the published code takes the first `count` points alone.
    """
    if len(points) < count:
        raise ValueError(f"too few points: {len(points)}, a sample takes {count}")
    order = np.arange(len(points))
    rng.shuffle(order)
    return points[order[:count]]


def sampled(points: Cloud, count: int, rng: np.random.RandomState) -> Cloud:
    """`count` points drawn from [P, C], with repeats only where P is smaller: [N, C]."""
    return points[rng.choice(len(points), count, replace=len(points) < count)]


def unit_sphere(points: Cloud) -> Cloud:
    """x, y, z centred on their mean and divided by the largest distance from it. ValueError where all points are one."""
    xyz = points[:, :3] - points[:, :3].mean(axis=0)
    radius = np.sqrt((xyz**2).sum(axis=1)).max()
    if not radius > 0:
        raise ValueError(f"one repeated point: all {len(points)} points are {points[0, :3].tolist()}")
    return np.concatenate([xyz / radius, points[:, 3:]], axis=1)


def augment_object(points: Cloud, rng: np.random.RandomState) -> Cloud:
    """Drop, scale, shift, tilt and turn an object (y is up), in this order of draws. Dropped points become copies of
    the first, so that N stays."""
    points = points.copy()
    ratio = rng.random_sample() * MAX_DROPOUT
    points[rng.random_sample(len(points)) <= ratio] = points[0]
    xyz = points[:, :3] * rng.uniform(*SCALES, 1) + rng.uniform(-SHIFT, SHIFT, (1, 3))
    tilts = np.clip(TILT * rng.randn(3), -MAX_TILT, MAX_TILT)
    xyz = xyz @ (rotation("z", tilts[2]) @ rotation("y", tilts[1]) @ rotation("x", tilts[0]))
    xyz = xyz @ rotation("y", rng.uniform() * 2 * math.pi)
    return np.concatenate([xyz, points[:, 3:]], axis=1)


def augment_scene(points: Cloud, box: NDArray[np.float64], rng: np.random.RandomState) -> tuple[Cloud, NDArray[np.float64]]:
    """Mirror x, mirror y, each every second time, and turn a scene about z (up) by 5 degrees at most, with a box of it.

    The box becomes the axis-parallel hull of its turned footprint.
    """
    mirror = np.array([-1.0 if rng.random_sample() > 0.5 else 1.0 for _ in "xy"] + [1.0])
    angle = rng.random_sample() * 2 * TURN - TURN
    turn = rotation("z", angle)
    xyz = (points[:, :3] * mirror) @ turn.T
    centre, (dx, dy, dz) = turn @ (box[:3] * mirror), box[3:]
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    hull = np.array([*centre, dx * cos + dy * sin, dx * sin + dy * cos, dz])
    return np.concatenate([xyz, points[:, 3:]], axis=1), hull


def rotation(axis: str, angle: float) -> NDArray[np.float64]:
    """The matrix [3, 3] that turns a column vector about `axis`, x, y or z, by `angle` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[[first, second], [first, second]] = cos
    matrix[first, second], matrix[second, first] = -sin, sin
    return matrix


def box_corners(box: ArrayLike) -> NDArray[np.float32]:
    """A box (cx, cy, cz, dx, dy, dz) -> its corners [8, 3] float32 as the models read them.

    As published, the extents of y and z change places: corners lie dz / 2 from the centre along y and dy / 2 along
    z. Trained checkpoints expect exactly that. ValueError unless the box is 6 finite numbers with a volume.
    """
    array = np.asarray(box, dtype=np.float64)
    if array.shape != (6,) or not np.isfinite(array).all() or (array[3:] <= 0).any():
        raise ValueError(f"empty or malformed box: {array.tolist()} is not cx, cy, cz, dx, dy, dz with a volume")
    dx, dy, dz = array[3:]
    offsets = np.array([_CORNER_X, _CORNER_Y, _CORNER_Z]).T * np.array([dx, dz, dy]) / 2
    return (array[:3] + offsets).astype(np.float32)


def corners_of(box: ArrayLike) -> NDArray[np.float32]:
    """A box (cx, cy, cz, dx, dy, dz) -> its corners [8, 3] where they really are, in the order of `box_corners`. ValueError as
    there."""
    array = np.asarray(box, dtype=np.float64)
    return box_corners(array[[0, 1, 2, 3, 5, 4]] if array.shape == (6,) else array)


def box_of(corners: ArrayLike) -> NDArray[np.float64]:
    """Corners [8, 3] in any order -> their box (cx, cy, cz, dx, dy, dz). ValueError unless they are the corners of a box that is
    parallel to the axes and has a volume."""
    array = np.asarray(corners, dtype=np.float64)
    if array.shape != (8, 3) or not np.isfinite(array).all():
        raise ValueError(f"malformed corners: {array.shape} is not [8, 3] finite numbers")
    low, high = array.min(axis=0), array.max(axis=0)
    is_high = array > (low + high) / 2
    off = np.abs(array - np.where(is_high, high, low)).max()
    if len(np.unique(is_high, axis=0)) < 8 or off > 1e-3 * (high - low).max():
        raise ValueError(f"corners {array.tolist()} are not the 8 of a box that is parallel to the axes")
    return np.concatenate([(low + high) / 2, high - low])


def with_colours(points: ArrayLike) -> NDArray[np.float32]:
    """The first 6 columns of points [P, C] with colours in 0..1, whether they were that or 0..255; the first 3 where there are no
    colours: no such columns, numbers beyond those, or one for all points. ValueError as of `as_cloud`."""
    array = np.asarray(points)
    if array.ndim != 2 or array.shape[1] < 6 or array.dtype.kind not in "iuf":
        return as_cloud(points)
    colours = array[:, 3:6]
    if not ((colours >= 0) & (colours <= 255)).all() or (colours == colours[0]).all():
        return as_cloud(points)
    cloud = as_cloud(points, use_color=True)
    if colours.max() > 1:
        cloud[:, 3:] /= 255
    return cloud


def object_region_id(scene_id: str, object_id: int | str) -> str:
    """The published id of an object in a scene: `<scene_id>_<object_id>`."""
    return f"{scene_id}_{object_id}"
