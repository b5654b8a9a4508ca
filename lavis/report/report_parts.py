"""Pictures and charts of the report page as plain data: embedded images, SVG paths in shares of the plot."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from PIL import Image

Sample = Mapping[str, Any]
Points = Sequence[tuple[float, float]]

MAX_SIDE = 480  # pixels of an embedded picture's longer side
PIXEL_ART = 160  # up to this side a picture is kept lossless and shown with hard pixels
MAX_POINTS = 300  # of one drawn line


def picture(sample: Sample, *, max_side: int = MAX_SIDE) -> dict[str, Any]:
    """A sample's picture to embed, its longer side at most `max_side` pixels: {source: data URL, width, height (as it was),
    hard_pixels, box: [x, y, w, h] in shares, or None}.

    ValueError for a sample without a picture or with a box that is not 4 numbers.
    """
    given = sample.get("image", sample.get("image_path"))
    if given is None:
        raise ValueError(f"sample {sorted(sample)} has neither image nor image_path")
    if isinstance(given, (str, os.PathLike)):
        with Image.open(given) as file:
            image = file.convert("RGB")
    else:
        image = given.convert("RGB")
    width, height = image.size
    box = None
    if sample.get("box_xyxy") is not None:
        if len(sample["box_xyxy"]) != 4:
            raise ValueError(f"box_xyxy {sample['box_xyxy']!r} is not 4 numbers")
        x1, y1, x2, y2 = map(float, sample["box_xyxy"])
        box = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
    hard = max(width, height) <= PIXEL_ART
    if not hard:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return {
        "source": data_url(image, "PNG" if hard else "JPEG"),
        "width": width,
        "height": height,
        "hard_pixels": hard,
        "box": box,
    }


def data_url(image: Image.Image, kind: str) -> str:
    """An image as an address that holds it, as PNG, JPEG or WEBP."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"optimize": True} if kind == "PNG" else {"quality": 85}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def grouped(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items put together by their "group" (default ""), in the order of first sight: [{name, members}]."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        found.setdefault(str(item.get("group", "")), []).append(item)
    return [{"name": name, "members": members} for name, members in found.items()]


def charts(curves: Mapping[str, Points], *, exact: Collection[str] = ()) -> list[dict[str, Any]]:
    """One chart per "group / title" of the names "group / title / line": {group, title, lines, x_ticks, y_ticks}.

    "title / line" has the group "", "line" the title "Loss" as well. A line is {name, last, raw, smooth}: its last
    smoothed value and two SVG paths in a plot of 100 x 100, y down. A tick is {at: share of the axis from the left or
    the bottom, label}. Points that are not finite are left out. Curves in `exact` have no noise: they are not smoothed, their raw
    path is empty, and what holds its value for a while is drawn as steps (`is_stepwise`).
    """
    found: dict[tuple[str, str], dict[str, Points]] = {}
    unsmoothed: set[tuple[str, str]] = set()
    for name, points in curves.items():
        *group, title, line = ["Loss", *name.split(" / ")][-max(2, name.count(" / ") + 1) :]
        kept = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        if kept:
            found.setdefault((" / ".join(group), title), {})[line] = sorted(kept)
            if name in exact:
                unsmoothed.add((" / ".join(group), title))
    return [
        {"group": group, **_chart(title, lines, exact=(group, title) in unsmoothed)} for (group, title), lines in found.items()
    ]


def _chart(title: str, lines: Mapping[str, Points], *, exact: bool) -> dict[str, Any]:
    smooth = {name: list(points) if exact else smoothed(points) for name, points in lines.items()}
    left = min(points[0][0] for points in lines.values())
    right = max(points[-1][0] for points in lines.values())
    x_ticks = [tick for tick in _nice_ticks(left, right, count=5) if left <= tick <= right]
    # The first steps of a loss may be far above all others: the axis ends where 99 % of the points do.
    heights = sorted(y for points in lines.values() for _, y in points)
    low = min(0.0, *(y for points in smooth.values() for _, y in points))
    share = 1.0 if exact else 0.99
    high = max(heights[int(share * (len(heights) - 1))], *(points[-1][1] for points in smooth.values()))
    y_ticks = _nice_ticks(low, high, count=4)
    low, high = y_ticks[0], y_ticks[-1]
    scale = (left, (right - left) or 1.0, low, (high - low) or 1.0)
    return {
        "title": title,
        "lines": [
            {
                "name": name,
                "last": smooth[name][-1][1],
                "raw": "" if exact else _path(points, scale),
                "smooth": _path(stairs(points) if exact and is_stepwise(points) else smooth[name], scale),
            }
            for name, points in lines.items()
        ],
        "x_ticks": [{"at": (tick - scale[0]) / scale[1], "label": f"{tick:g}"} for tick in x_ticks],
        "y_ticks": [{"at": (tick - scale[2]) / scale[3], "label": f"{tick:g}"} for tick in y_ticks],
    }


def smoothed(points: Points) -> list[tuple[float, float]]:
    """Moving averages over up to a twentieth of the points; at the start, where a loss falls fast, over fewer."""
    reach = max(1, len(points) // 40)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    averaged = []
    for i, (x, _) in enumerate(points):
        before, after = max(i - reach, 0), min(i + min(reach, i) + 1, len(points))
        averaged.append((x, (sums[after] - sums[before]) / (after - before)))
    return averaged


def is_stepwise(points: Points) -> bool:
    """Whether a series holds its value more often than it changes it, as a rate that is set once an epoch."""
    held = sum(before == after for (_, before), (_, after) in pairwise(points))
    return len(points) > 2 and 2 * held > len(points) - 1


def stairs(points: Points) -> list[tuple[float, float]]:
    """The corners of a series that holds each value until the next one: where it changes the line goes up or down at once."""
    corners = [points[0]]
    for (_, before), (x, after) in pairwise(points):
        if before != after:
            corners += [(x, before), (x, after)]
    return [*corners, points[-1]]


def _path(points: Points, scale: tuple[float, float, float, float]) -> str:
    left, width, low, height = scale
    step = max(1, math.ceil(len(points) / MAX_POINTS))
    kept = [*points[::step], points[-1]]
    places = [f"{100 * (x - left) / width:.2f} {100 - 100 * (y - low) / height:.2f}" for x, y in kept]
    return "M" + "L".join(places)


def _nice_ticks(low: float, high: float, *, count: int) -> list[float]:
    """About `count` round numbers that enclose [low, high]."""
    if high <= low:
        high = low + 1.0
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
