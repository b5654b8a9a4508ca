"""Dataset items: from annotation rows to samples, and from samples to a batch.

A sample is a dict: modality (str), text_input (str), image_id (str or int), instance_id (str, the row it was
made of), and what its modality reads: image [3, H, W] float32, box [4] float32 (x1, y1, x2, y2 as shares of the
picture, in [0, 1]), pointcloud [N, 3 or 6] float32, box_corners [8, 3] float32 metres; where loader processes group
the points of clouds, point_groups [G, 1 + K] int32. A batch has the same keys: tensors are stacked on a new first
axis, all else becomes a list of B, and modality stays one string.

A row that cannot be used never ends a run. In training another row stands in for it, drawn from (seed, epoch,
index); in evaluation the sample keeps its place as a zero image, or a cloud of no meaning, with `readable` False.
Either way `skipped` names the row.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from lavis.common.errors import ConfigError
from lavis.common.seeding import sample_rng
from lavis.datasets.batches import Batch, Sample, collate, rename_inputs
from lavis.datasets.orders import Indices, Order

logger = logging.getLogger(__name__)

Row = dict[str, Any]

MAX_REPLACEMENTS = 1000  # rows tried in the place of an unusable one before the file is given up
MAX_PROBES = 10_000  # rows looked at, per file, for one that can be used
MAX_NAMED = 50  # dropped rows named one by one in the log


class AnnotationError(ValueError):
    """An annotation file that cannot be read, or holds nothing that can be used."""


class BadSample(Exception):
    """One row cannot be used; `reason` says why, in words for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_annotations(path: str | Path) -> Iterator[tuple[str, Row]]:
    """The rows of an annotation file, each with a label of its place, `train.json[3]` or `train.jsonl:4`.

    Formats: a JSON list of objects; a JSON object of objects (its keys become `sample_id`); JSON lines
    (*.jsonl). AnnotationError names the file, and the row that is not an object.
    """
    path = Path(path)
    try:
        for label, row in _read_lines(path) if path.suffix == ".jsonl" else _read_json(path):
            if not isinstance(row, dict):
                raise AnnotationError(f"{path}: row {label} is {_shorten(row)}; accepted: an object of keys")
            yield label, row
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path.name}:{number}", _parse_json(line, f"{path}, line {number}")


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    content = _parse_json(path.read_text(encoding="utf-8-sig"), str(path), hint="; JSON lines end in .jsonl")
    if isinstance(content, list):
        for number, row in enumerate(content):
            yield f"{path.name}[{number}]", row
    elif isinstance(content, dict):
        for key, row in content.items():
            yield f"{path.name}[{key!r}]", {"sample_id": key, **row} if isinstance(row, dict) else row
    else:
        raise AnnotationError(f"{path}: holds {_shorten(content)}; accepted: a list or an object of rows")


def _parse_json(text: str, where: str, *, hint: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise AnnotationError(f"{where}: not valid JSON at {at} ({error.msg}){hint}") from error


def _shorten(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class PackedRows(Sequence[Row]):
    """Rows as JSON bytes in one array: no Python objects, so loader workers share the memory of millions."""

    def __init__(self, rows: Iterable[Row]) -> None:
        packed = bytearray()
        ends = [0]
        for row in rows:
            packed += json.dumps(row, ensure_ascii=False).encode()
            ends.append(len(packed))
        self._bytes = np.frombuffer(bytes(packed), dtype=np.uint8)
        self._ends = np.asarray(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = int(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"row {position} of {len(self)}")
        position %= len(self)
        return json.loads(self._bytes[self._ends[position] : self._ends[position + 1]].tobytes())

    def digest(self) -> str:
        """sha256 of all rows."""
        return hashlib.sha256(self._bytes.tobytes() + self._ends.tobytes()).hexdigest()


class RecentlyUsed:
    """The last `size` results of a slow function, by key."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` returned for the key, called anew where it is not kept. Do not change it in place."""
        if key not in self._kept:
            self._kept[key] = make()
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


class BaseDataset(Dataset[Sample]):
    """Annotation rows that load into samples of one modality.

    A subclass says how a row is checked (`parse`), how it loads (`load`), and for evaluation what stands in
    for one that does not (`placeholder`). It may read other files (`read_file`) and set the rows in order
    (`arrange`). Item keys are an index, or a pair (epoch, index); equal keys give equal samples, in any
    process.
    """

    training: ClassVar[bool] = True  # unusable rows are replaced; False: they keep their place
    share_inputs: bool = False  # collate one picture, or one cloud, for several regions of it
    grouped: bool = False  # rows of one input are read next to each other (`group_rows`)
    needs: ClassVar[str] = ""  # the keys of a row, for messages

    def __init__(
        self,
        *,
        ann_paths: Sequence[str | Path],
        name: str,
        split: str,
        modality: str,
        dataset_repeat_num: int = 1,
    ) -> None:
        if not isinstance(dataset_repeat_num, int) or dataset_repeat_num < 1:
            given = f"dataset_repeat_num of {name}, {split} is {dataset_repeat_num!r}"
            raise ValueError(f"{given}; accepted: an integer of 1 or more")
        if not ann_paths:
            raise ValueError(f"dataset {name}, {split} is given no annotation file")
        self.name, self.split, self.modality = name, split, modality
        self.repeat = dataset_repeat_num if self.training else 1
        self.files = [Path(path) for path in ann_paths]
        self.seed = 0
        self._dropped: list[tuple[str, str]] = []
        self.dropped: Sequence[tuple[str, str]] = self._dropped  # (row, reason) of rows left out in reading
        self.rows_read = 0  # of the files, those left out counted
        self.read_rows()
        self._log_dropped()

    # What a subclass implements

    def read_rows(self) -> None:
        """Set `rows` from the files, all in memory, and note what is left out."""
        file_of_row: list[int] = []
        self.rows: PackedRows = PackedRows(self._rows(file_of_row))
        self._file_of_row = np.asarray(file_of_row, dtype=np.int32)

    def parse(self, row: Row, label: str) -> Row:
        """The checked row with what `load` needs, JSON values only. BadSample when it is to be left out."""
        raise NotImplementedError

    def load(self, index: int, rng: np.random.RandomState) -> Sample:
        """The sample of row `index`, every random draw from `rng`. BadSample when the row cannot be used."""
        raise NotImplementedError

    def placeholder(self, index: int) -> Sample:
        """An evaluation sample of the same keys for row `index`, which does not load."""
        raise NotImplementedError

    def read_file(self, path: Path) -> Iterator[tuple[str, Row]]:
        """(label, row) of one annotation file."""
        return read_annotations(path)

    def arrange(self, rows: Iterator[Row]) -> Iterable[Row]:
        """The rows in the order, or the groups, in which they are indexed."""
        return rows

    def epoch_order(self, *, seed: int, epoch: int) -> Order | None:
        """The order of an epoch, where the dataset is to be read in one of its own; None: any permutation will do."""
        return None

    def group_rows(self) -> None:
        """From now on read rows of one picture or cloud next to each other, with one set of draws, so that a batch encodes it
        once; samples say by `positive_key` which of them describe the same thing. ConfigError where rows name neither."""
        raise ConfigError(f"run.group_by_image: rows of dataset {self.name} name no picture and no cloud; accepted here: false")

    def groups(self) -> Indices | None:
        """The number of each sample's group, for `group_rows`; None where the dataset's own order has them together."""
        return None

    def thing_of(self, row: Row) -> str:
        """What a row describes, by a name: no other row that has it is a negative of this one."""
        raise NotImplementedError

    def draws_of(self, index: int) -> int:
        """The number that, with seed and epoch, decides the draws of sample `index`; samples may share one."""
        return index

    # Items

    def __len__(self) -> int:
        return len(self.rows) * self.repeat

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in dataset {self.name}")
        index %= len(self)
        row = index % len(self.rows)
        skipped: list[tuple[str, str]] = []
        draws = self.draws_of(index)
        try:
            sample = self.load(row, sample_rng(self.seed, epoch, draws))
        except BadSample as error:
            skipped.append((self.row_label(row), error.reason))
            if self.training:
                row, sample = self._replace(epoch, index, error)
            else:
                sample = self.placeholder(row)
        sample.update(modality=self.modality, instance_id=self.row_label(row), skipped=skipped)
        if self.grouped:  # the draws are part of what an input is
            sample["positive_key"] = self.thing_of(self.rows[row])
            rename_inputs(sample, f"in place of {index}" if skipped else str(draws))
        if not self.training:
            sample["readable"] = not skipped
        return sample

    def _replace(self, epoch: int, index: int, error: BadSample) -> tuple[int, Sample]:
        rng = sample_rng(self.seed, epoch, index)
        for _ in range(MAX_REPLACEMENTS):
            row = int(rng.randint(len(self.rows)))
            try:
                return row, self.load(row, rng)
            except BadSample as failure:
                error = failure
        files = ", ".join(str(path) for path in self.files)
        raise AnnotationError(f"{files}: {MAX_REPLACEMENTS} rows drawn, none can be used (the last: {error.reason})")

    def row_label(self, index: int) -> str:
        """Where row `index` stands: its file's name and its place there."""
        return str(self.rows[index]["label"])

    def content_of(self, row: Row) -> Any:
        """What no two rows should have in common: the whole of a training row, the result id of another."""
        return {key: value for key, value in row.items() if key != "label"} if self.training else row.get("image_id")

    def label_of(self, index: int) -> str:
        """The row label of sample `index`."""
        return self.row_label(index % len(self.rows))

    def identity(self) -> dict[str, Any]:
        """What decides the samples, but for the pictures or clouds: rows by content, files by size and time. Plain values."""
        files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in self.files]
        return {"name": self.name, "split": self.split, "rows": self.rows.digest(), "files": files}

    def set_seed(self, seed: int) -> None:
        """The seed from which, with epoch and index, each sample's random draws come."""
        self.seed = seed

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """One batch of these samples."""
        return collate(samples, share_inputs=self.share_inputs)

    def check_usable(self) -> None:
        """Load rows of each file until one is good; AnnotationError names a file of which none is."""
        for number, path in enumerate(self.files):
            rows = np.flatnonzero(self._file_of_row == number)
            step = max(1, len(rows) // MAX_PROBES)
            reasons: list[str] = []
            for row in rows[::step].tolist():
                try:
                    self.load(row, sample_rng(self.seed, 0, row))
                    break
                except BadSample as error:
                    reasons.append(f"{self.row_label(row)}: {error.reason}")
            else:
                if reasons:
                    raise AnnotationError(f"{path}: no usable row among {len(reasons)}; {'; '.join(reasons[:3])}")

    # Reading

    def _rows(self, file_of_row: list[int]) -> Iterator[Row]:
        for row in self.arrange(self._parsed()):
            file_of_row.append(row.pop("file"))
            yield row

    def _parsed(self) -> Iterator[Row]:
        for number, path in enumerate(self.files):
            kept, dropped, keys = 0, len(self._dropped), ""
            for label, row in self.read_file(path):
                keys = keys or ", ".join(row)
                self.rows_read += 1
                try:
                    parsed = self.parse(row, label)
                except BadSample as error:
                    self._dropped.append((label, error.reason))
                    continue
                kept += 1
                yield {**parsed, "label": label, "file": number}
            if not kept:
                why = [f"{label}: {reason}" for label, reason in self._dropped[dropped : dropped + 3]]
                detail = f"{'; '.join(why)}. A row needs {self.needs}; the first has {keys}"
                raise AnnotationError(f"{path}: no usable row: {detail if why else 'it has no rows'}")

    def _log_dropped(self) -> None:
        for label, reason in self.dropped[:MAX_NAMED]:
            logger.warning("dataset %s, %s: row %s left out: %s", self.name, self.split, label, reason)
        if self.dropped:
            counts = Counter(reason.split(":")[0] for _, reason in self.dropped)
            summary = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
            kept = f"{len(self.dropped)} rows left out ({summary}), {len(self.rows)} kept"
            logger.warning("dataset %s, %s: %s", self.name, self.split, kept)
