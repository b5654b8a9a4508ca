"""Things of the quickstart: tinted handwritten digits and coloured shapes, alone, in crops and in collages.

Letters: N crops, B collages, G grid cells a side, C = 28 pixels a cell side, S = 84 pixels a picture side.

A *thing* has a colour and a kind. Its look is an opacity mask; a picture is the background seen through
1 - mask plus the colour through mask. The digits are the 8 x 8 handwritten scans bundled with scikit-learn
(UCI Optical Recognition of Handwritten Digits). Scans are split once, by `split_scans`: no scan that
is seen by a training picture is ever seen by a test picture. Crops and collages use training scans unless
others are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

PICTURE = 84  # pixels a side of a picture
GRID = 3  # cells a side of a picture
CELL = PICTURE // GRID  # pixels a side of a cell, and of a crop
SIZES = (22, 26)  # pixels of a thing's longer side, both ends included

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 40, 45),
    "orange": (255, 140, 20),
    "yellow": (250, 235, 50),
    "green": (40, 190, 60),
    "cyan": (70, 225, 235),
    "blue": (60, 95, 255),
    "purple": (175, 60, 220),
    "white": (250, 250, 250),
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
KINDS = DIGITS + SHAPES

NOISE = 3.0  # standard deviation of the sensor noise, of 255

_SUPERSAMPLE = 4
_SEEN = [255 if opacity > 25 else 0 for opacity in range(256)]  # what counts for a box
_TEST_SHARE = 4  # one scan in this many is kept for test pictures


@dataclass(frozen=True)
class Scans:
    """Handwritten digits: `pixels` [N, 8, 8] float32 opacity in [0, 1], `digit` [N] and `index` [N] int."""

    pixels: np.ndarray
    digit: np.ndarray
    index: np.ndarray

    def of(self, digit: int) -> np.ndarray:
        """Rows of this set that show `digit`."""
        return np.flatnonzero(self.digit == digit)


@lru_cache(maxsize=1)
def split_scans() -> dict[str, Scans]:
    """The scikit-learn scans as disjoint sets "train" and "test" (every fourth scan of each digit)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = (data.images / 16.0).astype(np.float32)
    rank = np.zeros(len(pixels), dtype=np.int64)
    for digit in range(10):
        rows = np.flatnonzero(data.target == digit)
        rank[rows] = np.arange(len(rows))
    index = np.arange(len(pixels))
    held = rank % _TEST_SHARE == _TEST_SHARE - 1
    return {name: Scans(pixels[keep], data.target[keep], index[keep]) for name, keep in (("train", ~held), ("test", held))}


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corner points of a shape around (0, 0), within [-1, 1]."""
    turns = [2 * pi * k / 48 for k in range(48)]
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0.0, -0.95), (0.98, 0.8), (-0.98, 0.8)]
    if shape == "star":
        spikes = [(-pi / 2 + k * pi / 5, 1.0 if k % 2 == 0 else 0.42) for k in range(10)]
        return [(r * cos(t), r * sin(t)) for t, r in spikes]
    if shape == "cross":
        a, b = 0.95, 0.32
        return [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b),
                (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]  # fmt: skip
    if shape == "heart":
        height = [13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t) for t in turns]
        return [(sin(t) ** 3, -h / 16.5) for t, h in zip(turns, height, strict=True)]
    return [(0.95 * cos(t), 0.95 * sin(t)) for t in turns]  # circle


def _fit(opacity: Image.Image, size: int) -> np.ndarray:
    """Cut the blank margin off and scale so that the longer side is `size` pixels; float32 in [0, 1]."""
    bounds = opacity.point(_SEEN).getbbox()
    cut = opacity.crop(bounds)
    scale = size / max(cut.size)
    shape = (max(3, round(cut.width * scale)), max(3, round(cut.height * scale)))
    return np.asarray(cut.resize(shape, Image.Resampling.BICUBIC), dtype=np.float32) / 255.0


def thing_mask(kind: str, *, size: int, rng: np.random.RandomState, scans: Scans) -> tuple[np.ndarray, int | None]:
    """Draw one thing: opacity [h, w] float32 in [0, 1] with max(h, w) == size, and the scan's index.

    The index is None for a shape. Every draw turns the thing by at most 10 degrees (shapes) or 8 (digits).
    """
    if kind in DIGITS:
        row = int(rng.choice(scans.of(DIGITS.index(kind))))
        scan = Image.fromarray((scans.pixels[row] * 255).astype(np.uint8))
        side = size * _SUPERSAMPLE // 2
        page = Image.new("L", (side + side // 2, side + side // 2))
        page.paste(scan.resize((side, side), Image.Resampling.BICUBIC), (side // 4, side // 4))
        turned = page.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC)
        ink = np.clip(_fit(turned, size) * 1.7 - 0.25, 0.0, 1.0)
        return ink, int(scans.index[row])
    if kind not in SHAPES:
        raise ValueError(f"unknown kind of thing {kind!r}; accepted: {', '.join(KINDS)}")
    side = size * _SUPERSAMPLE
    turn = rng.uniform(-10, 10) * pi / 180
    page = Image.new("L", (side + side // 2, side + side // 2))
    middle, reach = page.width / 2, side / 2
    points = [
        (middle + reach * (x * cos(turn) - y * sin(turn)), middle + reach * (x * sin(turn) + y * cos(turn)))
        for x, y in _outline(kind)
    ]
    ImageDraw.Draw(page).polygon(points, fill=255)
    return np.clip(_fit(page, size), 0.0, 1.0), None


def place_in_cell(mask: np.ndarray, *, rng: np.random.RandomState) -> tuple[int, int]:
    """A random (x, y) pixel offset of a mask inside its cell, at least 1 pixel from the border."""
    height, width = mask.shape
    return int(rng.randint(1, CELL - width)), int(rng.randint(1, CELL - height))


@lru_cache(maxsize=1)
def _blend() -> np.ndarray:
    """Weights [S, 8] that turn 8 values into S pixels without steps."""
    distance = np.abs(np.linspace(0, 7, PICTURE)[:, None] - np.arange(8))
    return np.where(distance < 1, (1 + np.cos(pi * distance)) / 2, 0.0)


def background(count: int, *, rng: np.random.RandomState) -> np.ndarray:
    """Dark textured backgrounds [count, S, S, 3] float32 in 0..255: tint, gradient, blotches and grain."""
    tint = rng.uniform(28, 72, (count, 1, 1, 1)) + rng.uniform(-14, 14, (count, 1, 1, 3))
    axis = np.linspace(-1, 1, PICTURE)
    slope = rng.uniform(-10, 10, (count, 2, 1, 1, 1))
    ramp = slope[:, 0] * axis[None, :, None, None] + slope[:, 1] * axis[None, None, :, None]
    blotches = (_blend() @ rng.uniform(-11, 11, (count, 8, 8)) @ _blend().T)[..., None]
    grain = rng.standard_normal((count, PICTURE, PICTURE, 1)) * 4
    return (tint + ramp + blotches + grain).astype(np.float32)


def shade(colour: str, *, rng: np.random.RandomState) -> np.ndarray:
    """RGB [3] float32 of a colour word, each channel moved by at most 12 of 255."""
    return np.asarray(COLOURS[colour], dtype=np.float32) + rng.uniform(-12, 12, 3).astype(np.float32)


def finish(picture: np.ndarray, *, rng: np.random.RandomState) -> np.ndarray:
    """Add sensor noise and return uint8."""
    return np.clip(picture + rng.standard_normal(picture.shape) * NOISE, 0, 255).astype(np.uint8)


class CutOuts:
    """A bank of single things cut out of nothing: `masks` [N, C, C] uint8 opacity and `kinds` [N] int.

    From it come labelled crops (one thing on its own background) and collages of crops. The bank uses its own
    random draws and one set of scans; it never looks at a scene.
    """

    PAGES = 256  # backgrounds and noise sheets that are drawn once and then reused

    def __init__(self, count: int, *, seed: int, scans: Scans | None = None) -> None:
        scans = split_scans()["train"] if scans is None else scans
        rng = np.random.RandomState(seed)
        self.masks = np.zeros((count, CELL, CELL), dtype=np.uint8)
        self.kinds = np.arange(count) % len(KINDS)
        for row in range(count):
            size = rng.randint(SIZES[0], SIZES[1] + 1)
            mask, _ = thing_mask(KINDS[self.kinds[row]], size=size, rng=rng, scans=scans)
            x, y = place_in_cell(mask, rng=rng)
            self.masks[row, y : y + mask.shape[0], x : x + mask.shape[1]] = mask * 255
        self._pages = background(self.PAGES, rng=rng)
        self._noise = (rng.standard_normal(self._pages.shape) * NOISE).astype(np.float32)

    def collages(
        self, count: int, *, rng: np.random.RandomState, filled: float = 0.6
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pictures of G x G crops: [B, S, S, 3] uint8, colour and kind [B, G, G] (-1: an empty cell).

        Every cell holds a thing with probability `filled`, whatever the others hold.
        """
        rows = rng.randint(len(self.kinds), size=(count, GRID, GRID))
        colours = rng.randint(len(COLOURS), size=(count, GRID, GRID))
        present = rng.uniform(size=(count, GRID, GRID)) < filled
        alpha = self.masks[rows] * (present[..., None, None] / np.float32(255)).astype(np.float32)
        alpha = alpha.transpose(0, 1, 3, 2, 4).reshape(count, PICTURE, PICTURE, 1)
        palette = np.asarray(list(COLOURS.values()), dtype=np.float32)
        shades = palette[colours] + rng.uniform(-12, 12, (count, GRID, GRID, 3)).astype(np.float32)
        ink = np.repeat(np.repeat(shades, CELL, axis=1), CELL, axis=2)
        picture = self._pages[rng.randint(self.PAGES, size=count)]
        picture += (ink - picture) * alpha
        picture += self._noise[rng.randint(self.PAGES, size=count)]
        pixels = np.clip(picture, 0, 255, out=picture).astype(np.uint8)
        return pixels, np.where(present, colours, -1), np.where(present, self.kinds[rows], -1)

    def crops(self, count: int, *, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Single things: pictures [N, C, C, 3] uint8, colour [N] and kind [N]."""
        collages = -(-count // GRID**2)
        pictures, colours, kinds = self.collages(collages, rng=rng, filled=1.1)
        cells = pictures.reshape(collages, GRID, CELL, GRID, CELL, 3).swapaxes(2, 3)
        pixels = cells.reshape(-1, CELL, CELL, 3)
        return pixels[:count], colours.reshape(-1)[:count], kinds.reshape(-1)[:count]
