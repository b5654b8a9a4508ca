from __future__ import annotations

from pathlib import Path

import pytest

from lavis.datasets.convert import cap3d
from lavis.datasets.convert.problems import Problems
from lavis.datasets.datasets.cap3d import read_lines

TABLE = 'id1,A chair.\nid2,"A red, ""old"" table\nwith legs"\nid3, Ünïcode  text \nid1,Another chair.\n'


def read(folder: Path, text: str) -> tuple[list[tuple[str, str]], Problems]:
    (folder / "table.csv").write_text(text, encoding="utf-8")
    problems = Problems()
    return cap3d.read_captions(folder / "table.csv", problems), problems


def test_rows_become_lines(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, TABLE)
    assert rows == [
        ("id1", "A chair."),
        ("id2", 'A red, "old" table with legs'),
        ("id3", "Ünïcode text"),
        ("id1", "Another chair."),
    ]
    assert len(problems) == 0
    cap3d.write_lines(rows, tmp_path / "lines.txt")
    assert [(object_id, caption) for _, object_id, caption in read_lines(tmp_path / "lines.txt")] == rows


def test_unquoted_commas_and_a_head(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, "uid,caption\r\na,red, green, blue\r\n\r\nb,caption\r\n")
    assert rows == [("a", "red, green, blue"), ("b", "caption")] and len(problems) == 0


def test_bad_rows_are_named(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, 'a,\nonly\n,text\nb,fine\n"x,y",text\n')
    assert rows == [("b", "fine")]
    assert problems.counts == {"empty caption": 1, "row of one column": 1, "malformed object id": 2}
    assert "1 row of one column: line 2: 'only'" in list(problems.lines())


def test_a_choice_of_objects() -> None:
    rows = [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")]
    problems = Problems()
    assert cap3d.select(rows, problems, only=["a", "d"]) == [("a", "1"), ("a", "3")]
    assert list(problems.lines()) == [
        "1 object with a further caption (training takes the last): a",
        "1 object without a caption: d",
    ]
    assert cap3d.select(rows, Problems(), without=["a"]) == [("b", "2"), ("c", "4")]
    assert cap3d.select(rows, Problems()) == rows


def test_files_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"a,\xff\xfe\n")
    with pytest.raises(ValueError, match="table.csv: cannot be read as a csv file"):
        cap3d.read_captions(tmp_path / "table.csv", Problems())
    with pytest.raises(ValueError, match="cannot be read as a csv file"):
        read(tmp_path, 'a,"cut short\n')
    (tmp_path / "ids.txt").write_text("\n")
    for name in ("ids.txt", "gone.txt"):
        with pytest.raises(ValueError, match=name):
            cap3d.read_ids(tmp_path / name)
    with pytest.raises(ValueError, match="no captions to write"):
        cap3d.write_lines([], tmp_path / "x.txt")
