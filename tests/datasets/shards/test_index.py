"""The index of a tar: what is in it, what is left out, and what is wrong with it."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from lavis.datasets.shards.index import Shard, Summary, expected_samples, find_index, make_index, write_index
from tests.datasets.tars import captions, picture, regions, write_tar


def summary(path: Path, kind: str = "captions") -> Summary:
    return make_index(str(path), kind)[1]


def reasons(path: Path, kind: str = "captions") -> list[tuple[str, str, int]]:
    write_index(str(path), kind, path.parent / "cache")
    found = find_index(str(path), kind, path.parent / "cache")
    assert found is not None
    return Shard(str(found[0])).left_out()


def test_places_and_rows(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", regions(3, [2, 1]))
    shard = Shard(str(write_index(str(tar), "regions", tmp_path)))
    assert shard.row(1) == {
        "key": "000003",
        "place": 1,
        "captions": ["region 1 of 3"],
        "image_id": "i3",
        "bbox": [1.0, 2.0, 10.0, 12.0],
        "picture": 0,
    }
    assert "place" not in shard.row(2) and shard.row(2)["picture"] == 1
    assert shard.firsts().tolist() == [0, 2, 3] and shard.left_out() == []
    for number in (0, 1):
        offset, size = shard.place(number)
        assert tar.read_bytes()[offset : offset + size] == picture(3 + number)


def test_texts_as_others_write_them(tmp_path: Path) -> None:
    members = {
        "a/b.c/1.png": picture(1), "a/b.c/1.txt": "Ein Bär\n",  # folders, txt alone
        "2.JPG": picture(2), "2.json": {"caption": "from json", "width": 3}, "2.txt": "from txt",
        "3.webp": picture(3), "3.json": {"width": 3}, "3.txt": "from txt",
        "4.jpg": picture(4), "4.json": {"rows": [{"caption": "one"}, {"caption": "two", "image_id": 7}]}, "4.cls": "1",
        "._5.jpg": b"x", "__meta__.json": {}, "6.seg.png": picture(6),
    }  # fmt: skip
    tar = write_tar(tmp_path / "0.tar", members)
    shard = Shard(str(write_index(str(tar), "captions", tmp_path)))
    rows = [shard.row(number) for number in range(5)]
    assert [row["captions"][0] for row in rows] == ["Ein Bär\n", "from json", "from txt", "one", "two"]
    assert [row["key"] for row in rows] == ["a/b.c/1", "2", "3", "4", "4"] and rows[4]["image_id"] == 7
    assert shard.left_out() == []


def test_what_is_left_out(tmp_path: Path) -> None:
    members = {
        "1.jpg": picture(1),
        "2.json": {"caption": "no picture"},
        "3.jpg": picture(3), "3.json": {"caption": "  "},
        "4.jpg": picture(4), "4.json": "{",
        "5.jpg": b"", "5.txt": "empty",
        "6.jpg": picture(6), "6.txt": "good",
        "6.png": picture(7),
        "7.jpg": picture(7), "7.json": {"rows": [{"caption": "a"}, {"caption": 5}]},
        "8.jpg": picture(8), "8.json": {"rows": []},
        "9.jpg": picture(9), "9.json": {"url": "x"},
        "nothing.txt": "x",
    }  # fmt: skip
    found = {key: reason for key, reason, _ in reasons(write_tar(tmp_path / "0.tar", members))}
    assert found == {
        "1": "missing caption: neither 1.json nor 1.txt",
        "2": "missing image: no 2.jpg, nor another kind of picture",
        "3": "empty caption",
        "4": "broken text: JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "5": "broken image: the file is empty",
        "6": "duplicate key: 6.png is there again",
        "7[1]": "caption is not text: 5",
        "8": "broken text: 8.json holds \"{'rows': []}\"; accepted: an object with caption, or with rows and, if wished, "
        "size [width, height]",
        "9": "missing key: caption",
        "nothing": "missing image: no nothing.jpg, nor another kind of picture",
    }
    said = summary(tmp_path / "0.tar")
    assert (said.pictures, said.samples, sum(said.dropped.values())) == (2, 2, 10) and said.dropped["missing image"] == 2
    boxes = {"1.jpg": picture(1), "1.json": {"rows": [{"caption": "a"}, {"caption": "b", "bbox": [1, 2, 0, 4]}]}}
    assert [reason.partition(":")[0] for _, reason, _ in reasons(write_tar(tmp_path / "1.tar", boxes), "regions")] == [
        "missing key", "empty bbox",
    ]  # fmt: skip


def test_a_key_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    tar = tmp_path / "0.tar"
    write_tar(tmp_path / "1.tar", captions(0, 2))
    with tarfile.open(write_tar(tar, captions(0, 3)), "a") as stream, tarfile.open(tmp_path / "1.tar") as other:
        for member in other:
            stream.addfile(member, other.extractfile(member))
    said = summary(tar)
    assert (said.samples, said.dropped, said.problem) == (3, {"duplicate key": 2}, "")


@pytest.mark.parametrize("cut, kept, problem", [
    (-1024 * 9, 5, "cut short: the file ends at byte"),  # without the zeros of the end
    ("within the last text", 4, "cut short: the file ends within a member"),
    ("within the last header", 4, "cut short: the file ends at byte"),
    ("within the last picture", 4, "cut short: the file ends within a member"),
    (700, 0, "cut short: the file ends within a member"),
    (100, 0, "not a tar: "),
    (0, 0, "not a tar: empty file"),
])  # fmt: skip
def test_cut_short(tmp_path: Path, cut: int | str, kept: int, problem: str) -> None:
    tar = write_tar(tmp_path / "00003.tar", captions(0, 5))
    whole = tar.read_bytes()
    with tarfile.open(tar) as stream:
        image, text = stream.getmembers()[-2:]
        end = stream.offset
    places = {
        "within the last text": text.offset_data + 9,
        "within the last header": text.offset + 100,
        "within the last picture": image.offset_data + 99,
    }
    size = places[cut] if isinstance(cut, str) else end if cut < 0 else cut
    assert summary(tar).problem == ""
    tar.write_bytes(whole[:size])
    said = summary(tar)
    assert said.samples == kept and said.problem.startswith(problem)
    # how many are lost is known where the writer said how many there were
    (tmp_path / "00003_stats.json").write_text(json.dumps({"successes": 5}))
    said = summary(tar)
    assert sum(said.dropped.values()) == 5 - kept, said
    if kept < 5:
        assert any(f"{problem}" in reason for _, reason, _ in reasons(tar))


def test_damage_inside(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", captions(0, 5))
    with tarfile.open(tar) as stream:
        third = stream.getmembers()[4]
        end = stream.offset
    whole = bytearray(tar.read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": {"0.tar": {"samples": 5}}}))
    assert expected_samples(str(tar)) == 5 and expected_samples(str(tmp_path / "1.tar")) is None
    damaged = whole[: third.offset] + b"\x55" * 512 + whole[third.offset + 512 :]
    tar.write_bytes(damaged)
    said = summary(tar)
    assert (
        said.problem == f"broken tar: the header at byte {third.offset:,} of {len(whole):,} is none, and what follows is not read"
    )
    assert (said.samples, said.dropped) == (2, {"broken tar": 3})
    tar.write_bytes(bytes(whole[:end]) + bytes(1 << 17))
    assert summary(tar).problem.startswith("broken tar: 131,072 bytes follow its end") and summary(tar).samples == 5
    tar.write_bytes(b"\x1f\x8b" + bytes(2000))
    assert summary(tar).problem.startswith("compressed tar: ") and summary(tar).dropped == {"compressed tar": 5}


def test_an_index_stands_for_one_state_of_its_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar, cache = str(write_tar(tmp_path / "0.tar", captions(0, 2))), tmp_path / "cache"
    assert find_index(tar, "captions", cache) is None
    path = write_index(tar, "captions", cache)
    assert path == tmp_path / "0.tar.captions.index"
    found = find_index(tar, "captions", cache)
    assert found is not None and found[1].samples == 2
    assert find_index(tar, "regions", cache) is None
    os.utime(tar, ns=(1, 1))
    assert find_index(tar, "captions", cache) is None
    write_index(tar, "captions", cache)
    write_tar(Path(tar), captions(0, 3))
    assert find_index(tar, "captions", cache) is None
    path.write_bytes(path.read_bytes()[:50])
    assert find_index(tar, "captions", cache) is None, "a broken index is none"

    original = Path.open

    def only_the_cache(self: Path, mode: str = "r", *given: object, **options: object) -> object:
        if "w" in mode and cache not in self.parents:
            raise PermissionError(13, "read-only", str(self))
        return original(self, mode, *given, **options)  # type: ignore[call-overload]

    path.unlink()
    monkeypatch.setattr(Path, "open", only_the_cache)
    cached = write_index(tar, "captions", cache)
    found = find_index(tar, "captions", cache)
    assert cache in cached.parents and found is not None and found[0] == cached and found[1].samples == 3
