"""The caption metrics tool, as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRUTH = {
    "images": [{"id": 1}, {"id": "b"}, {"id": "c"}],
    "annotations": [
        {"image_id": 1, "id": 0, "caption": "A red car."},
        {"image_id": "b", "id": 1, "caption": "two dogs run"},
        {"image_id": "c", "id": 2, "caption": "the sky"},
    ],
}
ROWS = [{"image_id": "1", "caption": "a red car"}, {"image_id": "b", "caption": "Two dogs, run!"}]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    (tmp_path / "test_epochbest.json").write_text(json.dumps(ROWS))
    return tmp_path


def evaluate(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Without Java on PATH."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": str(folder)}
    command = [sys.executable, str(ROOT / "tools" / "eval_coco_caption.py"), "-r", str(folder / "test_epochbest.json")]
    command += ["-a", str(folder / "truth.json"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_prints_and_writes_metrics_without_java(files: Path) -> None:
    done = evaluate(files, "--resamples", "50")
    assert done.returncode == 0, done.stderr
    assert "ROUGE_L: 0.6667  (95 % interval " in done.stdout and "3 ids, 1 without a result" in done.stdout
    assert "1 of 3 ids have no result and score as empty captions: 'c'" in done.stderr
    assert "METEOR is not computed: java was not found" in done.stderr
    written = json.loads((files / "test_epochbest_metrics.json").read_text())
    assert written["metrics"]["ROUGE_L"] == pytest.approx(2 / 3) and written["metrics"]["num_missing"] == 1
    rows: dict[Any, Any] = {row["image_id"]: row for row in written["samples"]}
    assert rows["b"]["tokens"] == "two dogs run" and rows["b"]["scores"]["ROUGE_L"] == pytest.approx(1)
    assert rows["c"]["missing"] and rows["c"]["caption"] == "" and "missing" not in rows[1]
    assert set(written["settings"]["results"]) == {"path", "sha256"} and "METEOR" not in written["versions"]
    assert written["bootstrap"]["resamples"] == 50


def test_options(files: Path) -> None:
    done = evaluate(files, "-o", str(files / "deep" / "out.json"), "--metrics", "CIDEr", "--resamples", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("CIDEr: ") and "interval" not in done.stdout and not done.stderr.count("METEOR")
    written = json.loads((files / "deep" / "out.json").read_text())
    assert set(written["metrics"]) == {"CIDEr", "num_missing"} and written["bootstrap"] is None


def test_mistakes_are_named_and_nothing_is_written(files: Path) -> None:
    results = files / "test_epochbest.json"
    for content, message in {
        json.dumps(ROWS)[:-5]: "test_epochbest.json is not a whole JSON file",
        json.dumps({"rows": ROWS}): "test_epochbest.json holds a dict; expected a list of rows",
        json.dumps([*ROWS, ROWS[0], ROWS[1]]): "results hold image_id '1', 'b' twice or more",
        json.dumps([{"image_id": "zebra", "caption": "x"}]): "results for ids that the ground truth does not list: 'zebra'",
    }.items():
        results.write_text(content)
        done = evaluate(files)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    results.write_text(json.dumps(ROWS))
    done = evaluate(files, "--metrics", "Cider")
    assert done.returncode == 1 and "Did you mean 'CIDEr'" in done.stderr
    (files / "truth.json").write_text(json.dumps({**TRUTH, "annotations": TRUTH["annotations"][:2]}))
    done = evaluate(files)
    assert done.returncode == 1 and "no caption for 'c'" in done.stderr
    assert not list(files.glob("*_metrics.json"))
