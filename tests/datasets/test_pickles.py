from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis.datasets import pickles
from lavis.datasets.pickles import as_text, read_pickle

# {u'sent': 'caf\xc3\xa9', 'n': 3L, u'w': u'na\xefve'} and [1, 2], as Python 2.7 wrote them with protocol 0 and 2
PYTHON_2 = [
    b"(lp0\n(dp1\nVsent\np2\nS'caf\\xc3\\xa9'\np3\nsS'n'\np4\nL3L\nsVw\np5\nVna\\u00efve\np6\nsa(lp7\nI1\naI2\naa.",
    b"\x80\x02]q\x00(}q\x01(X\x04\x00\x00\x00sentq\x02U\x05caf\xc3\xa9q\x03U\x01nq\x04\x8a\x01\x03"
    b"X\x01\x00\x00\x00wq\x05X\x06\x00\x00\x00na\xc3\xafveq\x06u]q\x07(K\x01K\x02ee.",
]


@pytest.mark.parametrize("data", PYTHON_2)
def test_pickles_of_python_2(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.p").write_bytes(data)
    assert as_text(read_pickle(tmp_path / "x.p")) == [{"sent": "café", "n": 3, "w": "naïve"}, [1, 2]]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = {"a": [1, 2.5, None, True], "b": OrderedDict(x=(1, 2)), "c": {3}, "d": np.int64(7), "e": b"\xff", "f": frozenset()}
    (tmp_path / "x.p").write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_pickle(tmp_path / "x.p")
    assert read == content
    assert as_text({"d": read["d"], "e": read["e"], "b": read["b"]}) == {"d": 7, "e": "ÿ", "b": {"x": [1, 2]}}


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize("content", [[Malicious()], {"x": Counter()}, print, np.array([Malicious()], dtype=object)])
def test_more_than_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.p").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"x\.p: .*which is not plain data; it is not run"):
        read_pickle(tmp_path / "x.p")
    assert not Path("touched").exists()


def test_broken_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "x.p").write_bytes(pickle.dumps(list(range(1000)))[:-30])
    for name in ("x.p", "gone.p"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read as a pickle of data"):
            read_pickle(tmp_path / name)


def test_other_encodings_in_a_pickle_are_refused() -> None:
    assert pickles._encode("é", "latin1") == b"\xe9"
    with pytest.raises(pickle.UnpicklingError, match="hex"):
        pickles._encode("00", "hex")
