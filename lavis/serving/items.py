"""What `tools/caption_folder.py` is to caption: files of a folder, or the rows of a list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis.common.errors import ConfigError
from lavis.datasets.cloud_files import READERS
from lavis.datasets.datasets.base_dataset import read_annotations
from lavis.serving.images import SUFFIXES

KINDS = ("image", "image_region", "pointcloud", "pointcloud_region")  # the order in which they are captioned
INPUTS = ("image", "pointcloud")
REGIONS = ("regions", "boxes")


@dataclass(frozen=True)
class Item:
    """One file, and its regions where those are asked for (as `processors.prompts` reads them). `problem`: why its row cannot be
    used."""

    id: str
    kind: str  # one of KINDS
    name: str  # the path as the folder or the list has it
    path: Path
    folder: Path  # where the paths of masks start
    regions: tuple[Any, ...] = ()
    problem: str = ""

    @property
    def encoder(self) -> str:
        """What reads the file, image or pointcloud; also the key of its name in the output."""
        return self.kind.removesuffix("_region")

    @property
    def rows(self) -> int:
        """How many captions it asks for."""
        return max(1, len(self.regions))


def find_items(source: str | Path, *, root: str | Path | None = None) -> list[Item]:
    """All pictures and clouds below a folder, sorted by path; or the rows of a JSON list, or of JSON lines (.jsonl).

    A row: {"image": path} or {"pointcloud": path}, perhaps with "boxes" or "regions" (`processors.prompts` says what each may be)
    and with "id" (default: the path). Paths start from `root` (default: the folder of the list). Order: `KINDS`, within a kind
    that of the source. ConfigError for a source without items, and for two rows of one id.
    """
    source = Path(source)
    if source.is_dir():
        items = _of_folder(source)
        if not items:
            raise ConfigError(f"{source} holds no picture and no cloud; accepted: {', '.join((*SUFFIXES, *READERS))}")
    elif source.is_file():
        folder = Path(root) if root is not None else source.parent
        items = [_of_row(row, label, folder) for label, row in read_annotations(source)]
        if not items:
            raise ConfigError(f"{source} holds no rows")
    else:
        raise ConfigError(f"{source} does not exist; accepted: a folder, a JSON list, or JSON lines (.jsonl)")
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{source} has {len(twice)} ids more than once, the first: {twice[0]!r}; give every row an id of its own"
        )
    return sorted(items, key=lambda item: KINDS.index(item.kind))


def _of_folder(folder: Path) -> list[Item]:
    items = []
    for path in sorted(folder.rglob("*")):
        suffix, name = path.suffix.lower(), path.relative_to(folder).as_posix()
        if path.is_file() and not path.name.startswith(".") and suffix in (*SUFFIXES, *READERS):
            items.append(Item(name, "image" if suffix in SUFFIXES else "pointcloud", name, path, folder))
    return items


def _of_row(row: dict[str, Any], label: str, folder: Path) -> Item:
    inputs = [key for key in INPUTS if key in row]
    given = [key for key in REGIONS if key in row]
    if len(inputs) != 1 or not isinstance(row[inputs[0]], str):
        return Item(
            label, "image", label, folder, folder, problem="the row names no file; accepted: a path under image or pointcloud"
        )
    encoder, name = inputs[0], row[inputs[0]]
    identity = row.get("id", name)
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        return Item(label, "image", name, folder / name, folder, problem=f"id {identity!r} is no text and no whole number")
    regions = row[given[0]] if given else None
    problem = ""
    if len(given) > 1 or (given and (not isinstance(regions, list) or not regions)):
        problem, regions = f"{' and '.join(given)}: accepted: one list of at least one region", None
    kind = f"{encoder}_region" if given else encoder
    return Item(str(identity), kind, name, folder / name, folder, tuple(regions or ()), problem)


def batches_of(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Items of one kind at a time in batches of at most `size` captions; an item that asks for more is a batch of its own.

    The same items give the same batches, so that a run that was stopped goes on with what it would have done.
    """
    batches: list[list[Item]] = []
    rows = 0
    for item in items:
        if not batches or batches[-1][0].kind != item.kind or rows + item.rows > size:
            batches.append([])
            rows = 0
        batches[-1].append(item)
        rows += item.rows
    return batches
