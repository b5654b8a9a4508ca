from __future__ import annotations

from pathlib import Path

import pytest

from lavis.common.files import read_json, replacing


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
