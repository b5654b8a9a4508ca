"""Logs read back: whole, cut short, written twice, with rows of other kinds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lavis.report.curves import LogError, find_log, read_log, read_runs


def step(number: int, loss: Any = 1.0, *, modality: str = "image", epoch: int = 0, **more: Any) -> dict[str, Any]:
    row = {"step": number, "epoch": epoch, "modality": modality, "loss": loss, "loss_lm": 0.5, "lr": 1e-4, "grad_norm": 2.0}
    return {**row, "timing": {"samples_per_second": 10.0, "eta_seconds": 3.0}, **more}


def write(folder: Path, *rows: Any, name: str = "log.txt", end: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("".join(f"{line}\n" for line in lines) + end)
    return folder / name


def test_series_of_a_whole_log(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine",
        {"machine": {"torch": "2"}},
        step(1),
        step(2, 3.0, modality="image_region"),
        {"step": 2, "epoch": 0, "skipped_step": True, "modality": "image", "ids": ["a"]},
        {"step": 3, "epoch": 0, "skipped_step": True},
        step(3, "nan", grad_norm=None),
        {"epoch": 0, "steps": 3, "mean": {}, "skipped": {}},
        {"epoch": 0, "split": "val", "dataset": "coco", "CIDEr": 0.5, "agg_metrics": 1, "num_samples": 7, "perType": {"a": 1.0}},
        step(4, epoch=1),
        {"epoch": 1, "steps": 1, "mean": {}, "skipped": {}},
        {"finished": True, "steps": 4},
    )
    log = read_log(path)
    assert log.name == "mine" and log.steps == 4 and log.finished and log.epoch_ends == [3, 4]
    assert log.losses["image_region"]["loss"] == [(2, 3.0)]
    assert [x for x, _ in log.losses["image"]["loss"]] == [1, 3, 4] and math.isnan(log.losses["image"]["loss"][1][1])
    assert log.run["grad_norm"] == [(1, 2.0), (2, 2.0), (4, 2.0)]
    assert set(log.run) == {"lr", "grad_norm", "samples_per_second", "eta_seconds"}
    assert log.metrics == {("coco", "val"): {"CIDEr": [(0, 0.5)], "agg_metrics": [(0, 1.0)]}}
    assert log.skipped == [(2, "image"), (3, "")] and log.not_finite == 1
    assert [note.partition(": ")[2] for note in log.notes] == [
        "1 row of an unknown kind passed over, the first in line 1",
        "1 value not finite (NaN or infinite)",
    ]


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, step(1), step(2), end='{"step": 3, "ep'))
    assert log.steps == 2 and not log.finished
    assert log.notes == [
        f"{tmp_path / 'log.txt'}: the last line (3) is not whole and was left out; the run was stopped while writing"
    ]


def test_of_steps_written_twice_the_later_count(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        step(1, 9.0),
        step(10, 8.0),
        {"epoch": 0, "steps": 10, "mean": {}},
        {"epoch": 0, "split": "val", "dataset": "coco", "agg_metrics": 1.0},
        step(20, 7.0, epoch=1),
        {"step": 25, "epoch": 1, "skipped_step": True},
        step(30, 6.0, modality="image_region", epoch=1),
        step(20, 5.0, epoch=1),
    )
    log = read_log(path)
    assert log.losses["image"]["loss"] == [(1, 9.0), (10, 8.0), (20, 5.0)] and set(log.losses) == {"image"}
    assert log.epoch_ends == [10] and log.metrics[("coco", "val")]["agg_metrics"] == [(0, 1.0)] and log.skipped == []
    assert "steps begin again 1 x, after a resume" in log.notes[0]


def test_a_log_that_begins_later_and_earlier_logs_are_said(tmp_path: Path) -> None:
    for name in ("log.1.txt", "log.2.txt", "log.txt", "logged.txt"):
        write(tmp_path, step(50), name=name)
    notes = read_log(tmp_path / "log.txt").notes
    assert "begins at step 50" in notes[0] and "log.1.txt, log.2.txt of earlier runs not drawn" in notes[1]
    assert len(read_log(tmp_path / "log.1.txt").notes) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([step(1), "{half", step(2)], "log.txt, line 2: not valid JSON"),
        ([step(1), "[1]", step(2)], "log.txt, line 2: holds .1.; accepted: a JSON object"),
        ([step(1), step(2, "high")], "log.txt, line 2: loss is 'high'; accepted: a number"),
        ([step(1), step(2, True)], "log.txt, line 2: loss is True"),
        ([step(1), {**step(2), "step": "two"}], "log.txt, line 2: step is 'two'"),
        ([{"finished": True, "steps": 3}], "log.txt holds no logged step"),
        ([], "log.txt holds no logged step"),
    ],
)
def test_what_is_no_log_is_named_with_its_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(LogError, match=message):
        read_log(write(tmp_path, *rows))


def test_runs_are_folders_or_files_with_names_that_tell_them_apart(tmp_path: Path) -> None:
    for folder in ("a/run", "b/run"):
        write(tmp_path / folder, step(1))
    write(tmp_path / "a/run", step(1), name="log.1.txt")
    names = [log.name for log in read_runs([tmp_path / "a/run", tmp_path / "b/run/log.txt", tmp_path / "a/run/log.1.txt"])]
    assert names == ["a/run", "b/run", "a/run/log.1.txt"]
    assert [log.name for log in read_runs([tmp_path / "a/run"])] == ["run"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(LogError, match="empty holds no log.txt"):
        find_log(tmp_path / "empty")
    with pytest.raises(LogError, match="gone does not exist"):
        find_log(tmp_path / "gone")
