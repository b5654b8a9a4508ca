"""A file of JSON lines that grows while a long job runs, and with which the job goes on where it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lavis.common.errors import ConfigError
from lavis.common.files import read_json, replacing

SETTINGS = ".settings.json"  # added to the file's name: what its rows were made with


class RowsFile:
    """Rows {"id": ...} of `path`; `done` are the ids that it held when it was opened.

    A last line that was cut short is dropped. Beside the file stands what the rows were made with; ConfigError where that is
    something else than `settings`, and for a file that is none of these.
    """

    def __init__(self, path: str | Path, *, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.settings_path = self.path.with_name(self.path.name + SETTINGS)
        self.done: set[str] = set()
        if self.path.is_dir():
            raise ConfigError(f"{self.path} is a folder; accepted: a file to write")
        if self.path.exists() and self.path.stat().st_size:
            self._check(settings)
            whole = self._read()
        else:
            whole = 0
            with replacing(self.settings_path, durable=False) as stream:
                stream.write((json.dumps(dict(settings), indent=1, sort_keys=True) + "\n").encode())
        self._stream = self.path.open("r+b" if self.path.exists() else "w+b", buffering=0)
        self._stream.truncate(whole)
        self._stream.seek(whole)

    def _check(self, settings: Mapping[str, Any]) -> None:
        if not self.settings_path.is_file():
            raise ConfigError(
                f"{self.path} is there, but not {self.settings_path.name}, which says what made it; name another file"
            )
        made_with = read_json(self.settings_path)
        now = json.loads(json.dumps(dict(settings)))
        if made_with != now:
            keys = [key for key in sorted({*made_with, *now}) if made_with.get(key) != now.get(key)]
            told = "; ".join(f"{key}: {made_with.get(key)} then, {now.get(key)} now" for key in keys)
            raise ConfigError(f"{self.path} was made with other settings ({told}); name another file, or remove it")

    def _read(self) -> int:
        """Take note of the rows that are there; returns the bytes of whole lines."""
        content = self.path.read_bytes()
        lines = content.splitlines(keepends=True)
        whole = 0
        for number, line in enumerate(lines, 1):
            try:
                identity = json.loads(line)["id"]
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    break
                raise ConfigError(f"{self.path}, line {number}: no row of ours; name another file, or remove it") from error
            if not line.endswith(b"\n"):
                break
            self.done.add(str(identity))
            whole += len(line)
        return whole

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows behind the others, in one piece."""
        content = memoryview("".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows).encode())
        while content:
            content = content[self._stream.write(content) :]

    def __enter__(self) -> RowsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.fsync(self._stream.fileno())
        self._stream.close()
