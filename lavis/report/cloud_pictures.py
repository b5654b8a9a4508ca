"""Pictures of point clouds: a small renderer of numpy and PIL alone, for reports and demonstrations.

Points are little lit balls, drawn from far to near in perspective, seen from aside and above. Their colour is their
own or tells their height; what is far is dimmer, what lies behind an outline darker, and there is a soft shade on the
ground. Boxes are wireframes: the edges that face the camera lie over all, the others are faint and can be hidden.
Points in a box take an accent colour.

Letters: N points, B boxes, M dots to draw, S side of the canvas in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageFilter

Floats = NDArray[np.floating]
Colour = tuple[float, float, float]  # red, green, blue in 0..1

BACKGROUND: Colour = (0.062, 0.070, 0.094)
GLOW = 0.15  # how much lighter the lit ground in the middle is
HEIGHT: tuple[Colour, Colour] = ((0.27, 0.33, 0.76), (0.52, 0.93, 0.84))  # of the lowest and of the highest point
ACCENT: tuple[Colour, Colour] = ((0.97, 0.47, 0.22), (1.0, 0.85, 0.50))  # the same in a box
EDGE: tuple[Colour, Colour] = ((1.0, 0.95, 0.86), (0.30, 0.18, 0.08))  # on a dark and on a light background
OVERSAMPLING = 2  # canvas pixels per pixel of the picture, along a side
MARGIN = 0.07  # of the picture's side, left free
DISTANCE = 4.0  # of the camera, in radii of what is drawn
TOUCHED = 2_000_000  # pixels looked at at a time, seen or not
DIAMETERS = (0.0065, 0.023)  # of points, if not given, in shares of the picture's side


def render_cloud(
    points: ArrayLike,
    *,
    up: str = "z",
    boxes: ArrayLike = (),
    colours: ArrayLike | None = None,
    size: int = 360,
    azimuth: float = -60.0,
    elevation: float = 28.0,
    point_size: float | None = None,
    background: Colour = BACKGROUND,
) -> Image.Image:
    """A square RGB picture, `size` pixels a side, of points [N, 3] in any unit.

    up          "z" or "y": the axis that points up
    boxes       [..., 6]: cx, cy, cz, dx, dy, dz in the unit and the axes of the points
    colours     [N, 3]: red, green, blue of every point in 0..1; without them colour tells height
    azimuth     degrees from the first level axis to the camera; elevation: degrees above the ground
    point_size  diameter of a point in pixels of the picture; by default from how dense the points lie

    ValueError, which names the argument: another shape, no point, NaN or infinity, a box without a volume, colours
    beyond 0..1, another `up`, a size below 16, an elevation beyond -90..90, a point size that is not above 0.
    """
    if size < 16 or not -90 <= elevation <= 90 or not (point_size is None or point_size > 0):
        raise ValueError(f"size {size}, elevation {elevation}, point_size {point_size}; accepted: from 16, -90..90, above 0")
    cloud, wires = upright(points, boxes, up=up)
    own = None if colours is None else _own_colours(colours, len(cloud))
    camera = Camera.around(np.concatenate([cloud, *map(_corners, wires)]), azimuth, elevation, size * OVERSAMPLING)
    balls = _balls(camera, cloud, wires, own, point_size=point_size, background=background)
    canvas = _ground(camera, cloud, background)
    _draw(canvas, Dots.joined([balls, *_wireframes(camera, wires, background)]))
    return Image.fromarray((canvas * 255 + 0.5).clip(0, 255).astype(np.uint8)).reduce(OVERSAMPLING)


@dataclass(frozen=True)
class Camera:
    """Where the camera stands, and how it maps points [N, 3] (z up) to a canvas of `side` pixels."""

    axes: Floats  # [3, 3]: rows point right, up and towards the camera
    centre: Floats  # [3]: what it looks at
    radius: float  # of what is drawn
    side: int
    scale: float = 1.0  # pixels per unit of (offset / depth)
    shift: Floats | float = 0.0  # [2]: pixels

    @classmethod
    def around(cls, points: Floats, azimuth: float, elevation: float, side: int) -> Camera:
        """A camera that shows all of `points` as large as the margin lets it."""
        turn, rise = math.radians(azimuth), math.radians(elevation)
        towards = np.array([math.cos(rise) * math.cos(turn), math.cos(rise) * math.sin(turn), math.sin(rise)])
        right = np.array([-math.sin(turn), math.cos(turn), 0.0])
        axes = np.stack([right, np.cross(towards, right), towards])
        centre = (points.min(axis=0) + points.max(axis=0)) / 2
        radius = float(np.linalg.norm(points - centre, axis=1).max()) or 1.0
        places, _ = cls(axes, centre, radius, side).project(points)
        low, high = places.min(axis=0), places.max(axis=0)
        scale = side * (1 - 2 * MARGIN) / (float((high - low).max()) or 1.0)
        return cls(axes, centre, radius, side, scale, side / 2 - scale * (low + high) / 2)

    @property
    def place(self) -> Floats:
        """Of the camera, [3]."""
        return self.centre + DISTANCE * self.radius * self.axes[2]

    def project(self, points: Floats) -> tuple[Floats, Floats]:
        """Places [N, 2] on the canvas, x right and y down, and depths [N] from the camera, in radii."""
        offsets = (points - self.centre) @ self.axes.T / self.radius
        depth = DISTANCE - offsets[:, 2]
        return offsets[:, :2] * (1, -1) / depth[:, None] * self.scale + self.shift, depth


@dataclass(frozen=True)
class Dots:
    """What is drawn: places [M, 2] and radii [M] in canvas pixels, depths [M], colours [M, 3], roundness [M]."""

    places: Floats
    depth: Floats
    radius: Floats
    colours: Floats
    roundness: Floats  # 0: flat, 1: a ball

    @classmethod
    def joined(cls, parts: Sequence[Dots]) -> Dots:
        """All dots of the parts, from far to near."""
        columns = [
            np.concatenate([getattr(part, name) for part in parts]).astype(np.float32) for name in cls.__dataclass_fields__
        ]
        order = np.argsort(-columns[1], kind="stable")
        return cls(*(column[order] for column in columns))


def upright(points: ArrayLike, boxes: ArrayLike, *, up: str) -> tuple[Floats, Floats]:
    """Points [N, 3] and boxes [B, 6], both checked, with z up."""
    cloud, wires = np.asarray(points), np.asarray(boxes)
    if cloud.ndim != 2 or cloud.shape[1] != 3 or not len(cloud) or cloud.dtype.kind not in "iuf":
        raise ValueError(f"points {cloud.dtype} {cloud.shape}; accepted: numbers [N, 3] with N at least 1")
    wires = wires.reshape(0, 6) if wires.size == 0 else wires
    if not wires.ndim or wires.shape[-1] != 6 or wires.dtype.kind not in "iuf":
        raise ValueError(f"boxes {wires.dtype} {wires.shape}; accepted: numbers [..., 6], cx, cy, cz, dx, dy, dz")
    cloud, wires = cloud.astype(np.float64), wires.reshape(-1, 6).astype(np.float64)
    for name, array in (("points", cloud), ("boxes", wires)):
        if bad := int((~np.isfinite(array)).any(axis=1).sum()):
            raise ValueError(f"{name}: {bad} of {len(array)} have NaN or infinity")
    if (wires[:, 3:] <= 0).any():
        raise ValueError(f"boxes: {wires[(wires[:, 3:] <= 0).any(axis=1)][0].tolist()} has no volume")
    if up not in ("z", "y"):
        raise ValueError(f"up {up!r}; accepted: z, y")
    if up == "y":  # x stays, y becomes up, z comes to the front
        cloud = cloud[:, [0, 2, 1]] * (1, -1, 1)
        wires = wires[:, [0, 2, 1, 3, 5, 4]] * (1, -1, 1, 1, 1, 1)
    return cloud, wires


def _own_colours(colours: ArrayLike, count: int) -> Floats:
    """The colours of `count` points, checked."""
    array = np.asarray(colours, dtype=np.float64)
    if array.shape != (count, 3):
        raise ValueError(f"colours {array.shape}; accepted: [{count}, 3], as there are points")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"colours from {array.min():g} to {array.max():g}; accepted: 0..1")
    return array


def _balls(
    camera: Camera,
    cloud: Floats,
    boxes: Floats,
    own: Floats | None,
    *,
    point_size: float | None,
    background: Colour,
) -> Dots:
    """The dots of the points [N, 3]."""
    places, depth = camera.project(cloud)
    colours = point_colours(cloud, boxes, own)
    diameter = OVERSAMPLING * point_size if point_size else _diameter(places, camera.side)
    radius = np.maximum(diameter / 2 * DISTANCE / depth, 0.75)  # less may touch no pixel's centre
    return Dots(places, depth, radius, _dimmed(colours, depth, background), np.ones(len(cloud)))


def point_colours(cloud: Floats, boxes: Floats, own: Floats | None) -> Floats:
    """Red, green and blue [N, 3] in 0..1 of points [N, 3], z up: their own or by height, an accent in boxes [B, 6]."""
    low, high = np.quantile(cloud[:, 2], (0.005, 0.995))
    height = np.clip((cloud[:, 2] - low) / ((high - low) or 1.0), 0, 1)
    colours = _ramp(HEIGHT, height**0.6) if own is None else own
    if not len(boxes):
        return colours
    share = 1.0 if own is None else 0.6
    accent = share * _ramp(ACCENT, height) + (1 - share) * colours
    rest = (0.6 + 0.4 * np.minimum(3 * height[:, None], 1)) * colours  # the floor steps back
    return np.where(inside(cloud, boxes)[:, None], accent, rest)


def _ramp(ends: tuple[Colour, Colour], share: Floats) -> Floats:
    """Colours [N, 3] between two, `share` [N] of the way."""
    first, last = np.array(ends)
    return first + share[:, None] * (last - first)


def _dimmed(colours: Floats, depth: Floats, background: Colour) -> Floats:
    """Colours [M, 3] nearer to the background the deeper [M] they lie."""
    haze = 0.5 * np.clip((depth - (DISTANCE - 0.5)) / 1.5, 0, 1)[:, None]
    return colours * (1 - haze) + np.array(background) * haze


def _diameter(places: Floats, side: int) -> float:
    """Of dots at places [N, 2] that just about touch, in canvas pixels."""
    cell = side / 40
    covered = len(np.unique(np.floor(places / cell), axis=0)) * cell**2
    least, most = (share * side for share in DIAMETERS)
    return min(max(1.7 * math.sqrt(covered / len(places)), least), most)


def _corners(box: Floats) -> Floats:
    """Of a box [6]: [8, 3]. (cloud_geometry.box_corners gives them as published models read them, y and z exchanged.)"""
    return box[:3] + np.array(list(product((-0.5, 0.5), repeat=3))) * box[3:]


def inside(cloud: Floats, boxes: Floats) -> NDArray[np.bool_]:
    """Which points [N] lie in any of the boxes."""
    found = np.zeros(len(cloud), dtype=np.bool_)
    for box in boxes:
        found |= (np.abs(cloud - box[:3]) <= box[3:] / 2 * (1 + 1e-6)).all(axis=1)
    return found


def _wireframes(camera: Camera, boxes: Floats, background: Colour) -> list[Dots]:
    """The twelve edges of every box. Those that face the camera have depth 0, so that nothing covers them."""
    found = []
    for box in boxes:
        for axis, signs in product(range(3), product((-1, 1), repeat=2)):
            others = [(axis + 1) % 3, (axis + 2) % 3]
            middle = box[:3].copy()
            middle[others] += np.array(signs) * box[3:][others] / 2
            # A side faces the camera when the camera is beyond it; an edge when one of its two sides does.
            faces = bool(((camera.place - middle)[others] * signs > 0).any())
            half = np.eye(3)[axis] * box[3 + axis] / 2
            found.append(_edge(camera, middle - half, middle + half, faces, background))
    return found


def _edge(camera: Camera, first: Floats, last: Floats, faces: bool, background: Colour) -> Dots:
    """The dots of a line from `first` [3] to `last` [3]."""
    ends, _ = camera.project(np.stack([first, last]))
    count = int(2 * np.linalg.norm(ends[1] - ends[0])) + 2
    places, depth = camera.project(np.linspace(first, last, count))
    strength = 1.0 if faces else 0.4
    colour = strength * np.array(EDGE[sum(background) > 1.5]) + (1 - strength) * np.array(background)
    radius = np.full(count, max((0.0028 if faces else 0.0018) * camera.side, 0.75))
    return Dots(places, 0 * depth if faces else depth, radius, np.tile(colour, (count, 1)), np.zeros(count))


def _ground(camera: Camera, cloud: Floats, background: Colour) -> Floats:
    """The empty canvas [S, S, 3]: lit in the middle, with the shade of the points [N, 3] on the ground below them."""
    small = camera.side // 8
    level = cloud.copy()
    level[:, 2] = np.quantile(cloud[:, 2], 0.01)
    places = camera.project(level)[0] / 8
    columns, rows = np.clip(places, 0, small - 1).astype(int).T
    hits = np.bincount(rows * small + columns, minlength=small * small).reshape(small, small)
    shade = np.minimum(hits / np.median(hits[hits > 0]), 1.0)
    blurred = Image.fromarray((255 * shade).astype(np.uint8)).filter(ImageFilter.GaussianBlur(small / 26))
    away = (np.arange(small)[:, None] - places.mean(axis=0)) / (0.62 * small, 0.42 * small)
    light = GLOW * np.exp(-1.6 * (away[:, 0] ** 2 + away[:, 1:] ** 2)) * (1 - 0.95 * np.asarray(blurred) / 255)
    wide = Image.fromarray(light.astype(np.float32)).resize((camera.side, camera.side), Image.Resampling.BILINEAR)
    return np.array(background, np.float32) + np.asarray(wide)[:, :, None] * np.array((0.9, 1.0, 1.35), np.float32)


def _draw(canvas: Floats, dots: Dots) -> None:
    """Draw dots, given from far to near, on the canvas [S, S, 3]."""
    side = len(canvas)
    owner = np.full(side * side, -1, dtype=np.int32)  # the dot that a pixel shows
    light = np.ones(side * side, dtype=np.float32)
    reach = math.ceil(float(dots.radius.max()))
    steps = np.arange(-reach, reach + 1, dtype=np.int32)
    at_a_time = max(1, TOUCHED // len(steps) ** 2)
    for start in range(0, len(dots.depth), at_a_time):
        part = slice(start, start + at_a_time)
        radius, places = dots.radius[part, None], dots.places[part]
        own = np.floor(places).astype(np.int32)
        columns, rows = own[:, :1] + steps, own[:, 1:] + steps  # [M, 2 * reach + 1] each
        x = (columns + np.float32(0.5) - places[:, :1]) / radius  # of pixel centres from the dot's, in its radii
        y = (rows + np.float32(0.5) - places[:, 1:]) / radius
        x[(columns < 0) | (columns >= side)] = np.inf
        y[(rows < 0) | (rows >= side)] = np.inf
        away = (x * x)[:, None, :] + (y * y)[:, :, None]
        dot, row, column = np.nonzero(away <= 1)
        pixel = rows[dot, row] * side + columns[dot, column]
        lit = 0.06 - 0.34 * away[dot, row, column] - 0.2 * (x[dot, column] + y[dot, row])
        owner[pixel] = dot + start  # of several values for a pixel the last stays: the nearest dot's
        light[pixel] = 1 + dots.roundness[part][dot] * lit
    seen = owner >= 0
    depth = np.where(seen, dots.depth[owner], np.float32(10 * DISTANCE)).reshape(side, side)
    light *= _outlines(depth).ravel()
    canvas.reshape(-1, 3)[seen] = dots.colours[owner[seen]] * light[seen, None]


def _outlines(depth: Floats) -> Floats:
    """How bright [S, S] what lies at these depths is: darker where neighbours are much nearer."""
    reach = max(1, len(depth) // 240)
    total = np.zeros_like(depth)
    for step in (-reach, reach):
        for axis in (0, 1):
            total += np.clip(depth - np.roll(depth, step, axis=axis) - np.float32(0.02), 0, 0.25)
    return np.exp(-1.6 * total)
