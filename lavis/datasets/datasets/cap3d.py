"""Cap3D's caption files (arXiv 2306.07279) in RegionBLIP's layout: a line `<object id>,<caption>` per caption."""

from __future__ import annotations

import os
from collections.abc import Iterator


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str, str | None]]:
    """(line number from 1, object id, caption) of a file; commas may follow the first. Blank lines are passed over;
    the caption of a line without a comma is None. ValueError for a file that cannot be read as UTF-8 text."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                object_id, comma, caption = line.strip().partition(",")
                if object_id or comma:
                    yield number, object_id, caption if comma else None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)}: cannot be read as UTF-8 text ({error})") from error
