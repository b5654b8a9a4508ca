"""REFER's refs and instances to rows: every expression once, or named as a problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lavis.common.errors import ConfigError
from lavis.datasets.convert import refer

IMAGES = {
    7: {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "width": 100, "height": 80},
    9: {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 100, "height": 80},
}
ANNOTATIONS = {
    1: {"id": 1, "image_id": 7, "bbox": [10.25, 5, 30, 40.5], "segmentation": [[1, 2, 3, 4, 5, 6]]},
    2: {"id": 2, "image_id": 9, "bbox": [0, 0, 99, 79], "segmentation": {"counts": "abc", "size": [80, 100]}},
}
SPLITS = ("train", "val")


def ref(ann_id: Any = 1, image_id: Any = 7, *, split: str = "train", sentences: Any = None, **more: Any) -> dict[str, Any]:
    given = (
        sentences
        if sentences is not None
        else [{"sent": "left cup", "raw": "LEFT cup!", "sent_id": 3, "tokens": ["left", "cup"]}]
    )
    name = f"COCO_train2014_{image_id:012d}_{ann_id}.jpg" if isinstance(image_id, int) else "x.jpg"
    row = {"ref_id": 5, "ann_id": ann_id, "image_id": image_id, "split": split, "file_name": name, "sentences": given}
    return {**row, **more}


def convert(*refs: dict[str, Any], images: Any = IMAGES, annotations: Any = ANNOTATIONS) -> refer.Conversion:
    return refer.convert(list(refs), images, annotations, splits=SPLITS)


def test_a_row_for_each_expression() -> None:
    sentences = [
        {"sent": "left cup", "raw": "LEFT cup!"},
        {"sent": "  ", "raw": "Die Tasse à gauche"},
        {"raw": "tasse"},
        {"sent": "the cup "},
    ]
    done = convert(ref(sentences=sentences), ref(2, 9, split="val"))
    row = {"image": "COCO_train2014_000000000007.jpg", "image_id": "7", "bbox": [10.25, 5, 30, 40.5]}
    captions = ["left cup", "Die Tasse à gauche", "tasse", "the cup"]
    assert done.rows["train"] == [{**row, "caption": caption} for caption in captions]
    assert [row["image_id"] for row in done.rows["val"]] == ["9"]
    assert (dict(done.refs), done.sentences, len(done.problems)) == ({"train": 1, "val": 1}, 5, 0)


@pytest.mark.parametrize(
    ("bad", "kind", "named"),
    [
        (ref(99), "annotation absent from instances", "ref 5 of train (ann_id 99): 1 expressions left out"),
        (ref([1]), "annotation absent from instances", "ann_id [1]"),
        (ref(1, 8), "image absent from instances", "image_id 8"),
        (ref(2, 7), "annotation of another image", "9, the ref is of 7"),
        (ref(file_name="COCO_train2014_000000000009_1.jpg"), "file names that differ", "000000000009_1.jpg' in refs"),
        (ref(sentences=[]), "ref without sentences", "ref 5 of train"),
        (ref(sentences="a cup"), "ref without sentences", "ref 5 of train"),
        (ref(sentences=[{"sent": " ", "raw": ""}]), "empty sentence", "sentence 0 of ref 5"),
        (ref(sentences=[{"tokens": []}]), "empty sentence", "sentence 0 of ref 5"),
    ],
)
def test_what_cannot_be_a_row_is_named(bad: dict[str, Any], kind: str, named: str) -> None:
    done = convert(ref(), bad, ref(2, 9, split="val"))
    assert done.problems.counts == {kind: 1} and named in next(done.problems.lines())
    assert [len(rows) for rows in done.rows.values()] == [1, 1], "the others are kept"


@pytest.mark.parametrize(
    "bbox",
    [
        None,
        [],
        [1, 2, 3],
        [1, 2, 0, 5],
        [1, 2, 3, -4],
        [1, 2, float("nan"), 4],
        "box",
        [200, 5, 9, 9],
        [10, 5, 0.5, 9],
        [[1, 2, 3, 4]],
    ],
)
def test_boxes_without_area_are_named(bbox: Any) -> None:
    done = convert(ref(), ref(2, 9, split="val"), annotations={**ANNOTATIONS, 2: {"id": 2, "image_id": 9, "bbox": bbox}})
    assert done.problems.counts == {"box without area": 1} and done.rows["val"] == []
    assert f"{bbox} in a picture of 100 x 80" in next(done.problems.lines())


def test_a_split_without_refs_is_named() -> None:
    assert list(convert(ref()).problems.lines()) == ["1 split without refs: val"]


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("COCO_train2014_000000581857_16.jpg", "COCO_train2014_000000581857.jpg"),
        ("COCO_train2014_000000581857.jpg", "COCO_train2014_000000581857.jpg"),
        ("COCO_val2014_000000000012_1719310.png", "COCO_val2014_000000000012.png"),
        ("a_3.jpg", "a_3.jpg"),
    ],
)
def test_picture_names(name: str, picture: str) -> None:
    assert refer.picture_name(name) == picture


def test_instances_without_file_names_take_those_of_the_refs() -> None:
    images = {7: {"id": 7}, 9: {"id": 9}}
    assert convert(ref(16 - 15), images=images).rows["train"][0]["image"] == "COCO_train2014_000000000007.jpg"


def test_pictures_are_found_in_folders(tmp_path: Path) -> None:
    (tmp_path / "train2014").mkdir()
    (tmp_path / "train2014" / IMAGES[7]["file_name"]).touch()
    done = convert(ref(), ref(2, 9, split="val"), ref(2, 9, split="val"))
    refer.find_pictures(done, refer.picture_paths(tmp_path))
    assert done.rows["train"][0]["image"] == "train2014/COCO_train2014_000000000007.jpg"
    assert {row["image"] for row in done.rows["val"]} == {"train2014/COCO_train2014_000000000009.jpg"}, "kept, where it belongs"
    assert list(done.problems.lines()) == [
        "1 picture absent from the folder: COCO_train2014_000000000009.jpg (2 expressions, kept)"
    ]
    with pytest.raises(ConfigError, match="no folder of pictures"):
        refer.picture_paths(tmp_path / "gone")


def test_splits_of_datasets() -> None:
    assert refer.expected_splits("refcoco+", "unc") == ("train", "val", "testA", "testB")
    assert refer.expected_splits("refcocog", "google") == ("train", "val")
    for dataset, split_by, message in (("refcoc", "unc", "Did you mean 'refcoco'"), ("refcocog", "unc", "Accepted: google, umd")):
        with pytest.raises(ConfigError, match=message):
            refer.expected_splits(dataset, split_by)
