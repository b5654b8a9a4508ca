"""Everything that a run will read, read before it: what is missing, unreadable or inconsistent, with counts and examples.

The dataset classes themselves read and load, so that what is found good here is what training takes. Of pictures the headers
are read (there, of a known kind, with a size that the boxes fit in), and some are decoded whole; `decode` does so with all.
Clouds are small, and always read whole.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.base_dataset import AnnotationError, BadSample, BaseDataset, RecentlyUsed, Row
from lavis.datasets.datasets.captions import KEPT_IMAGES, CaptionedDataset, ImageDataset
from lavis.datasets.datasets.vqa import VQADataset
from lavis.datasets.findings import NAMED, Findings, Hashes, SplitCheck
from lavis.datasets.shards.datasets import ShardDataset

logger = logging.getLogger(__name__)

CHUNK = 256  # rows that a worker takes at a time
SLACK = 1.0  # pixels by which a box may leave its picture unnoticed: annotations round


@dataclass(frozen=True)
class Depth:
    """How much is looked at. `limit`: rows per split, evenly spread (None: all); `decode`: every picture whole, not only
    `whole` of them per split; `workers`: processes that read."""

    limit: int | None = None
    decode: bool = False
    whole: int = 200
    workers: int = 0


Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]  # (items, what, how many) -> the same items
Also = Callable[[BaseDataset], list[str]]  # what else would stop an evaluation on a dataset


def check_datasets(
    configs: Mapping[str, Any], splits: Iterable[str], *, depth: Depth, cache_root: str | None, progress: Progress, also: Also
) -> tuple[list[SplitCheck], list[str]]:
    """A check of each of the splits that a dataset of the configuration has, and errors that belong to none. What is wrong with
    configuration or data is told, not raised."""
    checks: list[SplitCheck] = []
    errors: list[str] = []
    wanted = list(dict.fromkeys(splits))
    for name, cfg in configs.items():
        try:
            builder = registry.get_builder_class(str(name))(cfg, **({"cache_root": cache_root} if cache_root else {}))
            if not isinstance(builder, BaseDatasetBuilder):
                errors.append(f"dataset {name}: {type(builder).__name__} is no BaseDatasetBuilder, so it cannot be checked here")
                continue
            found = [split for split in wanted if split in builder.splits]
        except ConfigError as error:
            errors.append(str(error))
            continue
        of_dataset = [check_split(builder, split, depth=depth, progress=progress, also=also) for split in found]
        for one, other in itertools.combinations(of_dataset, 2):
            compare(one, other)
        for check in of_dataset:
            check.hashes = None
        checks.extend(of_dataset)
    there = {check.split for check in checks}
    if not errors:
        errors += [f"run asks for the split '{split}', which no dataset has" for split in wanted if split not in there]
    return checks, errors


def check_split(builder: BaseDatasetBuilder, split: str, *, depth: Depth, progress: Progress, also: Also) -> SplitCheck:
    """Read the annotation of a split, then load its rows."""
    start = time.perf_counter()
    check = SplitCheck(builder.name, split)
    dataset = _open(builder, split, check)
    if dataset is not None:
        check.modality, check.samples = dataset.modality, len(dataset.rows)
        check.rows, check.dropped = dataset.rows_read, len(dataset.dropped)
        for label, reason in dataset.dropped:
            check.problems.add(_kind(reason), f"{label}: {reason}")
        if isinstance(dataset, ShardDataset):
            for tar, problem in dataset.catalogue.problems:
                check.notes.add(_kind(problem), f"{tar}: {problem}")
        _load_rows(dataset, check, depth=depth, progress=progress)
        if not dataset.training:
            check.errors.extend(also(dataset))
    check.seconds = round(time.perf_counter() - start, 2)
    return check


def _open(builder: BaseDatasetBuilder, split: str, check: SplitCheck) -> BaseDataset | None:
    """The dataset, read from the files of the split that can be read; whatever is wrong goes to the check's errors."""
    try:
        files = builder.annotation_files(split)
    except ConfigError as error:
        check.errors.extend(str(error).split("\n"))
        files = []
    for wrong in builder.wrong_sums:
        check.problems.add("another checksum", wrong)
    builder.wrong_sums.clear()
    check.files = [str(path) for path in files]
    if not files:
        check.errors.extend(_why_no_sources(builder, split))
        return None
    one_kind = not (issubclass(builder.dataset_class(split), VQADataset) and split != "train")  # these list files of other kinds
    while True:
        try:
            return builder.open_dataset(split, files)
        except AnnotationError as error:
            check.errors.append(str(error))
            left = [path for path in files if not str(error).startswith(f"{path}:")]
            if not one_kind or len(left) == len(files) or not left:
                return None
            files = left  # the others are read all the same
        except (ConfigError, ValueError) as error:
            check.errors.append(str(error))
            return None


def _why_no_sources(builder: BaseDatasetBuilder, split: str) -> list[str]:
    """What beside the annotation is missing of a split: folder, processors."""
    try:
        builder.check_sources(split)
    except ConfigError as error:
        return [str(error)]
    return []


def compare(one: SplitCheck, other: SplitCheck) -> None:
    """Pictures, scenes or objects that two splits share: a problem of the evaluation where the other is trained on, else a
    note."""
    if one.hashes is None or other.hashes is None or not len(one.hashes.source) or not len(other.hashes.source):
        return
    train, test = (other, one) if other.split == "train" else (one, other)
    assert train.hashes is not None and test.hashes is not None
    shared = np.isin(test.hashes.source, train.hashes.source)
    rows = np.flatnonzero(shared)
    if not len(rows):
        return
    different = len(np.unique(test.hashes.source[shared]))
    total = len(np.unique(test.hashes.source))
    findings = test.problems if train.split == "train" else test.notes
    shares = f"{different:,} of {total:,} that {test.split} reads are in {train.split} too"
    findings.add(f"also in {train.split}", f"{shares}; the first: row {test.hashes.label(int(rows[0]))}", count=len(rows))


# Rows


class Passing:
    """In the place of a picture processor where pictures are not looked into."""

    deterministic = True
    keeps_frame = True

    def __call__(self, item: Any, *, rng: Any = None) -> Any:
        return item


class Once:
    """A processor whose result for a picture is kept for its next rows, though draws would differ."""

    deterministic = True

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, item: Any, *, rng: Any = None) -> Any:
        return self.processor(item, rng=rng)


@dataclass
class Seen:
    """What a worker found in a chunk of rows."""

    problems: Findings
    notes: Findings
    hashes: Hashes
    loaded: int = 0
    whole: int = 0


class Prober(Dataset[Seen]):
    """Item n: what is to be said of the n-th chunk of a dataset's rows."""

    def __init__(self, dataset: BaseDataset, *, loaded: NDArray[np.bool_], whole: NDArray[np.bool_]) -> None:
        self.dataset, self.loaded, self.whole = dataset, loaded, whole
        self.full = self.light = dataset
        if isinstance(dataset, ImageDataset):
            self.full, self.light = copy.copy(dataset), copy.copy(dataset)
            self.full.vis_processor, self.light.vis_processor = Once(dataset.vis_processor), Passing()
            self.light.headers_only = True
            for view in (self.full, self.light):  # each with pictures of its own at hand
                view._kept = RecentlyUsed(KEPT_IMAGES)
        self.source = dataset.source if isinstance(dataset, CaptionedDataset) and dataset.source != "image_id" else ""

    def __len__(self) -> int:
        return -(-len(self.dataset.rows) // CHUNK)

    def __getitem__(self, number: int) -> Seen:
        indices = range(number * CHUNK, min((number + 1) * CHUNK, len(self.dataset.rows)))
        hashes = Hashes(*np.zeros((2, len(indices)), dtype=np.uint64))
        seen, rng = Seen(Findings(), Findings(), hashes), np.random.RandomState(0)
        for place, index in enumerate(indices):
            row = self.dataset.rows[index]
            hashes.row[place] = _hash(self.dataset.content_of(row))
            label = row.pop("label")
            source = _hash(row.get(self.source)) if self.source else 0
            hashes.source[place] = source
            if self.loaded[index]:
                seen.loaded += 1
                seen.whole += bool(self.whole[index])
                self._load(index, row, label, source or None, seen, rng)
        return seen

    def _load(self, index: int, row: Row, label: str, source: int | None, seen: Seen, rng: np.random.RandomState) -> None:
        view = self.full if self.whole[index] else self.light
        try:
            view.load(index, rng)
        except BadSample as error:
            seen.problems.add(_kind(error.reason), f"{label}: {error.reason}", source=source)
            return
        except Exception as error:  # in training it ends the run
            why = f"{type(error).__name__}: {error}"
            seen.problems.add("not loaded, and ends a run", f"{label}: {why}", source=source)
            return
        if not view.training and isinstance(view, CaptionedDataset) and not any(text.strip() for text in row["captions"]):
            seen.problems.add("no caption to score against", f"{label}: {str(row.get('image_id'))[:80]}", source=source)
        if isinstance(view, ImageDataset) and row.get("bbox"):
            _check_box(row["bbox"], view.read_image(row["image"], rng)[1], label, seen)


def _check_box(bbox: list[float], size: tuple[int, int], label: str, seen: Seen) -> None:
    """A box that leaves its picture is cut to it in training; one that leaves it by more than half belongs to another."""
    (x, y, w, h), (width, height) = bbox, size
    inside = max(min(x + w, width) - max(x, 0.0), 0.0) * max(min(y + h, height) - max(y, 0.0), 0.0) / (w * h)
    over = max(-x, -y, x + w - width, y + h - height)
    said = f"{label}: box {bbox} (x, y, w, h) in a picture of {width} x {height} pixels"
    if inside < 0.5:
        seen.problems.add("box mostly outside its picture", said)
    elif over > SLACK:
        seen.notes.add("box partly outside its picture", said)


def _load_rows(dataset: BaseDataset, check: SplitCheck, *, depth: Depth, progress: Progress) -> None:
    """Every chunk of rows, by several processes; then what only all rows together show."""
    count = len(dataset.rows)
    loaded = _spread(np.arange(count), depth.limit, count=count)
    some = None if depth.decode or not isinstance(dataset, ImageDataset) else depth.whole
    whole = _spread(np.flatnonzero(loaded), some, count=count)
    prober = Prober(dataset, loaded=loaded, whole=whole)
    context = {"prefetch_factor": 4} if depth.workers else {}
    loader: DataLoader[Seen] = DataLoader(prober, batch_size=None, num_workers=depth.workers, collate_fn=_as_it_is, **context)  # type: ignore[arg-type]
    parts: list[Hashes] = []
    try:
        for seen in progress(loader, check.name, len(prober)):
            check.problems.merge(seen.problems)
            check.notes.merge(seen.notes)
            check.loaded, check.whole = check.loaded + seen.loaded, check.whole + seen.whole
            parts.append(seen.hashes)
    except RuntimeError as error:  # torch's word for a worker that died: a decoder may crash on a file
        check.errors.append(
            f"{check.name}: a reading process ended after {check.loaded} rows; see which with no workers ({error})"
        )
        return
    rows, sources = (np.concatenate([getattr(part, name) for part in parts]) for name in ("row", "source"))
    check.hashes = Hashes(rows, sources if prober.source else sources[:0], dataset.row_label)
    if dataset.training:
        _repeated(rows, dataset, check.notes, "the same row again")
    else:
        _repeated(rows, dataset, check.problems, "an id again, whose result is lost")


def _repeated(hashes: NDArray[np.uint64], dataset: BaseDataset, findings: Findings, kind: str) -> None:
    """Count the rows whose hash an earlier row has."""
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    for place in again[:NAMED].tolist():
        first, second = int(order[place]), int(order[place + 1])
        findings.add(kind, f"{dataset.row_label(second)}, as {dataset.row_label(first)}")
    if len(again) > NAMED:
        findings.kinds[kind].count = len(again)


def _spread(rows: NDArray[np.int64], limit: int | None, *, count: int) -> NDArray[np.bool_]:
    """True at `limit` of these rows, evenly spread (None: all of them), of `count`."""
    chosen = np.zeros(count, dtype=bool)
    if limit is not None and limit < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.int64)]
    chosen[rows] = True
    return chosen


def _kind(reason: str) -> str:
    return reason.partition(":")[0]


def _hash(value: Any) -> int:
    """64 bits of a JSON value, the same in every process."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _as_it_is(item: Any) -> Any:
    return item
