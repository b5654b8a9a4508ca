"""COCO caption files, which hold the references of caption metrics: reading, checking and writing them.

Format: {"images": [{"id"}], "annotations": [{"image_id", "id", "caption"}]}, as pycocotools reads it and as the
converters of RegionBLIP (code mightyzau/RegionBLIP, tools/prepare_regionblip_eval_*.py) write it.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lavis.datasets.cloud_geometry import object_region_id
from lavis.datasets.datasets.cap3d import read_lines
from lavis.datasets.geometry import region_id
from lavis.evaluation.files import read_json, write_text

Id = Any  # text or int


def build_ground_truth(
    rows: Iterable[tuple[Id, str]], path: str | os.PathLike[str], *, first: int = 0, image_per_row: bool = False
) -> dict[str, Any]:
    """Write (image id, caption) rows as a COCO caption file and return its content.

    Every caption becomes an annotation, empty ones too, numbered from `first` in the order of the rows; every id is
    an image once, in the order of its first row, or once per row. ValueError for no rows at all.
    """
    annotations = [{"image_id": key, "id": index, "caption": text} for index, (key, text) in enumerate(rows, first)]
    if not annotations:
        raise ValueError(f"no captions to write to {os.fspath(path)}")
    ids = [row["image_id"] for row in annotations]
    images = [{"id": key} for key in (ids if image_per_row else dict.fromkeys(ids))]
    content = {"images": images, "annotations": annotations}
    write_text(json.dumps(content), path)
    return content


def published_path(annotation: str | os.PathLike[str]) -> Path:
    """Where the published converters put the ground truth of an annotation: `<stem>__jianchong.json` beside it."""
    source = Path(annotation)
    return source.with_name(f"{source.stem}__jianchong.json")


def build_refercoco_ground_truth(annotation: str | os.PathLike[str], path: str | os.PathLike[str]) -> dict[str, Any]:
    """RefCOCO rows {"image_id", "bbox": [x, y, w, h], "caption"} -> COCO caption file of regions at `path`.

    A region's id is `<image_id>_box_<x>_<y>_<w>_<h>`. ValueError names the file and the row (from 0) that is not
    one.
    """
    rows = _rows(annotation, ids=("image_id",), text="caption", others=("bbox",))
    return build_ground_truth([_region(row, where) for where, row in rows], path)


def build_scanrefer_ground_truth(annotation: str | os.PathLike[str], path: str | os.PathLike[str]) -> dict[str, Any]:
    """ScanRefer rows {"scene_id", "object_id", "description"} -> COCO caption file of objects at `path`.

    An object's id is `<scene_id>_<object_id>`; annotations count from 1. ValueError names the file and the row (from 0)
    that is not one.
    """
    rows = _rows(annotation, ids=("scene_id", "object_id"), text="description")
    captions = [(object_region_id(row["scene_id"], row["object_id"]), row["description"]) for _, row in rows]
    return build_ground_truth(captions, path, first=1)


def build_objaverse_ground_truth(annotation: str | os.PathLike[str], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Cap3D lines `<object id>,<caption>` -> COCO caption file of objects at `path`.

    As published, annotations count from 1 and `images` lists an object once per line. ValueError names the file and
    the line (from 1) that is not one.
    """
    captions = []
    for number, object_id, caption in read_lines(annotation):
        if not object_id or caption is None:
            raise ValueError(f"{os.fspath(annotation)}, line {number}: {object_id[:80]!r} is not <object id>,<caption>")
        captions.append((object_id, caption))
    return build_ground_truth(captions, path, first=1, image_per_row=True)


def build_crop_ground_truth(annotation: str | os.PathLike[str], path: str | os.PathLike[str], *, seed: int) -> dict[str, Any]:
    """Rows {"image_id", "caption": [text, ...]} of cropped regions -> COCO caption file of them at `path`.

    As published, the rows are shuffled with `seed` and annotations count from 1. ValueError names the file and the row
    (from 0) that is not one.
    """
    rows = read_json(annotation)
    if not isinstance(rows, list):
        raise ValueError(f"{os.fspath(annotation)} holds a {type(rows).__name__}; expected a list of rows")
    for index, row in enumerate(rows):
        captions = row.get("caption") if isinstance(row, Mapping) else None
        good = isinstance(captions, list) and captions and all(isinstance(text, str) for text in captions)
        if not good or not isinstance(row.get("image_id"), (str, int)):
            expected = '{"image_id": text, "caption": [text, ...]}'
            raise ValueError(f"{os.fspath(annotation)}, row {index}: {str(row)[:80]!r} is not a row {expected}")
    random.Random(seed).shuffle(rows)
    return build_ground_truth([(row["image_id"], text) for row in rows for text in row["caption"]], path, first=1)


def _rows(
    annotation: str | os.PathLike[str], *, ids: Sequence[str], text: str, others: Sequence[str] = ()
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, row) of a JSON list of rows, each with `ids` (texts or ints), a `text` and `others`."""
    content = read_json(annotation)
    if not isinstance(content, list):
        raise ValueError(f"{os.fspath(annotation)} holds a {type(content).__name__}; expected a list of rows")
    keys = (*ids, *others, text)
    for index, row in enumerate(content):
        where = f"{os.fspath(annotation)}, row {index}"
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}: {str(row)[:80]!r} is not a row {{{', '.join(keys)}}}")
        missing = [key for key in keys if key not in row]
        if missing:
            raise ValueError(f"{where}: no {' and no '.join(missing)}; it has {', '.join(map(str, row)) or 'no keys'}")
        if not isinstance(row[text], str):
            raise ValueError(f"{where}: {text} {row[text]!r} is not text")
        for key in ids:
            if isinstance(row[key], bool) or not isinstance(row[key], (str, int)):
                raise ValueError(f"{where}: {key} {row[key]!r} is neither text nor an int")
        yield where, row


def _region(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """(region id, caption) of one RefCOCO row."""
    try:
        return region_id(row["image_id"], row["bbox"]), row["caption"]
    except ValueError as error:
        raise ValueError(f"{where}: bbox: {error}") from error


def read_references(ground_truth: Mapping[str, Any] | str | os.PathLike[str]) -> dict[Id, list[str]]:
    """{image id: its captions} of a COCO caption file or its content, in the file's order.

    ValueError for another layout, an annotation of an unlisted image, or an image without any annotation.
    """
    where, content = "ground truth", cast(Any, ground_truth)
    if isinstance(ground_truth, (str, os.PathLike)):
        where, content = f"ground truth {os.fspath(ground_truth)}", read_json(ground_truth)
    try:
        references: dict[Id, list[str]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            if annotation["image_id"] not in references:
                raise ValueError(f"{where}: annotation of image {annotation['image_id']!r}, which it does not list")
            if not isinstance(annotation["caption"], str):
                raise ValueError(f"{where}: caption {annotation['caption']!r} of image {annotation['image_id']!r}")
            references[annotation["image_id"]].append(annotation["caption"])
    except (KeyError, TypeError) as error:
        expected = '{"images": [{"id"}], "annotations": [{"image_id", "id", "caption"}]}'
        raise ValueError(f"{where} is not a COCO caption file {expected}: {error!r}") from error
    bare = [key for key, captions in references.items() if not captions]
    if bare or not references:
        raise ValueError(f"{where}: no caption for {some(bare)}" if bare else f"{where} lists no image")
    return references


def some(ids: Iterable[Id], *, limit: int = 5) -> str:
    """A few ids for a message: `'a', 'b', ... (12 in all)`."""
    listed = list(ids)
    return ", ".join(map(repr, listed[:limit])) + (f", ... ({len(listed)} in all)" if len(listed) > limit else "")
