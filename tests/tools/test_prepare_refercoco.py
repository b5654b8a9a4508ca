"""The RefCOCO ground truth tool, as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "prepare_regionblip_eval_refercoco.py"
ROWS: list[dict[str, Any]] = [
    {"image": "a.jpg", "image_id": "581857", "bbox": [1.9, 2, 30.5, 40], "caption": "left car"},
    {"image": "a.jpg", "image_id": "581857", "bbox": [1.2, 2, 30, 40.9], "caption": ""},
    {"image": "b.jpg", "image_id": 12, "bbox": [0, 0, 5, 5], "caption": "a dog"},
    {"image": "a.jpg", "image_id": "581857", "bbox": [1, 2, 30, 41], "caption": "a dog"},
]


def convert(path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(TOOL), "-i", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_writes_the_published_file_beside_its_input(tmp_path: Path) -> None:
    source = tmp_path / "Refcoco_test.json"
    source.write_text(json.dumps(ROWS))
    done = convert(source)
    assert done.returncode == 0, done.stderr
    assert "3 regions, 4 captions" in done.stdout
    first, second, third = "581857_box_1_2_30_40", "12_box_0_0_5_5", "581857_box_1_2_30_41"
    assert json.loads((tmp_path / "Refcoco_test__jianchong.json").read_text()) == {
        "images": [{"id": first}, {"id": second}, {"id": third}],
        "annotations": [
            {"image_id": first, "id": 0, "caption": "left car"},
            {"image_id": first, "id": 1, "caption": ""},
            {"image_id": second, "id": 2, "caption": "a dog"},
            {"image_id": third, "id": 3, "caption": "a dog"},
        ],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, "bbox: box [1, 2, 3] is not"),
        ({"bbox": "1,2,3,4"}, "bbox: box '1,2,3,4' is not 4 numbers"),
        ({"bbox": [1, 2, 3, None]}, "is not 4 numbers"),
        ({"caption": 5}, "caption 5 is not text"),
        ({"image_id": None}, "image_id None is neither"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    source = tmp_path / "Refcoco_val.json"
    source.write_text(json.dumps([ROWS[0], {**ROWS[1], **change}]))
    done = convert(source)
    assert done.returncode == 1
    assert "Refcoco_val.json, row 1: " in done.stderr and message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "holds a dict; expected a list of rows"),
        ("[", "is not a whole JSON file"),
        ("[]", "no captions to write"),
        ('["x"]', "row 0: 'x' is not a row"),
        ('[{"image_id": 1, "caption": "x"}]', "row 0: no bbox; it has image_id, caption"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    source = tmp_path / "rows.json"
    source.write_text(text)
    done = convert(source)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert message in done.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "none.json does not exist" in convert(tmp_path / "none.json").stderr
