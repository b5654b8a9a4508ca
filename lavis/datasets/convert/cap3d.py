"""Cap3D's table of captions (csv, `<object id>,<caption>` with quotes where they are needed) to lines that
`lavis.datasets.datasets.cap3d` reads: `<object id>,<caption>` without quotes, a line per caption."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

from lavis.common.files import replacing
from lavis.datasets.convert.problems import Problems

HEADS = ("caption", "captions", "text", "description")  # names of the second column, where a table has a head


def read_ids(path: Path) -> list[str]:
    """The object ids of a text file, one per line. ValueError for none."""
    try:
        ids = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if not ids:
        raise ValueError(f"{path}: no object ids; accepted: one per line")
    return ids


def read_captions(path: Path, problems: Problems) -> list[tuple[str, str]]:
    """(object id, caption) of each row of a csv file, in its order. White space in a caption, line breaks too, becomes one
    space. A row of one column, without an id or without a caption is a problem. ValueError for a file that is no csv."""
    rows = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                where = f"line {reader.line_num}"
                object_id, caption = (cells or [""])[0].strip(), " ".join(",".join(cells[1:]).split())
                if not cells or (reader.line_num == 1 and caption.lower() in HEADS):
                    continue
                if len(cells) < 2:
                    problems.add("row of one column", f"{where}: {object_id[:60]!r}")
                elif not object_id or "," in object_id:
                    problems.add("malformed object id", f"{where}: {object_id[:60]!r}")
                elif not caption:
                    problems.add("empty caption", f"{where}: {object_id}")
                else:
                    rows.append((object_id, caption))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a csv file ({error})") from error
    return rows


def select(
    rows: list[tuple[str, str]], problems: Problems, *, only: Collection[str] | None = None, without: Collection[str] = ()
) -> list[tuple[str, str]]:
    """The rows of objects in `only` and not in `without`. An object of `only` that has no caption is a problem; so is one
    with several, of which a reader takes the last."""
    chosen, banned = None if only is None else set(only), set(without)
    kept = [row for row in rows if (chosen is None or row[0] in chosen) and row[0] not in banned]
    seen: set[str] = set()
    for object_id, _ in kept:
        if object_id in seen:
            problems.add("object with a further caption (training takes the last)", object_id)
        seen.add(object_id)
    for object_id in only or ():
        if object_id not in seen and object_id not in banned:
            problems.add("object without a caption", object_id)
    return kept


def write_lines(rows: list[tuple[str, str]], path: Path) -> None:
    """Write (object id, caption) as lines. ValueError for none."""
    if not rows:
        raise ValueError(f"no captions to write to {path}")
    with replacing(path) as stream:
        stream.writelines(f"{object_id},{caption}\n".encode() for object_id, caption in rows)
