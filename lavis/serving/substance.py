"""Whether a cloud, or a box in it, holds anything that a caption could be of.

A model captions whatever it is given, so an empty box or a handful of points would get a caption that is about
nothing. Letter: N points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lavis.serving.boxes import axis_parallel

LEAST_POINTS = 32  # of a cloud: one group of the published Point-BERT. With fewer, every group is the whole cloud.
ROUNDING = 1e-5  # share of the largest coordinate by which float32 may move a point out of its box


def check_cloud(points: ArrayLike) -> None:
    """ValueError unless a cloud [N, 3 or more] has at least LEAST_POINTS different places."""
    xyz = np.asarray(points)[:, :3]
    places = 0
    for some in (xyz[:4096], xyz):  # the first points alone say it of most clouds, and quickly
        places = len(np.unique(some, axis=0))
        if places >= LEAST_POINTS:
            return
    raise ValueError(f"the cloud has points at {places} places, too few to show anything; accepted: at least {LEAST_POINTS}")


def check_boxes(points: ArrayLike, boxes: Sequence[ArrayLike]) -> None:
    """ValueError for the first box that holds no point of the cloud [N, 3 or more]; it names the box and where the cloud lies.

    boxes: of the forms that `boxes.axis_parallel` accepts, in the unit of the cloud.
    """
    xyz = np.asarray(points, dtype=np.float64)[:, :3]
    low, high = xyz.min(axis=0), xyz.max(axis=0)
    slack = ROUNDING * max(np.abs(low).max(), np.abs(high).max())
    for number, box in enumerate(boxes, 1):
        hull = axis_parallel(box)
        if not (np.abs(xyz - hull[:3]) <= hull[3:] / 2 + slack).all(axis=1).any():
            extent = ", ".join(
                f"{axis} {start:.2f} to {end:.2f}" for axis, start, end in zip("xyz", low.tolist(), high.tolist(), strict=True)
            )
            which = f"box {number} of {len(boxes)}" if len(boxes) > 1 else "the box"
            numbers = ", ".join(f"{value:g}" for value in hull)
            raise ValueError(
                f"{which} ({numbers}) holds no point of the cloud; accepted: boxes with points in them, within {extent}"
            )
