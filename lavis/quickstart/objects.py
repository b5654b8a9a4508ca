"""Objects of the quickstart: shapes and simple furniture as points of their surfaces.

An object has a kind, a proportion and a posture. A kind is a handful of faces (blocks, tubes, discs) that fill
about a unit box; the proportion stretches it along its own axes, the posture turns it about its length. Every
measure is drawn anew for each object, so no two are alike. Geometry only: points carry no colour.

Letters: N points, F faces. An object's own axes: x its length, y its depth, z up; it is centred on (0, 0) and
stands on z = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lavis.datasets.cloud_geometry import rotation

Points = NDArray[np.float64]
Face = tuple[float, Callable[[int, np.random.RandomState], Points]]  # area, and a draw of N points [N, 3] of it

PROPORTIONS: dict[str, tuple[float, float, float]] = {  # stretch along length, depth and height
    "tall": (0.75, 0.75, 1.5),
    "low": (1.1, 1.1, 0.42),
    "long": (1.9, 0.7, 0.8),
}
POSTURES: dict[str, float] = {"standing": 0.0, "leaning": 42.0, "lying": 90.0}  # degrees about the length
STRETCH_NOISE, LEAN_NOISE = 0.06, 4.0  # largest relative change of a stretch; largest change of an angle, degrees


@dataclass(frozen=True)
class Thing3D:
    """What an object is, in words."""

    kind: str
    proportion: str
    posture: str

    @property
    def name(self) -> str:
        """Proportion and kind, e.g. "tall chair"."""
        return f"{self.proportion} {self.kind}"


def _parallelogram(corner: Points, first: Points, second: Points) -> Face:
    def draw(count: int, rng: np.random.RandomState) -> Points:
        a, b = rng.uniform(size=(2, count, 1))
        return corner + a * first + b * second

    return float(np.linalg.norm(np.cross(first, second))), draw


def block(x: float, y: float, z: float, length: float, depth: float, height: float) -> list[Face]:
    """The six sides of a box whose bottom is centred on (x, y, z)."""
    low = np.array([x - length / 2, y - depth / 2, z])
    edges = np.diag([length, depth, height])
    faces = []
    for axis in range(3):
        first, second = edges[(axis + 1) % 3], edges[(axis + 2) % 3]
        faces += [_parallelogram(low, first, second), _parallelogram(low + edges[axis], first, second)]
    return faces


def disc(z: float, outer: float, inner: float = 0.0) -> Face:
    """A level ring between two radii."""

    def draw(count: int, rng: np.random.RandomState) -> Points:
        radius = np.sqrt(rng.uniform(inner**2, outer**2, count))
        turn = rng.uniform(0, 2 * math.pi, count)
        return np.stack([radius * np.cos(turn), radius * np.sin(turn), np.full(count, z)], axis=1)

    return math.pi * (outer**2 - inner**2), draw


def tube(bottom: float, top: float, z: float, height: float) -> Face:
    """The side of a cone between two radii, `height` high."""
    slant = math.hypot(height, bottom - top)

    def draw(count: int, rng: np.random.RandomState) -> Points:
        # Even over the area: density grows with the radius.
        share = rng.uniform(size=count)
        radius = np.sqrt(bottom**2 + share * (top**2 - bottom**2))
        up = share if bottom == top else (radius - bottom) / (top - bottom)
        turn = rng.uniform(0, 2 * math.pi, count)
        return np.stack([radius * np.cos(turn), radius * np.sin(turn), z + up * height], axis=1)

    return math.pi * (bottom + top) * slant, draw


def _legs(spread: float, thick: float, height: float, rng: np.random.RandomState) -> list[Face]:
    return [face for x in (-1, 1) for y in (-1, 1) for face in block(x * spread, y * spread, 0, thick, thick, height)]


def _cylinder(rng: np.random.RandomState) -> list[Face]:
    return [tube(0.5, 0.5, 0, 1), disc(0, 0.5), disc(1, 0.5)]


def _cone(rng: np.random.RandomState) -> list[Face]:
    return [tube(0.55, 0.0, 0, 1), disc(0, 0.55)]


def _pipe(rng: np.random.RandomState) -> list[Face]:
    inner = rng.uniform(0.34, 0.4)
    return [tube(0.5, 0.5, 0, 1), tube(inner, inner, 0, 1), disc(0, 0.5, inner), disc(1, 0.5, inner)]


def _arch(rng: np.random.RandomState) -> list[Face]:
    post, lintel = rng.uniform(0.16, 0.22), rng.uniform(0.2, 0.28)
    posts = [face for x in (-1, 1) for face in block(x * (0.5 - post / 2), 0, 0, post, 0.4, 1 - lintel)]
    return [*posts, *block(0, 0, 1 - lintel, 1, 0.4, lintel)]


def _chair(rng: np.random.RandomState) -> list[Face]:
    seat, thick = rng.uniform(0.4, 0.5), rng.uniform(0.08, 0.12)
    back = block(0, 0.45, seat + thick, 0.95, thick, 1 - seat - thick)
    return [*_legs(0.42, 0.1, seat, rng), *block(0, 0, seat, 0.95, 1, thick), *back]


def _table(rng: np.random.RandomState) -> list[Face]:
    thick, spread = rng.uniform(0.08, 0.14), rng.uniform(0.36, 0.43)
    return [*_legs(spread, 0.1, 1 - thick, rng), *block(0, 0, 1 - thick, 1, 1, thick)]


def _lamp(rng: np.random.RandomState) -> list[Face]:
    shade, base = rng.uniform(0.36, 0.46), rng.uniform(0.26, 0.34)
    foot = [tube(base, base, 0, 0.06), disc(0, base), disc(0.06, base)]
    return [*foot, tube(0.05, 0.05, 0.06, 0.6), tube(0.5, 0.22, 1 - shade, shade), disc(1, 0.22)]


def _shelf(rng: np.random.RandomState) -> list[Face]:
    sides = [face for x in (-1, 1) for face in block(x * 0.47, 0, 0, 0.06, 0.5, 1)]
    boards = [face for z in (0.0, rng.uniform(0.42, 0.52), 0.94) for face in block(0, 0, z, 0.88, 0.5, 0.06)]
    return [*sides, *boards, *block(0, 0.23, 0, 0.88, 0.04, 1)]


def _sofa(rng: np.random.RandomState) -> list[Face]:
    seat, arm = rng.uniform(0.36, 0.46), rng.uniform(0.62, 0.72)
    arms = [face for x in (-1, 1) for face in block(x * 0.42, -0.1, 0, 0.16, 0.8, arm)]
    return [*block(0, -0.1, 0, 0.68, 0.8, seat), *arms, *block(0, 0.4, 0, 1, 0.2, 1)]


KINDS: dict[str, Callable[[np.random.RandomState], list[Face]]] = {
    "cylinder": _cylinder,
    "cone": _cone,
    "pipe": _pipe,
    "arch": _arch,
    "chair": _chair,
    "table": _table,
    "lamp": _lamp,
    "shelf": _shelf,
    "sofa": _sofa,
}


def surface(faces: list[Face], count: int, rng: np.random.RandomState) -> Points:
    """`count` points [N, 3], spread evenly over the faces by area."""
    areas = np.array([area for area, _ in faces])
    counts = rng.multinomial(count, areas / areas.sum())
    return np.concatenate([draw(int(number), rng) for number, (_, draw) in zip(counts, faces, strict=True)])


def draw_object(thing: Thing3D, count: int, rng: np.random.RandomState) -> Points:
    """Points [N, 3] of one object of this name. All that the name does not say is drawn, the turn about z too."""
    points = surface(KINDS[thing.kind](rng), count, rng)
    points *= np.array(PROPORTIONS[thing.proportion]) * rng.uniform(1 - STRETCH_NOISE, 1 + STRETCH_NOISE, 3)
    angle = math.radians(POSTURES[thing.posture])
    if angle:
        angle = (angle + math.radians(rng.uniform(-LEAN_NOISE, LEAN_NOISE))) * rng.choice((-1, 1))
    points = points @ rotation("x", angle).T @ rotation("z", rng.uniform(0, 2 * math.pi)).T
    low, high = points.min(axis=0), points.max(axis=0)
    return points - np.array([*(low + high)[:2] / 2, low[2]])


def random_thing(rng: np.random.RandomState) -> Thing3D:
    """Kind, proportion and posture, each drawn evenly and alone."""
    kind, proportion, posture = (str(rng.choice(list(words))) for words in (KINDS, PROPORTIONS, POSTURES))
    return Thing3D(kind, proportion, posture)
