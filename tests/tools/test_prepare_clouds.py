"""The ground truth tools of ScanRefer and Objaverse, as a user calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def convert(name: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools" / f"prepare_regionblip_eval_{name}.py"), "-i", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def described(scene_id: Any, object_id: Any, description: Any) -> dict[str, Any]:
    return {"scene_id": scene_id, "object_id": object_id, "object_name": "chair", "ann_id": "0", "description": description}


def test_scanrefer(tmp_path: Path) -> None:
    source = tmp_path / "ScanRefer_filtered_val.json"
    rows = [described("scene0011_00", "0", "A chair."), described("scene0011_00", 1, ""), described("scene0011_00", "0", "It.")]
    source.write_text(json.dumps(rows))
    done = convert("referscannet", source)
    assert done.returncode == 0, done.stderr
    assert "2 objects, 3 captions" in done.stdout
    first, second = "scene0011_00_0", "scene0011_00_1"
    assert json.loads((tmp_path / "ScanRefer_filtered_val__jianchong.json").read_text()) == {
        "images": [{"id": first}, {"id": second}],
        "annotations": [
            {"image_id": first, "id": 1, "caption": "A chair."},
            {"image_id": second, "id": 2, "caption": ""},
            {"image_id": first, "id": 3, "caption": "It."},
        ],
    }


def test_objaverse(tmp_path: Path) -> None:
    source = tmp_path / "Cap3D_automated_Objaverse_test.txt"
    source.write_text("a1,a chair, red\n\nb2,\na1,Another.\n", encoding="utf-8")
    done = convert("objaverse", source)
    assert done.returncode == 0, done.stderr
    assert "2 objects, 3 captions" in done.stdout
    assert json.loads((tmp_path / "Cap3D_automated_Objaverse_test__jianchong.json").read_text()) == {
        "images": [{"id": "a1"}, {"id": "b2"}, {"id": "a1"}],
        "annotations": [
            {"image_id": "a1", "id": 1, "caption": "a chair, red"},
            {"image_id": "b2", "id": 2, "caption": ""},
            {"image_id": "a1", "id": 3, "caption": "Another."},
        ],
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("referscannet", json.dumps([described("s", [1], "x")]), "row 0: object_id [1] is neither text nor an int"),
        ("referscannet", json.dumps([described("s", 1, None)]), "row 0: description None is not text"),
        ("referscannet", '[{"scene_id": "s"}]', "row 0: no object_id and no description; it has scene_id"),
        ("objaverse", "a,b\nno comma\n", "line 2: 'no comma' is not <object id>,<caption>"),
        ("objaverse", ",b\n", "line 1: '' is not"),
        ("objaverse", "\n", "no captions to write"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    source = tmp_path / "rows.txt"
    source.write_text(text)
    done = convert(name, source)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert str(tmp_path / "rows") in done.stderr and message in done.stderr
    assert list(tmp_path.iterdir()) == [source]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("referscannet", "objaverse"):
        assert "none.txt" in convert(name, tmp_path / "none.txt").stderr
