"""Text files that are either whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(text: str, path: str | os.PathLike[str]) -> Path:
    """Write `text` as UTF-8 to a temporary file beside `path`, then rename; returns the path. Folders are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file. ValueError names a file that is missing, a folder, or not JSON."""
    source = Path(path)
    if not source.is_file():
        raise ValueError(f"{source} {'is a folder' if source.is_dir() else 'does not exist'}; expected a JSON file")
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{source} is not a whole JSON file: {error}") from error
