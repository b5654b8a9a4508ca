"""Regions cut out of their pictures, for a model that captions whole pictures: the baseline beside RegionBLIP.

RefCOCO's rows {"image", "image_id", "bbox": [x, y, w, h] in pixels, "caption"} become a picture per region,
`images/<image_id>_bbox_<x1>_<y1>_<x2>_<y2>.jpg`, and rows {"image", "caption": [text, ...], "image_id"}, where the id is
the picture's name without suffix. Layout after RegionBLIP (code mightyzau/RegionBLIP,
tools/prepare_blip2_zeroshot_RefcocoCrop.py). What differs: boxes are clamped to the picture, and a region that cannot be
cut out keeps its row, so that an evaluation counts it as unreadable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from lavis.common.files import read_json, replacing
from lavis.datasets import geometry
from lavis.datasets.convert.batch import BadItem, Note
from lavis.datasets.convert.problems import Problems

Row = dict[str, Any]
Box = tuple[int, int, int, int]

ANNOTATION = "RefCOCO_test_crop.json"
QUALITY = 95  # of JPEG: OpenCV's default, with which the published tool writes


@dataclass
class Job:
    """A picture and the regions to be cut out of it: {file name of the crop: x1, y1, x2, y2 in pixels}."""

    source: Path
    output: Path
    regions: dict[str, Box] = field(default_factory=dict)


def read_regions(path: Path, images: Path, output: Path, problems: Problems) -> tuple[list[Row], dict[str, Job]]:
    """The rows of the crops, a region of several expressions once, and a job for each picture. A row that is malformed, or
    that gives a region of another picture an id in use, is a problem. ValueError for a file that is no list."""
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a list of rows")
    rows: dict[str, Row] = {}
    jobs: dict[str, Job] = {}
    for number, row in enumerate(content):
        where = f"row {number}"
        try:
            image, caption, name, box = _parse(row)
        except ValueError as error:
            problems.add("malformed row", f"{where}: {error}")
            continue
        job = jobs.setdefault(image, Job(images / image, output / "images"))
        if name in rows and name not in job.regions:
            problems.add("region of another picture with an id in use", f"{where}: {name} of {image}")
            continue
        job.regions[name] = box
        held = rows.setdefault(name, {"image": name, "caption": [], "image_id": Path(name).stem})
        held["caption"].append(caption)
    return list(rows.values()), {image: job for image, job in jobs.items() if job.regions}


def _parse(row: Any) -> tuple[str, str, str, Box]:
    """(picture, caption, file name of the crop, box) of a row. ValueError says what is wrong."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{str(row)[:60]!r} is not an object of keys")
    for key in ("image", "caption"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{key} {row.get(key)!r} is not text")
    image_id = row.get("image_id")
    if isinstance(image_id, bool) or not isinstance(image_id, (str, int)) or "/" in str(image_id):
        raise ValueError(f"image_id {image_id!r} is no name")
    try:
        box = geometry.xywh_to_xyxy(row.get("bbox") or ()).reshape(4)
    except ValueError as error:
        raise ValueError(f"bbox {row.get('bbox')!r} is not 4 numbers") from error
    x1, y1, x2, y2 = (int(value) for value in geometry.truncate(box))
    return row["image"], row["caption"], f"{image_id}_bbox_{x1}_{y1}_{x2}_{y2}.jpg", (x1, y1, x2, y2)


def prepare(job: Job) -> list[Note]:
    """Cut the regions out of a picture and write them. BadItem for a picture that cannot be read, and, when all other
    regions are written, for regions of no area in it."""
    if not job.source.is_file():
        raise BadItem(f"missing picture: {job.source}, {len(job.regions)} regions")
    try:
        with Image.open(job.source) as file:
            picture = file.convert("RGB")
    except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
        raise BadItem(f"broken picture: {job.source}, {len(job.regions)} regions ({type(error).__name__}: {error})") from error
    empty = []
    for name, box in job.regions.items():
        inside = geometry.clamp(box, *picture.size)
        if geometry.is_empty(inside):
            empty.append(name)
            continue
        with replacing(job.output / name, durable=False) as stream:
            left, top, right, bottom = (int(value) for value in inside)
            picture.crop((left, top, right, bottom)).save(stream, format="JPEG", quality=QUALITY)
    if empty:
        raise BadItem(f"region without area in its picture: {', '.join(empty)}")
    return []


def is_prepared(job: Job) -> bool:
    """Whether all regions of a picture are there, and none is an empty file."""
    paths = [job.output / name for name in job.regions]
    return all(path.is_file() and path.stat().st_size > 0 for path in paths)


def write_rows(rows: list[Row], output: Path) -> Path:
    """Write the annotation of the crops. ValueError for no rows."""
    if not rows:
        raise ValueError(f"no regions to write to {output / ANNOTATION}")
    with replacing(output / ANNOTATION) as stream:
        stream.write(json.dumps(rows).encode())
    return output / ANNOTATION
