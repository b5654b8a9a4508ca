"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lavis.common.errors import ConfigError

Source = str | os.PathLike[str] | bytes | IO[bytes]  # of a file that somebody has


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
    if durable:
        with contextlib.suppress(OSError):  # not every file system lets a folder be opened
            _sync(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes ``path`` when the block ends well, and is gone otherwise.

    A process that is killed leaves a hidden folder of another name. ConfigError where ``path`` is a file or holds anything.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} is {'not empty' if path.is_dir() else 'a file'}; accepted: a folder that is new or empty")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process of that number that was killed
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for item in temporary.rglob("*"):
            if item.is_file():
                _sync(item)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    with contextlib.suppress(OSError):
        _sync(path.parent)


def set_aside(path: Path) -> None:
    """Rename an existing file to the first free ``<stem>.<n><suffix>``, so that a new one can take its name."""
    if not path.exists():
        return
    number = 1
    while (old := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(old)


def _sync(path: Path) -> None:
    """Wait until the disk has a file or a folder."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file. ValueError names a file that is missing, a folder, or not JSON."""
    source = Path(path)
    if not source.is_file():
        raise ValueError(f"{source} {'is a folder' if source.is_dir() else 'does not exist'}; expected a JSON file")
    try:
        return json.loads(source.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{source} is not a whole JSON file: {error}") from error


def read_bounded(source: Source, name: str, *, most: int, error: type[ConfigError]) -> bytes:
    """The bytes of a path, of bytes or of a binary stream. `error`, which names the file `name`, where it is missing, empty or
    larger than `most` bytes; no more than these are read."""
    if isinstance(source, bytes):
        content = source
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise error(f"{name}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
        with path.open("rb") as stream:
            content = stream.read(most + 1)
    else:
        content = source.read(most + 1)
    if len(content) > most:
        raise error(f"{name}: the file is larger than {most >> 20} MB, which is the most that is read")
    if not content:
        raise error(f"{name}: the file is empty")
    return content
