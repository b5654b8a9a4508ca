"""The table of the README is that of results.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import others, run, table, work

RESULTS: dict[str, Any] = {
    "machine": {"processor": "Two cores", "threads": 2, "flags": ["amx_bf16"], "torch": "2.11", "date": "2026-01-01"},
    "rates": {"float32": [300.0, 310.4], "bf16": [2000.0, 2010.0]},
    "repeats": 3,
    "rows": {
        "train_image": {
            "published": 160.0, "float32": 80.0, "bf16": 40.0, "ratio": {"float32": 2.0, "bf16": 4.0},
            "share": {"float32": 0.614, "bf16": 0.2}, "memory": {"published": 1500.0, "float32": 1400.0},
            "counts": True, "why": "",
        },
        "points_8192": {"published": 40.0, "float32": 4.0, "ratio": {"float32": 10.0}, "counts": False, "why": "too slow"},
        "train_image_region_cached": {"failed": "no features yet"},
    },
}  # fmt: skip


def test_the_readme_has_the_table_of_the_results() -> None:
    readme = run.README.read_text()
    if not run.RESULTS.exists():  # before the first run there is neither
        assert table.BEGIN not in readme or not readme[slice(*table.between(readme))].strip()
        return
    begin, end = table.between(readme)
    assert readme[begin:end].strip() == table.render(json.loads(run.RESULTS.read_text())).strip()


def test_rows_and_notes() -> None:
    lines = table.render(RESULTS).splitlines()
    assert "300 to 310 GFLOP/s in float32" in lines[0] and "Two cores, 2 threads" in lines[0]
    assert "| image training step | 160.0 | 80.0 (2.0 x) | 1.2 x | 61% | 40.0 (4.0 x) | 3 x | 20% | 1500 : 1400 |" in lines
    assert "| sampling and grouping, 8,192 points [2] | 40.0 | 4.0 (10.0 x) | 10 x |  |  |  |  |  |" in lines
    assert lines[-2:] == ["2. does not count: too slow", "3. not measured: no features yet"]
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 1


def test_only_what_is_between_the_marks_changes(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.update(readme, RESULTS)
    first = readme.read_text()
    table.update(readme, RESULTS)
    assert readme.read_text() == first and "old" not in first
    assert first.startswith(f"before\n{table.BEGIN}\n") and first.endswith(f"{table.END}\nafter\n")
    for text in ("none", f"{table.END}{table.BEGIN}", table.BEGIN * 2 + table.END):
        with pytest.raises(ValueError, match="expected"):
            table.between(text)


def test_every_row_has_a_title_and_every_goal_a_row() -> None:
    names = [*work.SPECS, *others.rows(None, Path())]  # type: ignore[arg-type]
    assert list(table.TITLES) == names and set(table.GOALS) <= set(names) and set(run.REMEMBERED) <= set(names)
