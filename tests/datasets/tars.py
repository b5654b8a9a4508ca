"""Shards as img2dataset and others write them, for the tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(number: int, *, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """A picture of `size` (width, height), noise that follows from its number."""
    pixels = np.random.RandomState(number).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes | dict[str, Any] | str]) -> Path:
    """A tar of these members; objects become JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content if isinstance(content, str) else json.dumps(content)
            raw = data if isinstance(data, bytes) else data.encode()
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


def captions(first: int, count: int) -> dict[str, Any]:
    """Members of `count` pictures with captions, keyed by number from `first`."""
    members: dict[str, Any] = {}
    for number in range(first, first + count):
        members[f"{number:06d}.jpg"] = picture(number)
        members[f"{number:06d}.json"] = {"caption": f"picture {number}", "url": "x", "width": 40}
    return members


def regions(first: int, counts: list[int]) -> dict[str, Any]:
    """Members of pictures with as many regions each."""
    members: dict[str, Any] = {}
    for number, count in enumerate(counts, first):
        members[f"{number:06d}.jpg"] = picture(number)
        rows = [
            {"image_id": f"i{number}", "bbox": [n % 20, 2, 10, 12], "caption": f"region {n} of {number}"} for n in range(count)
        ]
        members[f"{number:06d}.json"] = {"rows": rows}
    return members
