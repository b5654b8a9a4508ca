"""What a conversion met that it could not use as it stands: named, and counted by kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lavis.common.files import replacing

NAMED = 10  # of one kind, in the summary; the file of all problems names each


class Problems:
    """Places in the input by kind of problem, both in words, in the order in which they were met."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}

    def add(self, kind: str, where: str) -> None:
        """Note one problem; `where` names it, as in `ref 12 (ann_id 7)`."""
        self._places.setdefault(kind, []).append(where)

    def __len__(self) -> int:
        return sum(map(len, self._places.values()))

    @property
    def counts(self) -> dict[str, int]:
        """{kind: how many}."""
        return {kind: len(places) for kind, places in self._places.items()}

    def lines(self, *, named: int = NAMED) -> Iterator[str]:
        """A line per kind for the summary: its count and the first `named` of it."""
        for kind, places in self._places.items():
            more = f", ... ({len(places) - named} more)" if len(places) > named else ""
            yield f"{len(places)} {kind}: {', '.join(places[:named])}{more}"

    def write(self, path: Path) -> Path | None:
        """Write every problem, a line `<kind>: <place>` each, to `path`, and return it; without any, remove an older file
        of them and return None."""
        if not len(self):
            path.unlink(missing_ok=True)
            return None
        with replacing(path) as stream:
            for kind, places in self._places.items():
                stream.writelines(f"{kind}: {place}\n".encode() for place in places)
        return path
