"""What a card of the gallery shows: a picture and its box, or a rendered cloud with what a page needs to turn it.

Datasets give both by two methods, `picture_of` and `cloud_of` (lavis/datasets/datasets/captions.py and clouds.py).

Letters: P points of a cloud, N points of a card.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lavis.datasets.cloud_geometry import box_of
from lavis.report.cloud_pictures import Camera, inside, point_colours, render_cloud, upright
from lavis.report.report_parts import data_url, picture

SIDE = 320  # pixels of the longer side of what is embedded
DRAWN, TURNED = 6000, 1500  # most points of a rendered picture, and of a cloud that can be turned
IN_BOX = 0.4  # of these points, at most, the share that the box may take, so that both it and the room have some
AZIMUTH, ELEVATION, ELEVATION_OF_ROOMS = -60.0, 28.0, 40.0  # degrees
STEPS = 32767  # of an int16, from the middle of a cloud to its farthest point


def shown(dataset: Any, index: int) -> dict[str, Any]:
    """What row `index` of a dataset shows: {"picture": as `report_parts.picture` gives it} or {"cloud": see `cloud`}.

    Whatever the dataset raises where a file is missing or broken; LookupError where it shows nothing.
    """
    if hasattr(dataset, "picture_of"):
        image, box = dataset.picture_of(index)
        return {"picture": picture({"image": image, "box_xyxy": box}, max_side=SIDE)}
    if hasattr(dataset, "cloud_of"):
        points, corners = dataset.cloud_of(index)
        return {"cloud": cloud(points, corners, up=dataset.up)}
    raise LookupError("its dataset has no pictures to show")


def cloud(points: ArrayLike, corners: ArrayLike | None, *, up: str) -> dict[str, Any]:
    """Points [P, 3 or 6] in any unit, colours in 0..1, and the corners [8, 3] of a box, or None, as data of a page.

    {"source": data URL of a picture, "side": of it in pixels, "azimuth", "elevation": the view of the picture, in degrees,
    "count": N, "points": base64 of int16 [N, 3] (little-endian, z up, from the middle in shares of the radius / 32767),
    "colours": base64 of uint8 [N, 3], "box": [cx, cy, cz, dx, dy, dz] in shares of the radius, or None}. ValueError as of
    `render_cloud`, and for corners of no box.
    """
    array = np.asarray(points)
    xyz, own = array[:, :3], array[:, 3:6] if array.shape[1] >= 6 else None
    boxes = np.zeros((0, 6)) if corners is None else box_of(corners)[None]
    elevation = ELEVATION if corners is None else ELEVATION_OF_ROOMS
    some = spread(xyz, boxes, DRAWN)
    drawn = None if own is None else own[some]
    image = render_cloud(xyz[some], up=up, boxes=boxes, colours=drawn, size=SIDE, azimuth=AZIMUTH, elevation=elevation)
    few = some[spread(xyz[some], boxes, TURNED)]
    turned, wires = upright(xyz[few], boxes, up=up)
    everything, _ = upright(xyz[some], boxes, up=up)
    colours = point_colours(turned, wires, None if own is None else own[few].astype(np.float64))
    ends = wires[:, None, :3] + np.array([[-0.5], [0.5]]) * wires[:, None, 3:]
    camera = Camera.around(np.concatenate([everything, ends.reshape(-1, 3)]), AZIMUTH, elevation, SIDE)
    scaled = (turned - camera.centre) / camera.radius
    return {
        "source": data_url(image, "WEBP"),
        "side": SIDE,
        "azimuth": AZIMUTH,
        "elevation": elevation,
        "count": len(turned),
        "points": _packed(np.rint(scaled * STEPS).clip(-STEPS, STEPS).astype("<i2")),
        "colours": _packed(np.rint(colours * 255).clip(0, 255).astype(np.uint8)),
        "box": [round(float(v), 5) for v in ((wires[0] - [*camera.centre, 0, 0, 0]) / camera.radius)] if len(wires) else None,
    }


def spread(xyz: NDArray[Any], boxes: NDArray[Any], count: int) -> NDArray[np.intp]:
    """Which of the points [P, 3] to take where there may be `count`: drawn anew the same way each time, those in the boxes
    [B, 6] first, up to a share of them."""
    if len(xyz) <= count:
        return np.arange(len(xyz))
    order = np.random.RandomState(0).permutation(len(xyz))
    marked = inside(xyz, boxes)[order]
    first = order[marked][: int(IN_BOX * count)]
    rest = order[~marked][: count - len(first)]
    more = order[marked][len(first) : count - len(rest)]
    return np.sort(np.concatenate([first, rest, more]))


def _packed(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()
