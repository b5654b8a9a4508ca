"""What lies where in a shard: the index of one tar file.

A shard is a tar of pictures and texts, as webdataset and img2dataset write it: members of one key belong together,
`<key>.jpg` (or another picture) with `<key>.json`, `<key>.txt`, or both. The JSON is {"caption": text, ...}, or
{"rows": [{"image_id", "caption", "bbox"}, ...]} where a picture has several captions or regions (tools/make_shards.py); there,
"size" may give the [width, height] that the boxes are of, where it is not the picture's. Keys are unique within a shard. What
cannot be used is left out here, named and counted.

The index holds the rows of a shard, checked, and the place of each picture, so that any sample can be read by itself. It is
made in one pass over the headers and texts, and lies beside the shard or, where that folder cannot be written, in the cache.
It stands for a shard of the same size and time of change. Letters: P pictures, N samples (N >= P).

The reader of the package webdataset goes through a tar from its beginning and shuffles what it has in memory. So its position
cannot be saved and taken up by other workers or processes, which is why samples are read by their place here.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lavis.common.files import read_json, replacing
from lavis.datasets.datasets.base_dataset import BadSample, Row
from lavis.datasets.datasets.captions import id_of, text_of
from lavis.datasets.datasets.regions import bbox_of

VERSION = "1"
KINDS = ("captions", "regions")
PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
TEXTS = ("json", "txt")
MANIFEST = "manifest.json"
SLACK = 1 << 16  # bytes after the end mark that may be there: tar fills its last record

Place = tuple[int, int]  # the first byte of a member's content in the tar, and how many


@dataclass
class Summary:
    """What the index of a shard says of it; `dropped`: how many samples were left out, by reason."""

    pictures: int
    samples: int
    dropped: dict[str, int]
    problem: str  # empty: none
    digest: str  # of rows and picture sizes: two shards of one digest hold the same


@dataclass
class _Found:
    """The members of one key."""

    pictures: list[tuple[str, Place]] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)  # members that are there a second time
    cut: bool = False  # the content of a member ends with the file


class Shard:
    """An index, opened; pages are read when they are asked for. OSError or SafetensorError where it cannot be."""

    def __init__(self, path: str) -> None:
        self._file = safe_open(path, framework="np")
        names = ("rows", "row_ends", "picture_of", "offset", "size", "frame")
        self._rows, self._row_ends, self._picture_of, self._offset, self._size, self._frame = map(self._file.get_slice, names)

    def row(self, sample: int) -> Row:
        """The checked row of a sample, with its `key`, its `picture` (a number), and its `place` where the picture has more."""
        low, high = self._row_ends[sample : sample + 2].tolist()
        row: Row = json.loads(self._rows[low:high].tobytes())
        row["picture"] = int(self._picture_of[sample : sample + 1][0])
        return row

    def place(self, picture: int) -> Place:
        return int(self._offset[picture : picture + 1][0]), int(self._size[picture : picture + 1][0])

    def frame(self, picture: int) -> tuple[int, int] | None:
        """The width and height in which the boxes of a picture are given; None: those that it has."""
        width, height = self._frame[picture : picture + 1][0].tolist()
        return (width, height) if width else None

    def firsts(self) -> NDArray[np.int64]:
        """The first sample of each picture, and the number of samples [P + 1]."""
        firsts: NDArray[np.int64] = self._file.get_tensor("firsts")
        return firsts

    def left_out(self) -> list[tuple[str, str, int]]:
        """(key, reason, how many samples) of what was left out."""
        return [(key, reason, count) for key, reason, count in json.loads(self._file.get_tensor("left_out").tobytes())]


def index_paths(tar: str, kind: str, cache: Path) -> tuple[Path, Path]:
    """Where the index of a shard may lie: beside it, and in the cache."""
    path = Path(tar)
    folder = hashlib.blake2b(os.fsencode(path.absolute().parent), digest_size=8).hexdigest()
    name = f"{path.name}.{kind}.index"
    return path.with_name(name), cache / "shard_indexes" / folder / name


def find_index(tar: str, kind: str, cache: Path) -> tuple[Path, Summary] | None:
    """The index of a shard as it is now, and what it says; None where there is none."""
    key = _identity(tar)
    for path in index_paths(tar, kind, cache):
        try:
            with safe_open(str(path), framework="np") as file:
                held = file.metadata() or {}
        except (OSError, SafetensorError):
            continue
        if held.get("version") == VERSION and held.get("kind") == kind and held.get("shard") == key:
            counts = json.loads(held["summary"])
            return path, Summary(**counts)
    return None


def write_index(tar: str, kind: str, cache: Path) -> Path:
    """Make the index of a shard. OSError where the shard cannot be read, or no place be written."""
    key = _identity(tar)
    arrays, summary = make_index(tar, kind)
    content = save(arrays, {"version": VERSION, "kind": kind, "shard": key, "summary": json.dumps(vars(summary))})
    beside, cached = index_paths(tar, kind, cache)
    try:
        return _write(beside, content)
    except OSError:
        return _write(cached, content)


def _write(path: Path, content: bytes) -> Path:
    with replacing(path, durable=False) as stream:
        stream.write(content)
    return path


def _identity(tar: str) -> str:
    stat = os.stat(tar)
    return f"{stat.st_size} {stat.st_mtime_ns}"


def make_index(tar: str, kind: str) -> tuple[dict[str, NDArray[Any]], Summary]:
    """The arrays of the index of a shard, and what it says."""
    found, problem = _read(tar)
    rows, row_ends, counts, places, frames = bytearray(), [0], [], [], []
    left_out: list[tuple[str, str, int]] = []
    for key, members in found.items():
        left_out.extend((key, f"duplicate key: {name} is there again", 1) for name in members.again)
        try:
            good, bad, frame = _rows(key, members, kind)
        except BadSample as error:
            left_out.append((key, error.reason, 1))
            continue
        left_out.extend(bad)
        if not good:
            continue
        for row in good:
            rows += json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
            row_ends.append(len(rows))
        counts.append(len(good))
        places.append(members.pictures[0][1])
        frames.append(frame)
    samples = sum(counts)
    if problem:
        left_out.append(("", *_lost(tar, problem, samples + sum(count for _, _, count in left_out))))
    dropped: dict[str, int] = {}
    for _, reason, count in left_out:
        kind_of = reason.partition(":")[0]
        dropped[kind_of] = dropped.get(kind_of, 0) + count
    arrays: dict[str, NDArray[Any]] = {
        "rows": np.frombuffer(bytes(rows), dtype=np.uint8),
        "row_ends": np.asarray(row_ends, dtype=np.int64),
        "picture_of": np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        "offset": np.asarray([offset for offset, _ in places], dtype=np.int64),
        "size": np.asarray([size for _, size in places], dtype=np.int64),
        "frame": np.asarray(frames, dtype=np.int32).reshape(-1, 2),
        "firsts": np.append(0, np.cumsum(counts)).astype(np.int64),
        "left_out": np.frombuffer(json.dumps(left_out).encode(), dtype=np.uint8),
    }
    digest = hashlib.blake2b(bytes(rows) + arrays["size"].tobytes(), digest_size=16).hexdigest()
    return arrays, Summary(len(counts), samples, dropped, problem, digest)


def _rows(key: str, members: _Found, kind: str) -> tuple[list[Row], list[tuple[str, str, int]], list[int]]:
    """The rows of a picture that can be used, what is left out of it, and the size of its boxes' frame (0: its own). BadSample
    where none can be used."""
    if members.cut:
        raise BadSample("cut short: the shard ends within this picture or its text")
    if not members.pictures:
        raise BadSample(f"missing image: no {key}.jpg, nor another kind of picture")
    if not members.pictures[0][1][1]:
        raise BadSample("broken image: the file is empty")
    given, frame = _texts(key, members.texts)
    good, bad = [], []
    for place, row in enumerate(given):
        try:
            parsed: Row = {"key": key, **({"place": place} if len(given) > 1 else {}), "captions": [text_of(row, "caption")]}
            if row.get("image_id") is not None:
                parsed["image_id"] = id_of(row, key)
            if kind == "regions":
                parsed["bbox"] = bbox_of(row)
            good.append(parsed)
        except BadSample as error:
            bad.append((f"{key}[{place}]" if len(given) > 1 else key, error.reason, 1))
    return good, bad, frame


def _texts(key: str, texts: dict[str, bytes]) -> tuple[list[Row], list[int]]:
    """The rows of the text members of a key, and the size that they state. BadSample where none can be read."""
    if not texts:
        raise BadSample(f"missing caption: neither {key}.json nor {key}.txt")
    try:
        row: Any = json.loads(texts["json"]) if "json" in texts else {}
        if isinstance(row, dict) and "caption" not in row and "rows" not in row and "txt" in texts:
            row["caption"] = texts["txt"].decode()
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadSample(f"broken text: {type(error).__name__}: {error}") from error
    rows: Any
    frame: Any
    rows, frame = (row.get("rows"), row.get("size") or [0, 0]) if isinstance(row, dict) and "rows" in row else ([row], [0, 0])
    well = isinstance(rows, list) and rows and all(isinstance(part, dict) for part in rows)
    if not well or not isinstance(frame, list) or len(frame) != 2 or not all(type(side) is int for side in frame):
        accepted = "an object with caption, or with rows and, if wished, size [width, height]"
        raise BadSample(f"broken text: {key}.json holds {str(row)[:60]!r}; accepted: {accepted}")
    return rows, frame


# Reading a tar


def _read(tar: str) -> tuple[dict[str, _Found], str]:
    """The members of each key, and what is wrong with the tar as a whole."""
    found: dict[str, _Found] = {}
    with open(tar, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        problems: list[str] = []
        for member in _members(stream, size, problems):
            head, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            if not member.isfile() or not stem or stem.startswith("__") or suffix.lower() not in PICTURES + TEXTS:
                continue
            held = found.setdefault(f"{head}/{stem}" if head else stem, _Found())
            held.cut |= member.offset_data + member.size > size
            if suffix.lower() in PICTURES:
                if held.pictures:
                    held.again.append(member.name)
                else:
                    held.pictures.append((member.name, (member.offset_data, member.size)))
            elif suffix.lower() in held.texts:
                if not held.again:  # a second pair is one sample
                    held.again.append(member.name)
            else:
                stream.seek(member.offset_data)
                held.texts[suffix.lower()] = stream.read(member.size)
    return found, problems[0] if problems else ""


def _members(stream: IO[bytes], size: int, problems: list[str]) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, as far as it can be read; why it could not be to its end goes to `problems`.

    tarfile takes a header that it cannot read, and the end of the file, for the end of the archive, so the end mark (a block of
    512 zeros) is looked for here.
    """
    magic = stream.read(6)
    stream.seek(0)
    if magic[:2] == b"\x1f\x8b" or magic[:3] == b"BZh" or magic == b"\xfd7zXZ\0":
        problems.append("compressed tar: samples of it cannot be read by their place; unpack it (gunzip)")
        return
    try:
        archive = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 (the caller closes the stream)
    except tarfile.TarError as error:
        problems.append(f"not a tar: {error}")
        return
    try:
        while (member := archive.next()) is not None:
            yield member
    except tarfile.TarError:
        problems.append("cut short: the file ends within a member")
        return
    end = archive.offset
    stream.seek(end)
    block = stream.read(512)
    if len(block) < 512:
        problems.append(f"cut short: the file ends at byte {size:,} without the mark of an end")
    elif block.strip(b"\0"):
        problems.append(f"broken tar: the header at byte {end:,} of {size:,} is none, and what follows is not read")
    elif size - end > SLACK:
        problems.append(f"broken tar: {size - end:,} bytes follow its end at byte {end:,}: zeros, or another tar")


def _lost(tar: str, problem: str, there: int) -> tuple[str, int]:
    """Why samples are lost with the unreadable part of a shard, and how many (1 where that is not known)."""
    expected = expected_samples(tar)
    if expected is None:
        return f"{problem}; how many samples are lost is not known", 1
    lost = max(expected - there, 0)
    return f"{problem}; {lost} of {expected} samples are lost", lost


def expected_samples(tar: str) -> int | None:
    """How many samples the writer of a shard says it put in: the manifest of tools/make_shards.py, or the `_stats.json` of
    img2dataset. None where neither is there."""
    path = Path(tar)
    sources = (
        (path.with_name(MANIFEST), ("shards", path.name, "samples")),
        (path.with_name(f"{path.stem}_stats.json"), ("successes",)),
    )
    for source, keys in sources:
        try:
            value = read_json(source)
            for key in keys:
                value = value[key]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(value, int):
            return value
    return None
