"""Text files that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from lavis.common.files import read_json, replacing

__all__ = ["read_json", "write_text"]


def write_text(text: str, path: str | os.PathLike[str]) -> Path:
    """Write `text` as UTF-8 to a temporary file beside `path`, then rename; returns the path. Folders are made."""
    target = Path(path)
    with replacing(target) as stream:
        stream.write(text.encode())
    return target
