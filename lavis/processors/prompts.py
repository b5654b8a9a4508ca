"""Ways to point at a region, each turned into the box that the models read: masks, points, scribbles, on pictures and in clouds.

Pictures: pixel boxes x1, y1, x2, y2, right and bottom edges beyond the last pixel, from the top left corner. Clouds: boxes cx,
cy, cz, dx, dy, dz or corners [8, 3], in the unit of the cloud. Letters: H, W a picture's height and width in pixels; N points.

`read_region` and `read_region_3d` read a region as JSON writes it, in any of these ways.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lavis.common.errors import did_you_mean

Box = list[float]

POINT_SIZE = 0.3  # side of the box of a point, as a share of the picture's shorter side
SCRIBBLE_MARGIN = 0.02  # what is left around a scribble, as a share of the picture's longer side
POINT_SIZE_3D = 1.0  # edge of the box of a point in a cloud, in its unit
SCRIBBLE_MARGIN_3D = 0.1  # what is left around a scribble in a cloud, in its unit
WAYS = ("box", "point", "scribble", "mask")
WAYS_3D = ("box", "corners", "point", "scribble", "mask")


def _numbers(value: Any, shape: tuple[int, ...], what: str) -> NDArray[np.float64]:
    """An array of finite numbers, its shape as given (-1: any length above 0); ValueError names the value."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} {_short(value)} is not numbers of one shape") from error
    fits = array.ndim == len(shape) and all(a == b or (b == -1 and a > 0) for a, b in zip(array.shape, shape, strict=True))
    wanted = " x ".join("N" if length == -1 else str(length) for length in shape) or "one"
    if array.dtype.kind not in "iuf" or not fits or not np.isfinite(array).all():
        raise ValueError(f"{what} {_short(value)} is not {wanted} finite number{'s' if shape else ''}")
    return array.astype(np.float64)


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _positive(value: Any, what: str, *, zero: bool = False) -> float:
    number = float(_numbers(value, (), what))
    if number < 0 or (number == 0 and not zero):
        raise ValueError(f"{what} is {value}; accepted: a number {'from' if zero else 'above'} 0")
    return number


# -- pictures ----------------------------------------------------------------------------------------------------
def mask_to_box(mask: ArrayLike) -> Box:
    """The tight pixel box of what is not zero in a mask [H, W], bool or numbers. ValueError for another shape, or none."""
    array = np.asarray(mask)
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise ValueError(f"a mask of {array.dtype} {array.shape}; accepted: [H, W], bool or numbers")
    rows, columns = np.flatnonzero(array.any(axis=1)), np.flatnonzero(array.any(axis=0))
    if not len(rows):
        raise ValueError(f"the mask of {array.shape[1]} x {array.shape[0]} pixels is empty")
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def scribble_to_box(points: ArrayLike, width: int, height: int, margin: float | None = None) -> Box:
    """The pixel box around a scribble, points [N, 2] of x, y in pixels, with `margin` pixels on every side, cut to the picture.

    margin None: `SCRIBBLE_MARGIN` of the longer side. ValueError for a scribble that lies outside the picture.
    """
    array = _numbers(points, (-1, 2), "scribble")
    around = SCRIBBLE_MARGIN * max(width, height) if margin is None else _positive(margin, "margin", zero=True)
    if not ((array >= 0) & (array <= (width, height))).all(axis=1).any():
        raise ValueError(f"scribble {_short(array.tolist())} has no point in a picture of {width} x {height} pixels")
    low, high = array.min(axis=0) - around, array.max(axis=0) + around
    return [*np.clip(low, 0, (width, height)).tolist(), *np.clip(high, 0, (width, height)).tolist()]


def point_to_box(x: float, y: float, width: int, height: int, size: float | None = None) -> Box:
    """A square pixel box of side `size` in pixels around a point, moved into the picture where it would stick out.

    size None: `POINT_SIZE` of the shorter side. ValueError for a point outside the picture.
    """
    px, py = _numbers([x, y], (2,), "point")
    if not (0 <= px <= width and 0 <= py <= height):
        raise ValueError(f"point {[x, y]} lies outside a picture of {width} x {height} pixels")
    side = POINT_SIZE * min(width, height) if size is None else _positive(size, "size")
    wide, high = min(side, width), min(side, height)
    left, top = min(max(px - wide / 2, 0.0), width - wide), min(max(py - high / 2, 0.0), height - high)
    return [float(left), float(top), float(left + wide), float(top + high)]


def read_region(spec: Any, size: tuple[int, int], *, folder: str | os.PathLike[str] = ".") -> Box:
    """A region of a picture as JSON writes it -> its pixel box.

    spec: [x1, y1, x2, y2], or an object with one of
        "box": [x1, y1, x2, y2]
        "point": [x, y], and perhaps "size" in pixels
        "scribble": [[x, y], ...], and perhaps "margin" in pixels
        "mask": the path of a picture of the same size (from `folder`), in which the region is not zero (or not transparent);
                or COCO's run lengths {"size": [height, width], "counts": list or string}
    size: the picture's width and height in pixels. ValueError names what is wrong and what is accepted.
    """
    width, height = size
    if not isinstance(spec, Mapping):
        return _numbers(spec, (4,), "box").tolist()
    way = _way(spec, WAYS, {"point": "size", "scribble": "margin"})
    value = spec[way]
    if way == "box":
        return _numbers(value, (4,), "box").tolist()
    if way == "point":
        x, y = _numbers(value, (2,), "point").tolist()
        return point_to_box(x, y, width, height, spec.get("size"))
    if way == "scribble":
        return scribble_to_box(value, width, height, spec.get("margin"))
    mask = _run_lengths(value, size) if isinstance(value, Mapping) else _mask_file(value, folder)
    if mask.shape != (height, width):
        raise ValueError(f"mask {_short(value)} has {mask.shape[1]} x {mask.shape[0]} pixels, the picture {width} x {height}")
    return mask_to_box(mask)


def _way(spec: Mapping[str, Any], ways: Sequence[str], extras: Mapping[str, str]) -> str:
    """Which way of pointing an object uses; ValueError unless it is one, with no key that means nothing to it."""
    found = [way for way in ways if way in spec]
    if len(found) != 1:
        raise ValueError(f"region {_short(dict(spec))} has {len(found)} of the keys {', '.join(ways)}; accepted: one of them")
    accepted = [found[0], *([extras[found[0]]] if found[0] in extras else [])]
    if unknown := [str(key) for key in spec if key not in accepted]:
        hint = did_you_mean(unknown[0], accepted)
        raise ValueError(f"region {_short(dict(spec))} has the key {unknown[0]!r}.{hint} Accepted here: {', '.join(accepted)}")
    return found[0]


def _run_lengths(spec: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask [H, W] of COCO's run lengths; ValueError unless they are those of a picture of `size`."""
    width, height = size
    if list(spec.get("size") or ()) != [height, width]:
        raise ValueError(f"mask of run lengths has size {spec.get('size')}; the picture has [height, width] {[height, width]}")
    given = spec.get("counts")
    counts = _unpacked(given.encode() if isinstance(given, str) else given) if isinstance(given, str | bytes) else given
    whole = isinstance(counts, list) and all(isinstance(n, int) and n >= 0 for n in counts) and sum(counts) == width * height
    if not whole:
        raise ValueError(f"mask of run lengths {_short(given)} is not {width * height} pixels; accepted: COCO's list or string")
    assert isinstance(counts, list)
    flat = np.repeat(np.arange(len(counts)) % 2, counts).astype(np.uint8)  # columns, top down; begins with what is not in it
    return flat.reshape(width, height).T


def _unpacked(packed: bytes) -> list[int]:
    """The counts of COCO's string; none where it is broken.

    A count is a string of characters from '0' on, each 5 bits of value and one that says whether more follow, and the last one's
    top bit is the sign; from the fourth on it is the difference to the last but one (cocoapi, common/maskApi.c).
    """
    counts: list[int] = []
    value = shift = 0
    for character in packed:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 60:
            return []
        value, shift = value | (bits & 31) << shift, shift + 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return [] if shift else counts


def _mask_file(value: Any, folder: str | os.PathLike[str]) -> NDArray[Any]:
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"mask {_short(value)} is no path and no run lengths")
    path = Path(folder) / value
    try:
        with Image.open(path) as image:
            if image.mode in ("LA", "PA", "RGBA"):
                return np.asarray(image.convert("RGBA"))[..., 3]
            return np.asarray(image if image.mode in ("1", "P", "L", "I", "I;16") else image.convert("L"))
    except FileNotFoundError:
        raise ValueError(f"mask {path}: no such file") from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"mask {path} is no picture that can be read ({error})") from error


# -- clouds ----------------------------------------------------------------------------------------------------
def point_mask_to_corners(points: ArrayLike, mask: ArrayLike) -> NDArray[np.float32]:
    """The corners [8, 3] of the tight axis-parallel box around the points [N, 3 or more] that a mask takes.

    mask: [N] bool, or the numbers of the points. ValueError for a mask of another length, or of points without a volume.
    """
    xyz = np.asarray(points)[:, :3]
    chosen = np.asarray(mask)
    if chosen.ndim != 1 or chosen.dtype.kind not in "biu":
        raise ValueError(f"a mask of {chosen.dtype} {chosen.shape}; accepted: [N] bool, or a list of point numbers")
    if chosen.dtype.kind == "b" and len(chosen) != len(xyz):
        raise ValueError(f"a mask of {len(chosen)} values for {len(xyz)} points")
    if chosen.dtype.kind != "b" and len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(xyz)):
        raise ValueError(f"a mask with the point numbers {chosen.min()} to {chosen.max()}; the cloud has 0 to {len(xyz) - 1}")
    taken = xyz[chosen]
    if len(taken) < 2 or (np.ptp(taken, axis=0) <= 0).any():
        raise ValueError(f"the {len(taken)} points of the mask enclose no volume")
    low, high = taken.min(axis=0), taken.max(axis=0)
    return np.array(list(itertools.product(*zip(low, high, strict=True))), dtype=np.float32)


def click_to_box_3d(point: ArrayLike, size: ArrayLike | None = None) -> Box:
    """A box cx, cy, cz, dx, dy, dz around a point [3]. size: its edge, or three of them (None: `POINT_SIZE_3D`)."""
    centre = _numbers(point, (3,), "point")
    given = np.asarray(POINT_SIZE_3D if size is None else size)
    edges = np.broadcast_to(_numbers(given, (3,) if given.ndim else (), "size"), 3)
    if (edges <= 0).any():
        raise ValueError(f"size is {given.tolist()}; accepted: numbers above 0")
    return [*centre.tolist(), *edges.tolist()]


def scribble_to_box_3d(points: ArrayLike, margin: float | None = None) -> Box:
    """The box cx, cy, cz, dx, dy, dz around a scribble's points [N, 3], with `margin` on every side (None: `SCRIBBLE_MARGIN_3D`).

    ValueError where that has no volume.
    """
    array = _numbers(points, (-1, 3), "scribble")
    around = SCRIBBLE_MARGIN_3D if margin is None else _positive(margin, "margin", zero=True)
    low, high = array.min(axis=0) - around, array.max(axis=0) + around
    if (high <= low).any():
        raise ValueError(f"scribble {_short(array.tolist())} with a margin of {around} has no volume")
    return [*((low + high) / 2).tolist(), *(high - low).tolist()]


def read_region_3d(spec: Any, points: ArrayLike, *, folder: str | os.PathLike[str] = ".") -> NDArray[np.float64]:
    """A region of a cloud as JSON writes it -> box numbers [6] or [7] (with a heading), or corners [8, 3].

    spec: such numbers themselves, or an object with one of
        "box": [cx, cy, cz, dx, dy, dz] and perhaps a heading in radians
        "corners": [[x, y, z], ...], 8 of them
        "point": [x, y, z], and perhaps "size", one edge or three
        "scribble": [[x, y, z], ...], and perhaps "margin"
        "mask": the path of a .npy file (from `folder`) of [N] bool or point numbers, or a list of point numbers
    points: the cloud [N, 3 or more], which masks are of. ValueError names what is wrong and what is accepted.
    """
    if not isinstance(spec, Mapping):
        return _box_or_corners(spec)
    way = _way(spec, WAYS_3D, {"point": "size", "scribble": "margin"})
    value = spec[way]
    if way in ("box", "corners"):
        return _box_or_corners(value)
    if way == "point":
        return np.array(click_to_box_3d(value, spec.get("size")))
    if way == "scribble":
        return np.array(scribble_to_box_3d(value, spec.get("margin")))
    if isinstance(value, str | os.PathLike):
        try:
            value = np.load(Path(folder) / value, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"mask {Path(folder) / value} cannot be read as a .npy file ({error})") from error
    return point_mask_to_corners(points, value).astype(np.float64)


def _box_or_corners(value: Any) -> NDArray[np.float64]:
    for shape in ((6,), (7,), (8, 3)):
        try:
            return _numbers(value, shape, "box")
        except ValueError:
            continue
    raise ValueError(f"box {_short(value)}; accepted: cx, cy, cz, dx, dy, dz, perhaps a heading, or 8 corners of x, y, z")
