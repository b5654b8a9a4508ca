"""Many files captioned in batches, decoded by threads while the model works; it can be stopped and gone on with at any time."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis.common.errors import ConfigError
from lavis.datasets.cloud_files import read_cloud
from lavis.processors.prompts import read_region, read_region_3d
from lavis.serving.boxes import region_corners
from lavis.serving.captioner import Captioner
from lavis.serving.images import open_image
from lavis.serving.items import Item, batches_of
from lavis.serving.rows_file import RowsFile
from lavis.serving.substance import check_boxes

REGION_OF = {"image_region": "box", "pointcloud_region": "corners"}
REGION_KEYS = {"image_region": "box", "pointcloud_region": "box_corners"}  # in samples


@dataclass
class Report:
    """What became of the items."""

    captioned: int = 0
    there: int = 0  # rows of an earlier run
    bad: list[tuple[str, str]] = field(default_factory=list)  # id, why
    stopped: bool = False


@dataclass
class Loaded:
    """A file as the model reads it [...], its regions as tensors [B, ...], and as they are written out."""

    inputs: Tensor
    regions: Tensor | None = None
    boxes: list[list[float]] = field(default_factory=list)


def caption_items(
    captioner: Captioner,
    items: Sequence[Item],
    out: RowsFile,
    *,
    batch_size: int,
    workers: int,
    decoding: Mapping[str, Any],
    progress: Callable[[int], object] = lambda count: None,
    stop: threading.Event | None = None,
) -> Report:
    """Caption what `out` does not hold yet, a row per item in their order, written batch by batch.

    batch_size: captions that are decoded together. workers: threads that read and decode files. progress: told how many items are
    through. stop: once set, no further batch is begun. ConfigError for a kind that the model does not know.
    """
    if batch_size < 1 or workers < 1:
        raise ConfigError(f"batch size {batch_size}, workers {workers}; accepted: 1 or more")
    for item in {item.kind: item for item in items if not item.problem}.values():
        captioner.modality(item.encoder, REGION_OF.get(item.kind))  # ValueError says what it knows
    report = Report(there=sum(item.id in out.done for item in items))
    batches = [batch for batch in batches_of(items, batch_size) if any(item.id not in out.done for item in batch)]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for batch, loaded in _ahead(pool, batches, captioner, out.done, depth=workers + 1):
            if stop is not None and stop.is_set():
                report.stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                break
            good = [(item, what) for item, what in zip(batch, loaded, strict=True) if isinstance(what, Loaded)]
            report.bad += [(item.id, what) for item, what in zip(batch, loaded, strict=True) if isinstance(what, str)]
            rows = _captioned(captioner, good, batch_size, decoding) if good else []
            new = [row for row in rows if row["id"] not in out.done]
            out.append(new)
            report.captioned += len(new)
            progress(sum(item.id not in out.done for item in batch))
    return report


def _ahead(
    pool: ThreadPoolExecutor, batches: Sequence[list[Item]], captioner: Captioner, done: set[str], *, depth: int
) -> Iterator[tuple[list[Item], list[Loaded | str | None]]]:
    """Each batch with its items as loaded; up to `depth` batches are being read before they are asked for."""
    waiting: deque[tuple[list[Item], Future[list[Loaded | str | None]]]] = deque()
    rest = iter(batches)
    while True:
        while len(waiting) < depth and (batch := next(rest, None)) is not None:
            waiting.append((batch, pool.submit(_load_batch, captioner, batch, done)))
        if not waiting:
            return
        batch, future = waiting.popleft()
        yield batch, future.result()


def _load_batch(captioner: Captioner, batch: Sequence[Item], done: set[str]) -> list[Loaded | str | None]:
    """The items of a batch; a reason in place of one that cannot be used. Items of an earlier run are read again where a new one
    can be, so that the batch is the one that it would have been (None where not)."""
    loaded: dict[str, Loaded | str | None] = {item.id: _load(captioner, item) for item in batch if item.id not in done}
    if any(isinstance(what, Loaded) for what in loaded.values()):
        for item in batch:
            if item.id in done:
                again = _load(captioner, item)
                loaded[item.id] = again if isinstance(again, Loaded) else None
    return [loaded.get(item.id) for item in batch]


def _load(captioner: Captioner, item: Item) -> Loaded | str:
    if item.problem:
        return item.problem
    try:
        return _load_picture(captioner, item) if item.encoder == "image" else _load_cloud(captioner, item)
    except (ValueError, OSError, MemoryError) as error:
        return str(error) or type(error).__name__


def _load_picture(captioner: Captioner, item: Item) -> Loaded:
    image = open_image(item.path, item.name)
    inputs = captioner.model.picture(image)[0]
    if not item.regions:
        return Loaded(inputs)
    boxes = [read_region(spec, image.size, folder=item.folder) for spec in item.regions]
    modality = captioner.modality("image", "box")
    return Loaded(inputs, captioner.model.picture_samples(image.size, boxes, modality=modality)["box"], boxes)


def _load_cloud(captioner: Captioner, item: Item) -> Loaded:
    points = read_cloud(item.path, item.name)
    if not item.regions:
        return Loaded(torch.from_numpy(captioner.object_cloud(points)))
    boxes = [read_region_3d(spec, points, folder=item.folder) for spec in item.regions]
    corners = torch.from_numpy(np.stack([region_corners(box) for box in boxes]))
    cloud = torch.from_numpy(captioner.scene_cloud(points))
    check_boxes(points, boxes)
    return Loaded(cloud, corners, [box.tolist() for box in boxes])


def _captioned(
    captioner: Captioner, good: Sequence[tuple[Item, Loaded]], batch_size: int, decoding: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The output rows of a batch: every file is encoded once, at most `batch_size` captions are decoded at a time."""
    kind, encoder = good[0][0].kind, good[0][0].encoder
    encoded = captioner.encoded(encoder, torch.stack([what.inputs for _, what in good]))
    index = torch.cat([torch.full((item.rows,), number) for number, (item, _) in enumerate(good)])
    samples = {"modality": captioner.modality(encoder, REGION_OF.get(kind)), **encoded}
    regions = torch.cat([what.regions for _, what in good if what.regions is not None]) if kind in REGION_KEYS else None
    captions: list[str] = []
    for start in range(0, len(index), batch_size):
        part = slice(start, start + batch_size)
        where = {} if regions is None else {REGION_KEYS[kind]: regions[part]}
        captions += captioner.generate({**samples, **where, f"{encoder}_index": index[part]}, **decoding)
    rows, said = [], iter(captions)
    for item, what in good:
        row: dict[str, Any] = {"id": item.id, encoder: item.name}
        if what.regions is None:
            rows.append({**row, "caption": next(said)})
        else:
            rows.append({**row, "regions": [{"box": box, "caption": next(said)} for box in what.boxes]})
    return rows


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, the first time; a second one acts as ever. Without effect outside the main thread."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
