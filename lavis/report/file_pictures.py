"""PNGs of clouds and pictures with their boxes, for the command line; no display is needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from lavis.common.errors import ConfigError
from lavis.common.files import replacing
from lavis.datasets.cloud_geometry import with_colours
from lavis.report.cloud_pictures import render_cloud
from lavis.report.gallery_pictures import AZIMUTH, spread

MAX_DRAWN = 100_000  # points of one picture
SMALLEST = 480  # pixels of the longer side that a picture is enlarged to
COLOURS = ("#ffd84a", "#4cc9f0", "#ff6b6b", "#7ae582", "#f49cff", "#ff9f43")
CASING = "#101218"


def cloud_picture(
    points: ArrayLike, *, boxes: ArrayLike = (), up: str = "z", size: int = 720, azimuth: float = AZIMUTH, elevation: float = 30.0
) -> Image.Image:
    """Points [P, 3], or [P, 6] with red, green and blue in 0..1 or 0..255, as a picture of `size` pixels a side, with boxes
    [..., 6] (cx, cy, cz, dx, dy, dz). Angles in degrees. ValueError as of `render_cloud`."""
    cloud = with_colours(points)
    wires = np.asarray(boxes, dtype=np.float64).reshape(-1, 6)
    cloud = cloud[spread(cloud[:, :3], wires, MAX_DRAWN)]
    colours = cloud[:, 3:] if cloud.shape[1] == 6 else None
    return render_cloud(cloud[:, :3], boxes=wires, colours=colours, up=up, size=size, azimuth=azimuth, elevation=elevation)


def boxes_picture(image: Image.Image, boxes: Sequence[Sequence[float]], labels: Sequence[str] = ()) -> Image.Image:
    """An RGB copy of the picture with boxes, left, top, right, bottom in pixels of it, each with its label; a small picture is
    enlarged. ValueError names a box without an area in the picture, or says that labels are not as many as boxes."""
    if labels and len(labels) != len(boxes):
        raise ValueError(f"{len(labels)} labels for {len(boxes)} boxes; accepted: one per box, or none")
    for box in boxes:
        if not (box[0] < box[2] and box[1] < box[3] and box[0] < image.width and box[1] < image.height and min(box[2:]) > 0):
            raise ValueError(
                f"box {list(box)} (x1, y1, x2, y2) has no area in a picture of {image.width} x {image.height} pixels"
            )
    scale = max(1, -(-SMALLEST // max(image.size)))
    canvas = image.convert("RGB").resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    width = max(2, round(max(canvas.size) / 240))
    font = ImageFont.load_default(max(13, round(max(canvas.size) / 42)))
    corners = [[scale * value for value in box] for box in boxes]
    for number, (x1, y1, x2, y2) in enumerate(corners):
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=CASING, width=width + 2)
        draw.rectangle((x1, y1, x2, y2), outline=COLOURS[number % len(COLOURS)], width=width)
    for number, (x1, y1, _, _) in enumerate(corners if labels else []):
        _label(draw, labels[number], (x1, y1), COLOURS[number % len(COLOURS)], font=font, size=canvas.size)
    return canvas


def _label(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    colour: str,
    *,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """A text on a plate above the box whose left upper corner is given, moved into the picture."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 10, bottom - top + 8
    x = min(max(corner[0], 0), max(size[0] - width, 0))
    y = corner[1] - height if corner[1] >= height else corner[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 5 - left, y + 4 - top), text, fill=CASING, font=font)


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a picture whole or not at all; the path. ConfigError for a name that is not of a PNG."""
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ConfigError(f"{target}: the picture is a PNG; accepted: a name that ends in .png")
    with replacing(target, durable=False) as stream:
        image.save(stream, format="PNG")
    return target
