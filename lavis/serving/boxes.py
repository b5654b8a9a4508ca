"""Boxes in space as people write them, and as the models read them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lavis.datasets.cloud_geometry import box_corners

ACCEPTED = "cx, cy, cz, dx, dy, dz, and perhaps a heading in radians, or 8 corners of x, y, z"


def region_corners(box: ArrayLike) -> NDArray[np.float32]:
    """A box of any accepted form -> its corners [8, 3] in the order, and with the places of the y and z extents changed, that
    trained checkpoints expect (`cloud_geometry.box_corners`).

    box: cx, cy, cz, dx, dy, dz in metres; with a heading (about z, in radians); or corners [8, 3] in metres in any order.
    A turned box becomes the axis-parallel hull of its footprint, as in training. ValueError names a box that is none of these.
    """
    return box_corners(axis_parallel(box))


def axis_parallel(box: ArrayLike) -> NDArray[np.float64]:
    """A box of any accepted form -> cx, cy, cz, dx, dy, dz of the axis-parallel box around it."""
    try:
        array = np.asarray(box, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"box {box!r} is not numbers; accepted: {ACCEPTED}") from error
    if array.shape not in ((6,), (7,), (8, 3)) or not np.isfinite(array).all():
        raise ValueError(f"box {array.tolist()} has shape {array.shape}; accepted: finite numbers, {ACCEPTED}")
    if array.shape == (8, 3):
        low, high = array.min(axis=0), array.max(axis=0)
        hull = np.concatenate([(low + high) / 2, high - low])
    else:
        if (array[3:6] <= 0).any():
            raise ValueError(f"box {array.tolist()} has no volume; accepted: dx, dy and dz above 0")
        cos, sin = (abs(turn(array[6] if len(array) == 7 else 0.0)) for turn in (math.cos, math.sin))
        dx, dy, dz = array[3:6]
        hull = np.array([*array[:3], dx * cos + dy * sin, dx * sin + dy * cos, dz])
    if (hull[3:] <= 0).any():
        raise ValueError(f"the corners {array.tolist()} enclose no volume")
    return hull
