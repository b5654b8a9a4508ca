"""Pure functions of boxes. Boxes are arrays or lists whose last axis holds 4 numbers; leading axes are kept.

xywh: left, top, width, height. xyxy: left, top, right, bottom. Pixels count from the picture's top left
corner; normalised numbers are shares of its width and height, in [0, 1].

The order of operations follows RegionBLIP (arXiv 2308.02299, code mightyzau/RegionBLIP): xywh to xyxy, clamp
to the picture, truncate to whole pixels, divide by the size of the picture as it lies on disk.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def as_boxes(boxes: ArrayLike) -> NDArray[np.float64]:
    """Boxes as float64 [..., 4]; ValueError unless each is 4 finite numbers."""
    try:
        array = np.asarray(boxes)
    except ValueError as error:
        raise ValueError(f"box {boxes!r} is not 4 numbers") from error
    if array.dtype.kind not in "iuf" or array.ndim < 1 or array.shape[-1] != 4:
        raise ValueError(f"box {boxes!r} is not 4 numbers")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"box {boxes!r} has a number that is not finite")
    return array


def xywh_to_xyxy(boxes: ArrayLike) -> NDArray[np.float64]:
    """[..., 4] left, top, width, height -> left, top, right, bottom, in the unit of the input."""
    array = as_boxes(boxes)
    return np.concatenate([array[..., :2], array[..., :2] + array[..., 2:]], axis=-1)


def clamp(boxes: ArrayLike, width: float, height: float) -> NDArray[np.float64]:
    """xyxy boxes [..., 4] cut to a picture of `width` x `height`, all in one unit."""
    return np.clip(as_boxes(boxes), 0.0, np.array([width, height, width, height], dtype=np.float64))


def truncate(boxes: ArrayLike) -> NDArray[np.float64]:
    """Boxes [..., 4] in pixels cut towards zero to whole pixels."""
    return np.trunc(as_boxes(boxes))


def normalise(boxes: ArrayLike, width: float, height: float) -> NDArray[np.float64]:
    """xyxy boxes [..., 4] in pixels -> shares of a picture of `width` x `height` pixels."""
    return as_boxes(boxes) / np.array([width, height, width, height], dtype=np.float64)


def is_empty(boxes: ArrayLike) -> NDArray[np.bool_]:
    """[...] True where an xyxy box [..., 4] has no area."""
    array = as_boxes(boxes)
    return np.asarray((array[..., 2] <= array[..., 0]) | (array[..., 3] <= array[..., 1]))


def pixel_boxes_to_normalised(boxes: ArrayLike, width: int, height: int) -> NDArray[np.float32]:
    """xyxy boxes [..., 4] in pixels of a picture of `width` x `height` -> float32 in [0, 1], as the models
    read them.

    ValueError names the box that has no area left after clamping and truncation.
    """
    whole = truncate(clamp(boxes, width, height))
    empty = is_empty(whole)
    if empty.any():
        bad = as_boxes(boxes).reshape(-1, 4)[np.flatnonzero(empty.reshape(-1))[0]].tolist()
        raise ValueError(f"box {bad} (x1, y1, x2, y2) has no area left in a picture of {width} x {height} pixels")
    return normalise(whole, width, height).astype(np.float32)


def region_id(image_id: object, xywh: ArrayLike) -> str:
    """The published id of a region: `<image_id>_box_<x>_<y>_<w>_<h>` with the numbers of the xywh box cut to
    ints."""
    array = as_boxes(xywh)
    if array.shape != (4,):
        raise ValueError(f"box {xywh!r} is not one box of 4 numbers")
    return f"{image_id}_box_" + "_".join(str(int(value)) for value in array)
