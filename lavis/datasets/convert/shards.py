"""Pictures and their rows to webdataset shards, for the builders of `lavis.datasets.shards.datasets`.

A shard is an uncompressed tar of `<key>.jpg` (the picture as it lies on disk, whatever its kind) and `<key>.json`:
{"image": path, "rows": [{"image_id", "caption"}, ...]}, and for regions each row has "bbox", [x, y, w, h] in pixels. Beside rows,
"size" is the [width, height] of a picture before it was made smaller: its boxes stay as they were, so that they give the same
numbers. A picture is stored once with all its rows. `webdataset.TarWriter` writes them; the package's ShardWriter writes shards
one after another under their final names, so that it can neither use several processes nor leave only whole shards behind.

What goes where is decided before the first shard is written, and kept in a plan on disk, which the processes share: so
shards can be written by any number of them, in any order, and again after a stop.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save
from webdataset import TarWriter

from lavis.common.files import replacing
from lavis.common.seeding import mix
from lavis.datasets.convert.batch import BadItem, Note
from lavis.datasets.convert.problems import Problems
from lavis.datasets.datasets.base_dataset import PackedRows, Row
from lavis.datasets.shards.index import MANIFEST, PICTURES, find_index, write_index

PLAN = ".make_shards.plan"
QUALITY = 95  # of the JPEG of a picture that is made smaller
_SHUFFLE_STREAM = 21


@dataclass(frozen=True)
class Job:
    """One shard, as the plan in its folder says."""

    output: Path
    number: int
    name: str
    images: Path
    kind: str
    max_side: int | None

    @property
    def target(self) -> Path:
        return self.output / self.name


def plan(
    rows: PackedRows, images: Path, *, samples_per_shard: int | None, max_bytes: int | None, seed: int | None
) -> dict[str, NDArray[Any]]:
    """Which rows go to which shard, by pictures: those of one stay together, in their order.

    `rows`: parsed, with `image` and `captions`. A shard is full where another picture would make it hold more than
    `samples_per_shard` rows, or pictures of more than `max_bytes` as they lie on disk. `seed` shuffles the pictures; without
    one they keep the order of their first rows. Keys: rows and row_ends (JSON, in the order of the plan), first [P + 1] (of each
    picture's rows), shard_first [S + 1] (of each shard's pictures).
    """
    picture_of = _pictures(rows)
    pictures = int(picture_of.max()) + 1
    rank = np.arange(pictures)
    if seed is not None:
        rank = np.random.RandomState(mix(_SHUFFLE_STREAM, seed) & 0xFFFFFFFF).permutation(pictures)
    order = np.argsort(rank[picture_of], kind="stable")
    counts = np.bincount(rank[picture_of], minlength=pictures)
    first = np.append(0, np.cumsum(counts))
    sizes = [_size(images / rows[int(order[place])]["image"]) for place in first[:-1].tolist()] if max_bytes else None
    packed, ends = bytearray(), [0]
    for number in order.tolist():
        row = rows[number]
        kept = {"image": row["image"], "image_id": row["image_id"], "caption": row["captions"][0]}
        packed += json.dumps({**kept, **({"bbox": row["bbox"]} if "bbox" in row else {})}, ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )
        ends.append(len(packed))
    return {
        "rows": np.frombuffer(bytes(packed), dtype=np.uint8),
        "row_ends": np.asarray(ends, dtype=np.int64),
        "first": first.astype(np.int64),
        "shard_first": np.asarray(_cuts(counts.tolist(), sizes, samples_per_shard, max_bytes), dtype=np.int64),
    }


def _pictures(rows: PackedRows) -> NDArray[np.int64]:
    """The picture of each row, numbered by first appearance [N]."""
    hashes = np.empty(len(rows), dtype="S16")
    for number in range(len(rows)):
        hashes[number] = hashlib.blake2b(rows[number]["image"].encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    _, place, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    numbers = np.empty(len(place), dtype=np.int64)
    numbers[np.argsort(place)] = np.arange(len(place))
    of_row: NDArray[np.int64] = numbers[inverse.reshape(-1)]
    return of_row


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _cuts(counts: Sequence[int], sizes: Sequence[int] | None, samples: int | None, max_bytes: int | None) -> list[int]:
    """The first picture of each shard, and the number of pictures."""
    cuts, held, weight = [0], 0, 0
    for number, count in enumerate(counts):
        size = sizes[number] if sizes else 0
        full = (samples is not None and held + count > samples) or (max_bytes is not None and weight + size > max_bytes)
        if full and number > cuts[-1]:
            cuts.append(number)
            held, weight = 0, 0
        held, weight = held + count, weight + size
    return [*cuts, len(counts)]


def write_plan(arrays: dict[str, NDArray[Any]], output: Path) -> None:
    """Keep a plan in the folder of its shards."""
    with replacing(output / PLAN) as stream:
        stream.write(save(arrays))


def jobs(output: Path, images: Path, *, kind: str, max_side: int | None) -> dict[str, Job]:
    """The shards of the plan in a folder, by name."""
    with safe_open(str(output / PLAN), framework="np") as file:
        count = len(file.get_tensor("shard_first")) - 1
    digits = max(6, len(str(count - 1)))
    names = [f"{number:0{digits}d}.tar" for number in range(count)]
    return {name: Job(output, number, name, images, kind, max_side) for number, name in enumerate(names)}


def planned(job: Job) -> Iterator[tuple[str, list[Row]]]:
    """(key, rows) of each picture of a shard."""
    with safe_open(str(job.output / PLAN), framework="np") as file:
        start, end = file.get_slice("shard_first")[job.number : job.number + 2].tolist()
        firsts = file.get_slice("first")[start : end + 1].tolist()
        ends = file.get_slice("row_ends")[firsts[0] : firsts[-1] + 1].tolist()
        content = file.get_slice("rows")[ends[0] : ends[-1]].tobytes()
    texts = [content[low - ends[0] : high - ends[0]] for low, high in zip(ends, ends[1:], strict=False)]
    for number, (low, high) in enumerate(zip(firsts, firsts[1:], strict=False), start):
        yield f"{number:09d}", [json.loads(text) for text in texts[low - firsts[0] : high - firsts[0]]]


def is_written(job: Job) -> bool:
    """Whether a shard and its index are there."""
    return job.target.is_file() and find_index(str(job.target), job.kind, job.output) is not None


def write_shard(job: Job) -> list[Note]:
    """Write a shard and its index. Pictures that cannot be read are left out, noted, and named in `<shard>.left_out.txt`; BadItem
    where none can be read."""
    notes: list[Note] = []
    written = 0
    with replacing(job.target) as stream, TarWriter(stream, encoder=False, mtime=0, user="", group="", mode=0o644) as writer:
        for key, rows in planned(job):
            try:
                suffix, content, size = read_picture(job.images / rows[0]["image"], max_side=job.max_side)
            except BadItem as error:
                kind, _, rest = str(error).partition(": ")
                notes.append((kind, f"{rest}, {len(rows)} rows"))
                continue
            stored = [{name: value for name, value in row.items() if name != "image"} for row in rows]
            about = {"image": rows[0]["image"], **({"size": size} if size else {}), "rows": stored}
            texts = json.dumps(about, ensure_ascii=False)
            writer.write({"__key__": key, suffix: content, "json": texts.encode("utf-8", "surrogatepass")})
            written += 1
        if not written:
            raise BadItem(f"shard without a picture: {'; '.join(place for _, place in notes[:3])}")
    write_index(str(job.target), job.kind, job.output)
    left_out = Problems()
    for note in notes:
        left_out.add(*note)
    left_out.write(job.output / f"{job.name}.left_out.txt")
    return notes


def read_picture(path: Path, *, max_side: int | None) -> tuple[str, bytes, list[int] | None]:
    """The suffix and the bytes of a picture: as it lies on disk, or where a side is longer than `max_side` pixels, a smaller
    JPEG, with the [width, height] that it had. Only then it is decoded. BadItem for one that is missing or cannot be read."""
    if not path.is_file():
        raise BadItem(f"missing image: {path}")
    content = path.read_bytes()
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            suffix = path.suffix[1:].lower()
            if suffix not in PICTURES:
                suffix = (picture.format or "").lower()
            if max_side is None or max(width, height) <= max_side:
                if suffix not in PICTURES:
                    raise BadItem(f"image of another kind: {path} ({picture.format}; accepted: {', '.join(PICTURES)})")
                return suffix, content, None
            ratio = max_side / max(width, height)
            size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
            smaller = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    except BadItem:
        raise
    except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
        raise BadItem(f"broken image: {path} ({type(error).__name__}: {error})") from error
    stream = io.BytesIO()
    smaller.save(stream, format="JPEG", quality=QUALITY)
    return "jpg", stream.getvalue(), [width, height]


def write_manifest(found: dict[str, Job], *, planned_rows: int, left_out: dict[str, int]) -> dict[str, Any]:
    """Write what each shard holds to manifest.json, and return it. `left_out`: rows that never came to a shard, by reason."""
    shards: dict[str, Any] = {}
    job = next(iter(found.values()))
    for name, each in found.items():
        index = find_index(str(each.target), each.kind, each.output) if each.target.is_file() else None
        if index is not None:
            size = each.target.stat().st_size
            shards[name] = {"pictures": index[1].pictures, "samples": index[1].samples, "bytes": size}
    totals = {key: sum(shard[key] for shard in shards.values()) for key in ("pictures", "samples", "bytes")}
    lost = planned_rows - totals["samples"]
    counts = {**left_out, **({"not written": lost} if lost else {})}
    manifest = {"kind": job.kind, **totals, "left_out": counts, "shards": shards}
    with replacing(job.output / MANIFEST) as stream:
        stream.write(json.dumps(manifest, indent=1).encode())
    return manifest
