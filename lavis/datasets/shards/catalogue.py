"""The shards of a dataset: which files they are, and how many samples each of them holds."""

from __future__ import annotations

import glob
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from webdataset.shardlists import expand_urls

from lavis.common.errors import ConfigError
from lavis.common.paths import resolve
from lavis.datasets.convert.batch import Note, run_batch
from lavis.datasets.shards.index import Shard, Summary, expected_samples, find_index, write_index

logger = logging.getLogger(__name__)

REMOTE = ("http:", "https:", "s3:", "gs:", "hf:", "ais:", "hdfs:", "pipe:")
THREADS = 16  # that look for indexes: on a network file system a look takes long, and little work
MANY = 100  # indexes to be made, from which on it is said how to make them before a run


def find_shards(storages: Sequence[str], *, key: str, roots: Sequence[Path]) -> tuple[list[str], list[str]]:
    """The shards that patterns name, in their order and each once, and those of a range of numbers that are not there.

    A pattern is a path, a folder of tars, a range such as `shards/{000000..000999}.tar`, or has `*`. Relative ones are looked
    up below each of `roots`, the first that has any. ConfigError, naming `key`, where there is none, and for addresses.
    """
    there: dict[str, None] = {}
    missing: dict[str, None] = {}
    for storage in storages:
        text = str(storage)
        if text.startswith(REMOTE):
            raise ConfigError(
                f"{key} is {text!r}; accepted: paths of this machine (fetch the shards first; nothing is fetched here)"
            )
        found, absent = _expand(text, roots)
        if not found:
            tried = " or ".join(str(root / resolve(text)) for root in roots)
            raise ConfigError(f"{key}: no shard at {tried}; accepted: a tar, a folder of tars, {{000000..000999}}.tar, or *.tar")
        there.update(dict.fromkeys(found))
        missing.update(dict.fromkeys(absent))
    return list(there), list(missing)


def _expand(pattern: str, roots: Sequence[Path]) -> tuple[list[str], list[str]]:
    """The files that a pattern names, below the first root that has any, and those that are not there."""
    for root in roots:
        found: list[str] = []
        absent: list[str] = []
        for name in expand_urls(str(root / resolve(pattern))):
            if glob.has_magic(name):
                found.extend(sorted(glob.glob(name)))
            elif os.path.isdir(name):
                found.extend(sorted(glob.glob(os.path.join(glob.escape(name), "*.tar"))))
            else:
                (found if os.path.isfile(name) else absent).append(name)
        if found:
            return found, absent
    return [], []


def make_indexes(tars: Sequence[str], kind: str, *, cache: Path, workers: int) -> None:
    """Make the index of every shard that has none, by several processes. ConfigError where one cannot be read."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda tar: find_index(tar, kind, cache), tars))
    todo = [tar for tar, index in zip(tars, found, strict=True) if index is None]
    if len(todo) >= MANY:
        advice = "tools/make_shards.py index makes them before a run"
        logger.warning("%d of %d shards have no index yet, which takes a pass over each; %s", len(todo), len(tars), advice)
    if todo:
        work = partial(_make_index, kind=kind, cache=cache)
        report = run_batch({tar: tar for tar in todo}, work, done=lambda _: False, what="shards", workers=workers)
        if len(report.failed):
            raise ConfigError(f"shards that cannot be indexed: {'; '.join(report.failed.lines())}")


def _make_index(tar: str, *, kind: str, cache: Path) -> list[Note]:
    write_index(tar, kind, cache)
    return []


class Catalogue:
    """Shards with an index, S of them, and what each holds.

    `starts` [S + 1]: the first sample of each shard, and their number. `labels`: the shards' paths from their common folder.
    Shards that hold what an earlier one holds are left out, and told with those that are `missing` (`absent`); what is wrong with
    others is in `problems`.
    """

    def __init__(self, tars: Sequence[str], kind: str, *, cache: Path, missing: Sequence[str] = ()) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(lambda tar: find_index(tar, kind, cache), tars))
        self.tars: list[str] = []
        self.indexes: list[str] = []
        self.digests: list[str] = []
        self.problems: list[tuple[str, str]] = []  # (shard, what is wrong with it)
        self.absent: list[tuple[str, str, int]] = []  # (shard, why none of it is used, how many samples)
        self.left_out: Counter[str] = Counter()  # samples by reason
        self._damaged: list[int] = []  # shards of which something is left out
        counts: list[int] = []
        first: dict[str, str] = {}
        for tar, index in zip(tars, found, strict=True):
            if index is None:
                raise ConfigError(f"{tar} changed, or its index went, while the dataset was opened")
            path, summary = index
            if summary.samples and (other := first.setdefault(summary.digest, tar)) != tar:
                self.absent.append((tar, f"duplicate shard: it holds what {other} holds", summary.samples))
                continue
            if summary.problem:
                self.problems.append((tar, summary.problem))
            self._keep(tar, path, summary)
            counts.append(summary.samples)
        for tar in missing:
            expected = expected_samples(tar)
            self.absent.append((tar, f"missing shard: {tar}", 1 if expected is None else expected))
        for _, reason, count in self.absent:
            self.left_out[reason.partition(":")[0]] += count
        self.starts = np.append(0, np.cumsum(counts)).astype(np.int64)
        folder = os.path.commonpath([os.path.dirname(tar) for tar in self.tars]) if self.tars else ""
        self.labels = [os.path.relpath(tar, folder) if folder else tar for tar in self.tars]

    def _keep(self, tar: str, index: Path, summary: Summary) -> None:
        if summary.dropped:
            self._damaged.append(len(self.tars))
            self.left_out.update(summary.dropped)
        self.tars.append(tar)
        self.indexes.append(str(index))
        self.digests.append(summary.digest)

    def find(self, sample: int) -> tuple[int, int]:
        """The shard of a sample, and the sample's number there."""
        shard = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return shard, sample - int(self.starts[shard])

    def entries(self) -> Iterator[tuple[str, str, int]]:
        """(shard or sample, why it is left out, how many samples), read from the indexes."""
        yield from self.absent
        for shard in self._damaged:
            label = self.labels[shard]
            for key, reason, count in Shard(self.indexes[shard]).left_out():
                yield f"{label}:{key}" if key else label, reason, count

    def firsts(self, shard: int) -> Any:
        """The first sample of each picture of a shard, counted from the shard's (see `Shard.firsts`)."""
        return Shard(self.indexes[shard]).firsts()


class LeftOut(Sequence[tuple[str, str]]):
    """(sample, reason) of every sample that is left out of shards, read from their indexes when they are asked for."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def __len__(self) -> int:
        return sum(self._catalogue.left_out.values())

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for label, reason, count in self._catalogue.entries():
            yield from itertools.repeat((label, reason), count)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(itertools.islice(self, *index.indices(len(self))))
        return next(itertools.islice(self, range(len(self))[index], None))
