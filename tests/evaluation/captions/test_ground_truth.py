"""COCO caption files: written as published, refused when they are something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavis.evaluation.captions.ground_truth import build_ground_truth, read_references, some


def test_layout(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "truth.json"
    content = build_ground_truth(iter([("b", "one"), (3, ""), ("b", "two\nlines é")]), path)
    assert json.loads(path.read_text(encoding="utf-8")) == content
    assert content == {
        "images": [{"id": "b"}, {"id": 3}],
        "annotations": [
            {"image_id": "b", "id": 0, "caption": "one"},
            {"image_id": 3, "id": 1, "caption": ""},
            {"image_id": "b", "id": 2, "caption": "two\nlines é"},
        ],
    }
    assert read_references(path) == read_references(content) == {"b": ["one", "two\nlines é"], 3: [""]}
    assert [p.name for p in path.parent.iterdir()] == ["truth.json"]


def test_published_variants(tmp_path: Path) -> None:
    rows = [("b", "one"), ("a", "two"), ("b", "three")]
    content = build_ground_truth(rows, tmp_path / "truth.json", first=1, image_per_row=True)
    assert [row["id"] for row in content["annotations"]] == [1, 2, 3]
    assert [image["id"] for image in content["images"]] == ["b", "a", "b"]
    assert read_references(content) == {"b": ["one", "three"], "a": ["two"]}


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    build_ground_truth([("a", "x")], path)
    before = path.read_text()
    with pytest.raises(ValueError, match="no captions to write"):
        build_ground_truth([], path)
    with pytest.raises(TypeError):
        build_ground_truth([("a", object())], path)  # type: ignore[list-item]
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is not a COCO caption file"),
        ({"images": [{"id": 1}]}, "is not a COCO caption file"),
        ({"images": [], "annotations": []}, "lists no image"),
        ({"images": [{"id": 1}, {"id": 2}], "annotations": [{"image_id": 1, "caption": "x"}]}, "no caption for 2"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "x"}]}, "image 2, which it does not list"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": None}]}, "caption None of image 1"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    for source in (content, path):
        with pytest.raises(ValueError, match=message) as error:
            read_references(source)
        assert (str(path) in str(error.value)) == (source is path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_references(tmp_path / "none.json")
    with pytest.raises(ValueError, match="is a folder"):
        read_references(tmp_path)
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"cut\.json is not a whole JSON file"):
        read_references(str(tmp_path / "cut.json"))


def test_some() -> None:
    assert some(["a", 2]) == "'a', 2"
    assert some(range(9), limit=2) == "0, 1, ... (9 in all)"
