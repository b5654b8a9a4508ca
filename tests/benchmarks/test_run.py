"""What the benchmark says of its rows: which ratios count, what is written, and that one failure ends nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure, others, run, table, work
from benchmarks.flops import Work


def test_sides_take_turns() -> None:
    calls: list[str] = []
    found = measure.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3 and [len(values) for values in found.values()] == [2, 2]


def row_of(**changes: Any) -> work.Row:
    sides = {"published": lambda: None, "float32": lambda: None}
    return work.Row(sides, 2, **{"listed": 100.0, "limits": {"float32": 1e-4}, **changes})


@pytest.mark.parametrize(
    ("published", "difference", "rate", "counts", "why"),
    [
        (100.0, 1e-6, 308.0, True, ""),
        (216.0, 1e-6, 154.0, True, ""),  # half the rate: 200 ms were expected
        (100.0, 1e-6, 154.0, False, "-50%"),
        (120.0, 1e-6, 308.0, False, "+20%"),
        (100.0, 1e-3, 308.0, False, "differs by 0.001"),
        (100.0, float("nan"), 308.0, False, "differs by nan"),
    ],
)
def test_when_a_ratio_counts(published: float, difference: float, rate: float, counts: bool, why: str) -> None:
    found: dict[str, Any] = {"published": published, "difference": {"float32": difference}}
    said = run.validity(found, row_of(), rate)
    assert said[0] is counts and why in said[1]


def test_without_a_listed_number_equal_results_are_enough() -> None:
    assert run.validity({"published": 1.0, "difference": {"float32": 0.0}}, row_of(listed=None), 10.0) == (True, "")


def test_a_row_that_stands_on_another_counts_with_it() -> None:
    results = {"rows": {"a": {"counts": False, "why": "slow"}, "b": {"counts": True, "why": "", "stands_on": "a"}}}
    run.settle(results)
    assert results["rows"]["b"] == {"counts": False, "why": "a does not count", "stands_on": "a"}


def test_medians_ratios_and_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "matrix_rate", lambda *_, **__: 50.0)
    monkeypatch.setattr(measure, "alternate", lambda *_, **__: {"published": [0.4, 0.2, 9.0], "float32": [0.1, 0.2, 0.1]})
    found = run.measure_row(row_of(listed=None, work=Work(frozen=1.0, trained=3.0)), repeats=3, clock="wall")
    assert (found["published"], found["float32"]) == (200.0, 50.0) and found["ratio"] == {"float32": 4.0}
    assert found["gflop"] == 2.0 and found["share"] == {"float32": 0.8} and found["counts"]


@pytest.mark.slow
def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme, output = tmp_path / "README.md", tmp_path / "results.json"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")

    def broken(*_: Any) -> work.Row:
        raise OSError("no space")

    monkeypatch.setattr(others, "cloud_loading", broken)
    only = ["train_image_region", "caption_8", "points_8192", "data", "checkpoint"]
    given = ["--small", "--quick", "--dtype", "float32", "--only", *only, "--output", str(output), "--readme", str(readme)]
    assert run.main(given) == 1
    rows = json.loads(output.read_text())["rows"]
    assert rows["data_clouds"] == {"failed": "OSError: no space"}
    measured = {name: found for name, found in rows.items() if "failed" not in found}
    assert {"train_image_region", "caption_8_regions", "points_8192", "data_regions", "checkpoint_load"} <= measured.keys()
    assert measured["train_image_region"]["difference"]["float32"] < 1e-4
    assert measured["caption_8_regions"]["difference"]["float32"] == 0
    assert measured["points_8192"]["difference"]["float32"] < 1e-4
    assert "does not count" in readme.read_text() and readme.read_text().endswith(f"{table.END}\nafter\n")


@pytest.mark.slow
def test_memory_of_a_process_of_its_own() -> None:
    small, large = (measure.peak_memory(hold, megabytes) for megabytes in (1, 200))
    assert 150 < large - small < 300
    with pytest.raises(RuntimeError, match="ended with code 1"):
        measure.peak_memory(hold, -1)


def hold(megabytes: int) -> None:
    bytearray(megabytes * 1_000_000)
