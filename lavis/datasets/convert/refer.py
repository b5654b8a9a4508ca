"""REFER's downloads to the rows that RegionBLIP reads: `refs(<split by>).p` and `instances.json` -> `Refcoco_<split>.json`.

A ref names an annotation of an image and holds sentences: {"ann_id", "image_id", "file_name", "split", "sentences":
[{"sent", "raw", ...}]}. `instances.json` is COCO's: images with file names and sizes, annotations with an xywh `bbox`
in pixels. A row per sentence comes out: {"image", "image_id": str, "bbox": [x, y, w, h], "caption"}. Layout after REFER
(code lichengunc/refer) and RegionBLIP (arXiv 2308.02299, code mightyzau/RegionBLIP).
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis.common.errors import ConfigError, listed, unknown
from lavis.common.files import read_json, replacing
from lavis.datasets import geometry
from lavis.datasets.convert.problems import Problems
from lavis.datasets.pickles import as_text, read_pickle

Row = dict[str, Any]

# dataset -> split by -> the splits its refs are of
SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "refcoco": {"unc": ("train", "val", "testA", "testB"), "google": ("train", "val", "test")},
    "refcoco+": {"unc": ("train", "val", "testA", "testB")},
    "refcocog": {"google": ("train", "val"), "umd": ("train", "val", "test")},
}
TEST_PARTS = ("testA", "testB")  # Refcoco_test.json holds both, where a dataset has them
_SUFFIX = re.compile(r"^(.*_\d{12})_\d+(\.\w+)$")  # COCO_train2014_000000581857_16.jpg: the picture, then which object


@dataclass
class Conversion:
    """Rows by split, and what was met on the way."""

    rows: dict[str, list[Row]]
    refs: Counter[str] = field(default_factory=Counter)  # read, by split
    sentences: int = 0  # read
    problems: Problems = field(default_factory=Problems)


def picture_name(file_name: str) -> str:
    """The picture's file name of a ref's, which has the object's number behind it: `a_000000000012_3.jpg` is
    `a_000000000012.jpg`."""
    return _SUFFIX.sub(r"\1\2", file_name)


def expected_splits(dataset: str, split_by: str) -> tuple[str, ...]:
    """The splits of a dataset. ConfigError names what is accepted."""
    if dataset not in SPLITS:
        raise ConfigError(unknown("dataset of REFER", dataset, SPLITS))
    if split_by not in SPLITS[dataset]:
        raise ConfigError(unknown(f"split of {dataset}", split_by, SPLITS[dataset]))
    return SPLITS[dataset][split_by]


def read_refs(path: Path, splits: tuple[str, ...]) -> list[Row]:
    """The refs of a pickle, which is read as data. ValueError where it is something else, or of other splits."""
    refs = as_text(read_pickle(path))
    if not isinstance(refs, list) or not refs or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{path}: holds {_kind(refs)}; accepted: a list of refs")
    found = {str(ref.get("split")) for ref in refs}
    if not found <= set(splits):
        raise ValueError(
            f"{path}: its refs are of the splits {listed(found)}; accepted: {', '.join(splits)}. Is it another file?"
        )
    return refs


def read_instances(path: Path) -> tuple[dict[Any, Row], dict[Any, Row]]:
    """{image id: image} and {annotation id: annotation} of a COCO file. ValueError where it is something else."""
    content = read_json(path)
    tables = []
    for key in ("images", "annotations"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "id" in row for row in rows):
            raise ValueError(f"{path}: has no list {key!r} of rows with an id; accepted: COCO's instances.json")
        tables.append({row["id"]: row for row in rows})
    return tables[0], tables[1]


def picture_paths(folder: Path) -> dict[str, str]:
    """{file name: its path from `folder`, with slashes} of the files in a folder and below it. ConfigError for no folder."""
    if not folder.is_dir():
        raise ConfigError(f"no folder of pictures at {folder}")
    paths: dict[str, str] = {}
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        base = Path(root).relative_to(folder).as_posix()
        for name in names:
            paths.setdefault(name, name if base == "." else f"{base}/{name}")
    return paths


def convert(refs: list[Row], images: Mapping[Any, Row], annotations: Mapping[Any, Row], *, splits: tuple[str, ...]) -> Conversion:
    """The rows of refs. What cannot become a row is a problem: an annotation or image that is absent, one that belongs to
    another image, a box without area in the picture, a sentence without text."""
    done = Conversion({split: [] for split in splits})
    for number, ref in enumerate(refs):
        where = f"ref {ref.get('ref_id', f'number {number}')} of {ref['split']} (ann_id {ref.get('ann_id')})"
        done.refs[ref["split"]] += 1
        captions = list(_captions(ref, where, done))
        problem = _problem(ref, images, annotations)
        if problem:
            kind, _, detail = problem.partition(": ")
            left_out = f"{where}: {len(captions)} expressions left out"
            done.problems.add(kind, f"{left_out}; {detail}" if detail else left_out)
            continue
        image = images[ref["image_id"]]
        name = image.get("file_name") or picture_name(ref["file_name"])
        row = {"image": name, "image_id": str(ref["image_id"]), "bbox": annotations[ref["ann_id"]]["bbox"]}
        done.rows[ref["split"]].extend({**row, "caption": caption} for caption in captions)
    for split in splits:
        if not done.refs[split]:
            done.problems.add("split without refs", split)
    return done


def _captions(ref: Row, where: str, done: Conversion) -> Iterator[str]:
    """The text of each sentence: `sent`, which is lower-case and clean, or where that is blank `raw`."""
    sentences = ref.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        done.problems.add("ref without sentences", where)
        return
    done.sentences += len(sentences)
    for place, sentence in enumerate(sentences):
        texts = [sentence.get(key) for key in ("sent", "raw")] if isinstance(sentence, dict) else [sentence]
        text = next((text for text in texts if isinstance(text, str) and text.strip()), None)
        if text is None:
            done.problems.add("empty sentence", f"sentence {place} of {where}")
        else:
            yield text.strip()


def _problem(ref: Row, images: Mapping[Any, Row], annotations: Mapping[Any, Row]) -> str:
    """Why a ref cannot become rows, `<kind>: <detail>` or `<kind>`; "" where it can."""
    annotation, image = _at(annotations, ref.get("ann_id")), _at(images, ref.get("image_id"))
    if annotation is None:
        return "annotation absent from instances"
    if image is None:
        return f"image absent from instances: image_id {ref.get('image_id')}"
    if annotation.get("image_id", ref["image_id"]) != ref["image_id"]:
        return f"annotation of another image: {annotation['image_id']}, the ref is of {ref['image_id']}"
    named = picture_name(str(ref.get("file_name") or ""))
    name = image.get("file_name") or named
    if not name or (named and Path(named).name != Path(name).name):
        return f"file names that differ: {image.get('file_name')!r} in instances, {ref.get('file_name')!r} in refs"
    try:
        box = geometry.xywh_to_xyxy(annotation.get("bbox") or ())
        if box.shape != (4,) or geometry.is_empty(box):
            raise ValueError("no area")
        if image.get("width") and image.get("height"):
            geometry.pixel_boxes_to_normalised(box, image["width"], image["height"])
    except (TypeError, ValueError):
        size = f"{image.get('width')} x {image.get('height')}"
        return f"box without area: {annotation.get('bbox')} in a picture of {size}"
    return ""


def find_pictures(done: Conversion, paths: Mapping[str, str]) -> None:
    """Put the folder of each picture before its name, and name pictures that are not there. Their rows stay, with the
    folder where most pictures are: an evaluation then counts them as unreadable, not at all."""
    folders: Counter[str] = Counter()
    absent: dict[str, int] = {}
    rows = [row for split in done.rows.values() for row in split]
    for row in rows:
        path = paths.get(Path(row["image"]).name)
        if path is None:
            absent[row["image"]] = absent.get(row["image"], 0) + 1
        else:
            folders[path.rpartition("/")[0]] += 1
            row["image"] = path
    usual = folders.most_common(1)[0][0] if folders else ""
    for row in rows:
        if row["image"] in absent and usual:
            row["image"] = f"{usual}/{Path(row['image']).name}"
    for name, count in absent.items():
        done.problems.add("picture absent from the folder", f"{name} ({count} expressions, kept)")


def write(done: Conversion, folder: Path) -> list[tuple[Path, int]]:
    """Write `Refcoco_<split>.json` for each split that has rows, and `Refcoco_test.json` of testA and testB together;
    (path, number of rows) of each."""
    files = {split: rows for split, rows in done.rows.items() if rows}
    if any(part in files for part in TEST_PARTS):
        files["test"] = [row for part in TEST_PARTS for row in done.rows[part]]
    written = []
    for split, rows in files.items():
        path = folder / f"Refcoco_{split}.json"
        with replacing(path) as stream:
            stream.write(json.dumps(rows, ensure_ascii=False).encode())
        written.append((path, len(rows)))
    return written


def _at(table: Mapping[Any, Row], key: Any) -> Row | None:
    return table.get(key) if isinstance(key, (int, str)) else None


def _kind(value: Any) -> str:
    return f"{len(value)} of {type(value).__name__}" if hasattr(value, "__len__") else f"a {type(value).__name__}"
