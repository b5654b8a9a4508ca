"""What a check found: counts by kind with the first examples, of one split, between splits, and of other files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NAMED = 5  # examples per kind


@dataclass
class Finding:
    """One kind of thing: how many rows, of how many different pictures or clouds, and which first."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    sources: set[int] = field(default_factory=set)  # hashes of what the rows are read from


class Findings:
    """Findings by kind, in the order of first sight."""

    def __init__(self) -> None:
        self.kinds: dict[str, Finding] = {}

    def add(self, kind: str, example: str, *, count: int = 1, source: int | None = None) -> None:
        finding = self.kinds.setdefault(kind, Finding())
        finding.count += count
        if len(finding.first) < NAMED:
            finding.first.append(example)
        if source is not None:
            finding.sources.add(source)

    def merge(self, other: Findings) -> None:
        for kind, theirs in other.kinds.items():
            mine = self.kinds.setdefault(kind, Finding())
            mine.count += theirs.count
            mine.first = (mine.first + theirs.first)[:NAMED]
            mine.sources |= theirs.sources

    @property
    def count(self) -> int:
        return sum(finding.count for finding in self.kinds.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            kind: {"count": finding.count, "different": len(finding.sources) or None, "first": finding.first}
            for kind, finding in self.kinds.items()
        }

    def lines(self) -> Iterator[str]:
        """For people: `80 missing image (21 different):` and an indented line per example."""
        for kind, finding in self.kinds.items():
            different = f" ({len(finding.sources):,} different)" if 0 < len(finding.sources) < finding.count else ""
            yield f"{finding.count:,} x {kind}{different}"
            yield from (f"    {example}" for example in finding.first)
            if finding.count > len(finding.first):
                yield "    ..."


@dataclass
class SplitCheck:
    """One split of one dataset.

    `errors` stop a run before its first step; `problems` are rows that will be skipped, scored as empty, or lost; `notes` are
    odd, and used as they are. `rows`: in the files, `dropped` of them when these were read; `samples`: what the others make (of
    an evaluation, rows of one thing are one sample); `loaded`: how many samples were looked at, `whole` of them as training
    loads them.
    """

    dataset: str
    split: str
    modality: str = ""
    files: list[str] = field(default_factory=list)
    rows: int = 0
    dropped: int = 0
    samples: int = 0
    loaded: int = 0
    whole: int = 0
    errors: list[str] = field(default_factory=list)
    problems: Findings = field(default_factory=Findings)
    notes: Findings = field(default_factory=Findings)
    seconds: float = 0.0
    hashes: Hashes | None = None

    @property
    def name(self) -> str:
        return f"{self.dataset}, {self.split}"

    def is_tolerable(self, tolerate: float) -> bool:
        """No kind of problem in more than this share of the rows."""
        worst = max((finding.count for finding in self.problems.kinds.values()), default=0)
        return worst <= tolerate * (self.samples + self.dropped)

    def is_fine(self, tolerate: float) -> bool:
        """No error, and no kind of problem in more than this share."""
        return not self.errors and self.is_tolerable(tolerate)

    def to_dict(self) -> dict[str, Any]:
        plain = {key: value for key, value in vars(self).items() if key != "hashes"}
        return {**plain, "problems": self.problems.to_dict(), "notes": self.notes.to_dict()}


@dataclass
class Hashes:
    """64-bit hashes of the rows of a split, uint64 [rows]: of what must not be twice (the content of a training row, the result
    id of an evaluation), and of what they are read from (empty where rows do not say)."""

    row: np.ndarray
    source: np.ndarray
    label: Callable[[int], str] = str  # where row i stands


@dataclass
class FileCheck:
    """A file or folder that a key names, and what is wrong with it (empty: nothing)."""

    key: str
    path: str
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))
