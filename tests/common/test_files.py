from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lavis.common.errors import ConfigError
from lavis.common.files import new_folder, read_json, replacing

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_whole_or_as_it_was(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "x.bin"
    with replacing(path, durable=durable) as stream:
        stream.write(b"first")
    with pytest.raises(RuntimeError), replacing(path, durable=durable) as stream:
        stream.write(b"second")
        raise RuntimeError
    assert path.read_bytes() == b"first" and list(path.parent.iterdir()) == [path]


def test_reading_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(path) == {"a": "é"}
    for content in (b'{"a"', b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.json is not a whole JSON file"):
            read_json(path)
    for gone, message in ((tmp_path, "is a folder"), (tmp_path / "y.json", "does not exist")):
        with pytest.raises(ValueError, match=message):
            read_json(gone)


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), new_folder(path) as place:
        (place / "a").mkdir()
        (place / "a" / "half").write_text("x")
        raise RuntimeError
    assert not list(path.parent.iterdir())
    with new_folder(path) as place:
        (place / "a").mkdir()
        (place / "a" / "whole").write_text("x")
        assert not path.exists()
    assert [item.relative_to(path).as_posix() for item in path.rglob("*")] == ["a", "a/whole"]
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ConfigError, match="not empty; accepted: a folder that is new or empty"), new_folder(path):
        pass
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as place:
        (place / "x").write_text("x")
    assert (tmp_path / "empty" / "x").is_file()


KILLED = """
import os, sys
from pathlib import Path
from lavis.common.files import new_folder
with new_folder(Path(sys.argv[1])) as place:
    (place / "config.json").write_text("{}")
    os._exit(9)
"""


def test_a_killed_process_leaves_no_folder_of_that_name(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], cwd=ROOT, check=False)
    assert done.returncode == 9 and not (tmp_path / "out").exists()
    with new_folder(tmp_path / "out") as place:
        assert not list(place.iterdir())
