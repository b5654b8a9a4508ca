"""Pictures with captions, or with captioned regions, in webdataset shards: the builders caption_shards, region_shards,
laion, laion2B_multi and regioncap_10m.

For sets of tens of millions of pictures, which no file system likes as single files. A shard is a tar (`shard_index` says
what is in it); img2dataset writes such shards, tools/make_shards.py makes them of any captions or regions. Memory does not grow
with the number of samples: rows stay in the indexes on disk.

Samples have numbers, as those of every dataset, and the order of an epoch follows from (seed, epoch) and the position alone
(`orders.ShardOrder`). So a run goes on in the middle of an epoch, with any number of loader workers and of processes. Every
sample is read exactly once in an epoch, and so are the bytes of every picture, but for a picture whose samples fall into two
batches, or that has more than `together`. A shard is read while it is one of `shards_at_once`, and not again in the epoch.

Shards are for training; evaluation reads plain annotation. Names after LAVIS (laion2B_multi), MiniGPT-4 (laion) and RegionBLIP
(RegionCap-10M, arXiv 2308.02299).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from PIL import Image

from lavis.common import dist_utils
from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.common.seeding import sample_rng
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.convert.batch import available_cores
from lavis.datasets.datasets.base_dataset import MAX_NAMED, AnnotationError, BadSample, RecentlyUsed, Row, logger
from lavis.datasets.datasets.captions import KEPT_IMAGES, CaptionDataset, ImageDataset
from lavis.datasets.datasets.regions import RegionDataset
from lavis.datasets.orders import Order, ShardOrder
from lavis.datasets.shards.catalogue import Catalogue, LeftOut, find_shards, make_indexes
from lavis.datasets.shards.index import Shard

HEADER = 1 << 16  # bytes that hold the size of almost every picture
PROBED_SHARDS, PROBED_ROWS = 16, 100  # looked at for a row that can be used, before a run


class OpenFiles:
    """The shards and indexes that this process read last. A forked worker opens its own: it must not move another's place."""

    def __init__(self, catalogue: Catalogue, *, size: int) -> None:
        self._catalogue, self._number = catalogue, size
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._tars, self._indexes = RecentlyUsed(self._number), RecentlyUsed(self._number)
        self._contents = RecentlyUsed(KEPT_IMAGES)

    def index(self, shard: int) -> Shard:
        if self._process != os.getpid():
            self._forget()
        kept: Shard = self._indexes.get(str(shard), lambda: Shard(self._catalogue.indexes[shard]))
        return kept

    def read(self, shard: int, picture: int, *, limit: int | None = None) -> bytes:
        """The bytes of a picture, up to `limit`. OSError where the shard cannot be read (any more)."""
        offset, size = self.index(shard).place(picture)

        def read() -> bytes:
            tar: IO[bytes] = self._tars.get(str(shard), lambda: io.FileIO(self._catalogue.tars[shard]))
            tar.seek(offset)
            return self.read_bytes(tar, size if limit is None else min(size, limit))

        content: bytes = self._contents.get(f"{shard} {picture} {limit}", read)
        return content

    def read_bytes(self, tar: IO[bytes], size: int) -> bytes:
        """`size` bytes from where the file is."""
        content = b""
        while len(content) < size and (more := tar.read(size - len(content))):
            content += more
        if len(content) < size:
            raise OSError(f"it ends {size - len(content):,} bytes early")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {"_catalogue": self._catalogue, "_number": self._number, "_process": -1}


class ShardRows(Sequence[Row]):
    """The rows of all shards, read from their indexes when they are asked for."""

    def __init__(self, catalogue: Catalogue, files: OpenFiles) -> None:
        self._catalogue, self._files = catalogue, files

    def __len__(self) -> int:
        return int(self._catalogue.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        shard, sample = self._catalogue.find(range(len(self))[index])
        row = self._files.index(shard).row(sample)
        key, place, picture = row.pop("key"), row.pop("place", None), row.pop("picture")
        named = f"{self._catalogue.labels[shard]}:{key}"
        row.setdefault("image_id", named)
        return {**row, "image": f"{shard} {picture}", "label": named if place is None else f"{named}[{place}]"}

    def digest(self) -> str:
        """sha256 of what all shards hold."""
        return hashlib.sha256(" ".join(self._catalogue.digests).encode()).hexdigest()


class ShardDataset(ImageDataset):
    """Training samples out of shards. The `image` of a row is the number of its shard and of the picture in it."""

    kind: ClassVar[str]

    def __init__(
        self,
        *,
        missing: Sequence[str],
        cache_root: Path,
        shards_at_once: int,
        shuffle: int,
        together: int | None,
        index_workers: int | None,
        **kwargs: Any,
    ) -> None:
        self._missing, self._cache = missing, cache_root
        self.shards_at_once, self.shuffle, self.together = shards_at_once, shuffle, together
        self._workers = index_workers or available_cores()
        super().__init__(**kwargs)

    def read_rows(self) -> None:
        """Set `rows` from the indexes, which are made where they are missing: by the main process, and then by those that do
        not see its files."""
        tars = [str(path) for path in self.files]
        with dist_utils.main_process_first():
            make_indexes(tars, self.kind, cache=self._cache, workers=self._workers)
        self.catalogue = Catalogue(tars, self.kind, cache=self._cache, missing=self._missing)
        self._open_files = OpenFiles(self.catalogue, size=self.shards_at_once + 2)
        self.rows = ShardRows(self.catalogue, self._open_files)  # type: ignore[assignment]
        self.dropped = LeftOut(self.catalogue)
        self.rows_read = len(self.rows) + len(self.dropped)
        if not len(self.rows):
            why = "; ".join(f"{label}: {reason}" for label, reason in self.dropped[:3]) or "they are empty"
            raise AnnotationError(f"{tars[0]}{f' and {len(tars) - 1} more' if len(tars) > 1 else ''}: no usable sample: {why}")

    def _log_dropped(self) -> None:
        for tar, problem in self.catalogue.problems[:MAX_NAMED]:
            logger.warning("dataset %s, %s: shard %s: %s", self.name, self.split, tar, problem)
        for label, reason, count in itertools.islice(self.catalogue.entries(), MAX_NAMED):
            what = f"row {label}" if count == 1 else f"{count} rows of {label}"
            logger.warning("dataset %s, %s: %s left out: %s", self.name, self.split, what, reason)
        if self.dropped:
            counts = ", ".join(f"{count} {reason}" for reason, count in self.catalogue.left_out.most_common())
            total = f"{len(self.dropped)} rows left out ({counts}), {len(self.rows)} kept, in {len(self.catalogue.tars)} shards"
            logger.warning("dataset %s, %s: %s", self.name, self.split, total)

    def group_rows(self) -> None:
        """The order of shards keeps samples of one picture together in any case, up to `together` of them; now all."""
        self.together = None
        self.grouped = self.share_inputs = True

    def groups(self) -> None:
        return None

    def epoch_order(self, *, seed: int, epoch: int) -> Order:
        return ShardOrder(
            self.catalogue.starts,
            self.catalogue.firsts,
            seed=seed,
            epoch=epoch,
            at_once=self.shards_at_once,
            shuffle=self.shuffle,
            together=self.together,
            repeat=self.repeat,
        )

    def content_of(self, row: Row) -> Any:
        """The key and what the row says: the same in two shards, it is a sample that is there twice."""
        named, _, key = row["label"].rpartition(":")
        given = {name: value for name, value in row.items() if name not in ("image", "label")}
        if str(given["image_id"]).startswith(f"{named}:"):  # not given
            del given["image_id"]
        return [key, given]

    def frame_of(self, image: str, size: tuple[int, int]) -> tuple[int, int]:
        shard, picture = map(int, image.split())
        return self._open_files.index(shard).frame(picture) or size

    def picture_name(self, image: str) -> str:
        shard, picture = map(int, image.split())
        return f"picture {picture} of {self.catalogue.tars[shard]}"

    def content(self, image: str, *, limit: int | None = None) -> bytes:
        shard, picture = map(int, image.split())
        try:
            return self._open_files.read(shard, picture, limit=limit)
        except OSError as error:
            raise BadSample(f"broken shard: {self.picture_name(image)}: {error}") from error

    def decode(self, image: str) -> Image.Image:
        if self.headers_only:
            with contextlib.suppress(BadSample):  # of a picture whose header is longer than that
                return self.open_picture(io.BytesIO(self.content(image, limit=HEADER)), self.picture_name(image))
        return self.open_picture(io.BytesIO(self.content(image)), self.picture_name(image))

    def check_usable(self) -> None:
        """Load a sample of several shards, evenly spread; AnnotationError where a shard has none that can be used."""
        shards = np.flatnonzero(np.diff(self.catalogue.starts))
        for shard in shards[np.linspace(0, len(shards) - 1, min(len(shards), PROBED_SHARDS)).astype(int)].tolist():
            low, high = self.catalogue.starts[shard : shard + 2].tolist()
            reasons = list(self._reasons(range(low, high)[:PROBED_ROWS]))
            if reasons:
                raise AnnotationError(
                    f"{self.catalogue.tars[shard]}: no usable row among {len(reasons)}; {'; '.join(reasons[:3])}"
                )

    def _reasons(self, rows: Sequence[int]) -> Iterator[str]:
        """Why each of the rows cannot be used; nothing where one can be."""
        reasons = []
        for row in rows:
            try:
                self.load(row, sample_rng(self.seed, 0, row))
                return
            except BadSample as error:
                reasons.append(f"{self.row_label(row)}: {error.reason}")
        yield from reasons


class CaptionShardDataset(ShardDataset, CaptionDataset):
    """One sample per caption."""

    kind = "captions"


class RegionShardDataset(ShardDataset, RegionDataset):
    """One sample per expression for a region."""

    kind = "regions"


class ShardBuilder(BaseDatasetBuilder):
    """What the builders of shards share: `storage` is a pattern, or a list of them; `train` is the only split."""

    split_keys = ("storage", "dataset_repeat_num")

    def __init__(self, cfg: Mapping[str, Any] | None = None, *, cache_root: str | Path | None = None) -> None:
        super().__init__(cfg, cache_root=cache_root)
        self.missing: list[str] = []

    def use_root(self, folder: str | Path) -> None:
        """Read the shards of this folder, instead of those that the configuration names."""
        self.config["build_info"]["annotations"]["train"]["storage"] = str(folder)

    def annotation_files(self, split: str) -> list[Path]:
        """The shards of a split; those of its ranges that are missing are kept for the dataset to tell."""
        storage = self._split(split)["storage"]
        storages = [storage] if isinstance(storage, str) else list(storage)
        key = self._key(*self.annotations_at, split, self.storage_key)
        found, self.missing = find_shards(storages, key=key, roots=(Path.cwd(), self.cache_root))
        return [Path(tar) for tar in found]

    def _sources(self, split: str) -> dict[str, Any]:
        vis_processor, text_processor = self._processors(split)
        reading = {key: self._number(key) for key in ("shards_at_once", "shuffle", "together", "index_workers")}
        for key in ("shards_at_once", "shuffle"):
            if reading[key] is None:
                raise ConfigError(f"{self._key(key)} is null; accepted: an integer of 1 or more")
        sources = {"vis_processor": vis_processor, "text_processor": text_processor, "vis_root": Path()}
        return {**sources, **reading, "missing": self.missing, "cache_root": self.cache_root}

    def _number(self, key: str) -> int | None:
        value = self.config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{self._key(key)} is {value!r}; accepted: an integer of 1 or more")
        return value


@registry.register_builder("caption_shards")
class CaptionShardsBuilder(ShardBuilder):
    """Pictures with captions."""

    name = "caption_shards"
    train_dataset_cls = CaptionShardDataset
    DATASET_CONFIG_DICT = {"default": "configs/datasets/caption_shards.yaml"}


@registry.register_builder("laion")
class LaionBuilder(CaptionShardsBuilder):
    """LAION's pictures with their captions, as img2dataset fetches them."""

    name = "laion"


@registry.register_builder("laion2B_multi")
class Laion2BMultiBuilder(CaptionShardsBuilder):
    """LAVIS' name for the same."""

    name = "laion2B_multi"


@registry.register_builder("region_shards")
class RegionShardsBuilder(ShardBuilder):
    """Pictures with captioned regions."""

    name = "region_shards"
    train_dataset_cls = RegionShardDataset
    DATASET_CONFIG_DICT = {"default": "configs/datasets/region_shards.yaml"}


@registry.register_builder("regioncap_10m")
class RegionCap10MBuilder(RegionShardsBuilder):
    """RegionCap-10M, made into shards."""

    name = "regioncap_10m"
