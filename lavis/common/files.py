"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A stream whose content becomes ``path`` when the block ends well, and nothing otherwise. Folders are made.

    ``durable`` waits until the disk has it. Without, a power cut may leave an empty file: for what can be made anew.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if not durable:
        return
    with contextlib.suppress(OSError):  # not every file system lets a folder be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file. ValueError names a file that is missing, a folder, or not JSON."""
    source = Path(path)
    if not source.is_file():
        raise ValueError(f"{source} {'is a folder' if source.is_dir() else 'does not exist'}; expected a JSON file")
    try:
        return json.loads(source.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{source} is not a whole JSON file: {error}") from error
