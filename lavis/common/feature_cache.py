"""Outputs of a frozen encoder on disk, one file for each input.

    DIR/bytes                              how much all folders hold, and the lock of those who add to it
    DIR/<weights>/about.json               what the features below were made with
    DIR/<weights>/<ab>/<name>.safetensors  features [T, C] of one picture, its size in pixels, a checksum

<weights> is a hash of everything that decides the features but the input, <name> one of the input's bytes and of how they were
prepared. So a file says the same whoever wrote it, and it appears whole or not at all: jobs, ranks and loader workers may fill
and read one folder at the same time. What is damaged all the same is removed, counted and made anew.

When the bound is reached nothing more is written, and nothing is removed to make room. Every epoch reads each picture once in a
new order; of that a cache which drops what was used longest ago finds almost nothing, one that keeps what it has finds its share.
And no job ever takes from another what that one reads.

Shapes: M inputs, T tokens, C their width.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from lavis.common.errors import ConfigError
from lavis.common.files import replacing

logger = logging.getLogger(__name__)

SUFFIX, TEMPORARY = ".safetensors", ".tmp"
LEFT_BEHIND = 3600  # seconds after which a file that was not finished belongs to nobody
NAMED = 5  # damaged files named one by one


class Found(NamedTuple):
    """What a store has of an input: features [T, C] and the picture's (width, height); or neither, damaged or not there."""

    features: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    damaged: bool = False


class FeatureStore:
    """The files. `identity`: plain values that decide the features but for the input; `shape`: their (T, C); `limit`: bytes that
    all folders below `root` may hold together."""

    def __init__(self, root: Path, identity: Mapping[str, Any], *, shape: tuple[int, int], limit: int) -> None:
        self.root, self.identity, self.shape, self.limit = root, dict(identity), shape, limit
        text = json.dumps(self.identity, sort_keys=True)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:32]
        self.full = False

    def open(self) -> None:
        """Make the folder, look how much there is, and clear away what killed writers left. ConfigError where that cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "about.json").is_file():
                with replacing(self.folder / "about.json") as stream:
                    stream.write(json.dumps(self.identity, indent=1).encode())
            for path in self.folder.glob(f"*/.*{TEMPORARY}"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > LEFT_BEHIND:
                        path.unlink()
            with self._counter() as counter:
                _set_number(counter, self.measure())
        except OSError as error:
            raise ConfigError(f"run.feature_cache: {self.root} cannot be written to or locked ({error})") from error

    def name_of(self, content: bytes, preparation: str) -> str:
        """The name of an input: of its bytes, and of how they are prepared for the encoder."""
        return hashlib.sha256(preparation.encode() + b"\0" + content).hexdigest()

    def read(self, name: str) -> Found:
        """What there is of an input. A damaged file is removed."""
        path = self._path(name)
        try:
            held = safetensors.torch.load(path.read_bytes())
            features, size = held["features"], held["size"].tolist()
            if tuple(features.shape) == self.shape and held["checksum"].item() == _checksum(features):
                return Found(features, (size[0], size[1]))
        except FileNotFoundError:
            return Found()
        except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError):
            pass
        with contextlib.suppress(OSError):
            path.unlink()
        return Found(damaged=True)

    def write(self, name: str, features: Tensor, size: Sequence[int]) -> bool:
        """Keep features [T, C] that lie in main memory; whether they were written: not where they are there already, nor where
        the bound would be passed."""
        path = self._path(name)
        if self.full or path.exists():
            return False
        held = {
            "features": features.contiguous(),
            "size": torch.tensor(list(size)),
            "checksum": torch.tensor(_checksum(features)),
        }
        temporary = path.with_name(f".{name}.{uuid.uuid4().hex}{TEMPORARY}")
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(content := safetensors.torch.save(held))
            return self._book(temporary, path, len(content))
        except OSError as error:
            logger.warning("feature cache %s: no more is written: %s", self.root, error)
            self.full = True
            return False
        finally:
            temporary.unlink(missing_ok=True)

    def measure(self) -> int:
        """Bytes of all files below `root`."""
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.stat(os.path.join(folder, name)).st_size
        return total

    def _book(self, temporary: Path, path: Path, size: int) -> bool:
        """Give a written file its name, if the bound allows for it; the number of bytes is changed first, so that a writer who is
        killed leaves it too large, not too small."""
        with self._counter() as counter:
            if path.exists():
                return False
            total = _number(counter)
            if total is None or total + size > self.limit:  # what was removed since shows in a new count, which has this file
                total = self.measure() - size
            if total + size > self.limit:
                self.full = True
                logger.warning("feature cache %s is full: %s", self.root, self._holders())
                return False
            _set_number(counter, total + size)
            os.replace(temporary, path)
            return True

    def _holders(self) -> str:
        folders = [folder for folder in self.root.iterdir() if folder.is_dir()]
        return (
            f"{self.limit / 1e9:.3g} GB (run.feature_cache_gb) are used, so no more is written. Features of these weights are in "
            f"{self.folder.name}; {len(folders) - 1} other folders may be of weights that nobody needs any more, and be deleted"
        )

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}{SUFFIX}"

    @contextlib.contextmanager
    def _counter(self) -> Iterator[int]:
        """The open file with the number of bytes, which no other process has at the time."""
        descriptor = os.open(self.root / "bytes", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _number(descriptor: int) -> int | None:
    with contextlib.suppress(ValueError):
        return int(os.pread(descriptor, 32, 0))
    return None


def _set_number(descriptor: int, number: int) -> None:
    os.pwrite(descriptor, f"{number:>24}\n".encode(), 0)


def _checksum(features: Tensor) -> int:
    return zlib.crc32(features.contiguous().view(torch.uint8).numpy().data)


class FeatureCache:
    """What one process does with a store: it keeps what the model computed until a step is done, writes it then, and counts."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self.counts: Counter[str] = Counter()
        self._waiting: list[tuple[Mapping[str, Any], Tensor]] = []

    def add(self, entry: object, features: Tensor) -> None:
        """Features [M, T, C] of the images that a batch did not find, as its `image_cache` names them."""
        if isinstance(entry, Mapping) and entry:
            self._waiting.append((entry, features))

    def finish_batch(self, batch: Mapping[str, Any]) -> None:
        """Write what waits, and count what the batch found."""
        about = batch.get("image_cache")
        if about is not None:
            for name in about["damaged"][: max(0, NAMED - self.counts["damaged"])]:
                logger.warning("feature cache %s: %s was damaged; it is computed again", self.store.folder, name)
            self.counts.update(hits=about["hits"], misses=len(about["names"]), damaged=len(about["damaged"]))
        waiting, self._waiting = self._waiting, []
        for named, features in waiting:
            wanted = [place for place, name in enumerate(named["names"]) if name and not self.store.full]
            if wanted:
                for place, tensor in zip(wanted, features[wanted].cpu(), strict=True):
                    self.counts["written"] += self.store.write(named["names"][place], tensor, named["sizes"][place])

    def take_counts(self) -> dict[str, int]:
        """hits, misses, damaged and written since the last call, of this process."""
        found = {key: self.counts[key] for key in ("hits", "misses", "damaged", "written")}
        self.counts.clear()
        return found
