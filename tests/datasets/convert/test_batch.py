"""Items in parallel: spread over processes, passed over when done, one bad item costs itself only."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from lavis.common.errors import ConfigError
from lavis.datasets.convert.batch import BadItem, Note, check_settings, run_batch
from lavis.datasets.convert.problems import Problems

PATIENCE = 120  # seconds until a process that never comes is given up


def meet(path: Path) -> list[Note]:
    """Comes back when another process has come here too."""
    (path.parent / f"process_{os.getpid()}").touch()
    end = time.monotonic() + PATIENCE
    while len(list(path.parent.glob("process_*"))) < 2:
        if time.monotonic() > end:
            raise BadItem("alone: no other process came")
        time.sleep(0.01)
    path.touch()
    return []


def act(path: Path) -> list[Note]:
    """What the item's name says."""
    if path.name.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if path.name.startswith("bad"):
        raise BadItem(f"no geometry: {path.name}.ply has none")
    if path.name.startswith("odd"):
        raise KeyError("vertex")
    path.write_text(str(int(path.read_text()) + 1) if path.exists() else "1")
    return [("oddity", path.name)] if path.name.startswith("noted") else []


def items(folder: Path, *names: str) -> dict[str, Path]:
    return {name: folder / name for name in names}


def test_items_are_spread_over_processes(tmp_path: Path) -> None:
    report = run_batch(
        items(tmp_path, *(f"item{number}" for number in range(16))), meet, done=Path.exists, what="items", workers=2
    )
    assert len(report.processes) == 2 and os.getpid() not in report.processes
    assert sorted(report.finished) == sorted(f"item{number}" for number in range(16)) and report.exit_code == 0
    assert next(report.lines("items")) == "16 items converted by 2 processes, 0 were there already, 0 failed"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_item_costs_itself_only(tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    given = items(tmp_path, "a", "bad1", "noted", "odd", "bad2", "b")
    (tmp_path / "b").write_text("1")
    report = run_batch(given, act, done=Path.exists, what="items", workers=workers)
    assert sorted(report.finished) == ["a", "noted"] and report.passed_over == ["b"] and report.exit_code == 1
    assert report.failed.counts == {"no geometry": 2, "broken input": 1}
    lines = list(report.lines("items"))
    assert lines[1] == "note: 1 oddity: noted"
    assert "bad1 (bad1.ply has none)" in "".join(lines) and "failed: 1 broken input: odd (KeyError: 'vertex')" in lines
    assert "6/6" in capsys.readouterr().err, "progress is shown"
    again = run_batch(given, act, done=Path.exists, what="items", workers=workers)
    assert again.finished == [] and sorted(again.passed_over) == ["a", "b", "noted"]
    run_batch(items(tmp_path, "a"), act, done=Path.exists, what="items", workers=workers, again=True)
    assert (tmp_path / "a").read_text() == "2"


def test_an_item_that_ends_its_process_is_found(tmp_path: Path) -> None:
    names = [f"good{number}" for number in range(12)]
    given = items(tmp_path, *names[:5], "killed1", *names[5:9], "killed2", *names[9:])
    report = run_batch(given, act, done=Path.exists, what="items", workers=2)
    assert sorted(report.finished) == sorted(names)
    assert [line for line in report.lines("items") if "process ended" in line] == [
        "failed: 2 the process ended: killed, or out of memory: killed1, killed2"
    ]


@pytest.mark.parametrize("workers", [0, -1, True])
def test_workers_are_checked(workers: int) -> None:
    with pytest.raises(ConfigError, match="accepted: an integer of 1 or more"):
        run_batch({}, act, done=Path.exists, what="items", workers=workers)


def test_no_items_are_no_failure() -> None:
    assert run_batch({}, act, done=Path.exists, what="items", workers=2).exit_code == 0


def test_a_folder_keeps_its_settings(tmp_path: Path) -> None:
    check_settings(tmp_path / "out", "tool", {"points": 8})
    check_settings(tmp_path / "out", "tool", {"points": 8})
    with pytest.raises(ConfigError, match=r'was begun with \{"points": 8\}, not \{"points": 9\}; accepted: the same'):
        check_settings(tmp_path / "out", "tool", {"points": 9})
    (tmp_path / "out" / ".tool.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        check_settings(tmp_path / "out", "tool", {"points": 8})


def test_problems_are_counted_and_named(tmp_path: Path) -> None:
    problems = Problems()
    for number in range(12):
        problems.add("é", f"ref {number}")
    problems.add("other", "x")
    assert len(problems) == 13 and problems.counts == {"é": 12, "other": 1}
    assert list(problems.lines(named=2)) == ["12 é: ref 0, ref 1, ... (10 more)", "1 other: x"]
    path = problems.write(tmp_path / "problems.txt")
    assert path is not None and path.read_text("utf-8").splitlines()[11:] == ["é: ref 11", "other: x"]
    assert Problems().write(path) is None and not path.exists(), "an older file is not left behind"
