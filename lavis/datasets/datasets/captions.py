"""Pictures with captions: the builder coco_caption on Karpathy's COCO files.

Training rows: {"image": path, "caption": str, "image_id": str}. Evaluation rows: {"image": path, "caption":
[str, ...]}; rows of one picture are one sample. The id in results is the int of the digits that end the
file's name, so COCO_val2014_000000391895.jpg is 391895. Layout after LAVIS (salesforce/LAVIS,
lavis/datasets/datasets/coco_caption_datasets.py).
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lavis.common.feature_cache import FeatureStore
from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.base_dataset import AnnotationError, BadSample, BaseDataset, RecentlyUsed, Row, Sample
from lavis.datasets.orders import Indices, Order, group_numbers, grouped_permutation

KEPT_IMAGES = 4  # processed pictures kept for the next samples, which in evaluation often show the same one

Processor = Callable[..., Any]


def file_image_id(image: str) -> int | str:
    """The id of a picture in results: the int of its file name's last digits, else the name's stem."""
    stem = Path(image).stem
    digits = re.findall(r"\d+", stem)
    return int(digits[-1]) if digits else stem


def text_of(row: Row, key: str) -> str:
    """A text of a row that must not be blank; BadSample otherwise."""
    if key not in row:
        raise BadSample(f"missing key: {key}")
    value = row[key]
    if not isinstance(value, str):
        raise BadSample(f"{key} is not text: {str(value)[:60]}")
    if not value.strip():
        raise BadSample(f"empty {key}")
    return value


def id_of(row: Row, default: int | str) -> int | str:
    """The image_id of a row, a string or an int."""
    value = row.get("image_id", default)
    return value if isinstance(value, (str, int)) else str(value)


def captions_of(row: Row, *, key: str = "caption") -> list[str]:
    """Every caption of an evaluation row, one or a list, empty ones too; [] when it has none."""
    value = row.get(key)
    captions = value if isinstance(value, list) else [value]
    return [caption for caption in captions if isinstance(caption, str)]


class CaptionedDataset(BaseDataset):
    """Rows that name something below `vis_root` and hold captions; what pictures and point clouds share.

    A parsed row has the keys image_id, captions and `source`, and `problem` where it is known not to load.
    """

    source: ClassVar[str] = "image"  # the key of a row that says what the encoder reads
    spoken: ClassVar[int] = 0  # which of a row's captions is its text

    def __init__(
        self,
        *,
        vis_processor: Processor,
        text_processor: Processor,
        vis_root: str | Path,
        ann_paths: Sequence[str | Path],
        name: str,
        split: str,
        modality: str,
        dataset_repeat_num: int = 1,
    ) -> None:
        self.vis_processor, self.text_processor = vis_processor, text_processor
        self.vis_root = Path(vis_root)
        super().__init__(
            ann_paths=ann_paths,
            name=name,
            split=split,
            modality=modality,
            dataset_repeat_num=dataset_repeat_num,
        )

    def group_rows(self) -> None:
        self._groups = group_numbers((str(row[self.source]) for row in self.rows), repeat=self.repeat)
        self.grouped = self.share_inputs = True

    def groups(self) -> Indices | None:
        return self._groups

    def epoch_order(self, *, seed: int, epoch: int) -> Order | None:
        return grouped_permutation(self._groups, seed=seed, epoch=epoch) if self.grouped else None

    def thing_of(self, row: Row) -> str:
        return str(row[self.source])

    def draws_of(self, index: int) -> int:
        """Each sample's own number; of grouped ones that of what is encoded, by its name and the reading of the rows."""
        if not self.grouped:
            return index
        reading, row = divmod(index, len(self.rows))
        return reading << 32 | zlib.crc32(str(self.rows[row][self.source]).encode())

    def usable(self, row: Row) -> Row:
        """The parsed row itself; BadSample where it is known not to load."""
        if row.get("problem"):
            raise BadSample(row["problem"])
        return row

    def load_text(self, row: Row, rng: np.random.RandomState) -> Sample:
        """text_input and image_id of a parsed row. BadSample for one without a text, in training."""
        text = self.text_processor(row["captions"][self.spoken], rng=rng) if row["captions"] else ""
        if self.training and not text:
            raise BadSample(f"empty caption: nothing left of {row['captions'][self.spoken]!r} after processing")
        return {"text_input": text, "image_id": row["image_id"]}

    def references(self) -> list[tuple[int | str, str]]:
        """(image_id, caption) of every caption as it stands in the files: the ground truth of the metrics."""
        return [(row["image_id"], caption) for row in self.rows for caption in row["captions"]]

    def merge(self, rows: Iterator[Row]) -> list[Row]:
        """Rows of one image_id to one row with all their captions. AnnotationError when they name two
        sources."""
        merged: dict[str | int, Row] = {}
        for row in rows:
            held = merged.setdefault(row["image_id"], row)
            if held is row:
                continue
            if "problem" in held:
                merged[row["image_id"]] = {**row, "captions": held["captions"] + row["captions"]}
                continue
            if "problem" not in row and held[self.source] != row[self.source]:
                raise AnnotationError(
                    f"{self.files[row['file']]}: rows {held['label']} and {row['label']} have one result id, "
                    f"{row['image_id']!r}, but differ in {self.source}: {held[self.source]!r} and {row[self.source]!r}"
                )
            held["captions"].extend(row["captions"])
        return list(merged.values())

    def side_by_side(self, rows: Iterable[Row]) -> list[Row]:
        """Rows with those of one source next to each other, so that a batch encodes it once."""
        groups: dict[Any, list[Row]] = {}
        for row in rows:
            groups.setdefault(row[self.source], []).append(row)
        return [row for group in groups.values() for row in group]


class ImageDataset(CaptionedDataset):
    """Rows that name a picture; what datasets of pictures share."""

    headers_only = False  # true: pictures are opened for their size alone, which a check of many files does
    features: FeatureStore | None = None  # of the frozen encoder, where a run keeps them
    _preparation: str | None = None  # what becomes of a picture before it is encoded

    def __init__(self, **kwargs: Any) -> None:
        self._kept = RecentlyUsed(KEPT_IMAGES)
        super().__init__(**kwargs)

    def set_feature_cache(self, store: FeatureStore) -> bool:
        """From now on give features that are kept on disk in place of the pictures they are of; whether that can be: not where
        pictures are augmented, so that they are others every time."""
        processor: Any = self.vis_processor
        self._preparation = processor.fingerprint() if hasattr(processor, "fingerprint") else None
        self.features = store if self._preparation is not None else None
        return self.features is not None

    def read_image(self, image: str, rng: np.random.RandomState) -> tuple[Any, tuple[int, int]]:
        """The processed picture (a tensor [3, H, W] from all processors but the identity) and its (width,
        height) in pixels as it was described. Do not change it in place: neighbours may share it."""

        def read() -> tuple[Any, tuple[int, int]]:
            picture = self.decode(image)
            return self.vis_processor(picture, rng=rng), picture.size

        kept: tuple[Any, tuple[int, int]]
        kept = self._kept.get(image, read) if getattr(self.vis_processor, "deterministic", False) else read()
        return kept[0], self.frame_of(image, kept[1])

    def frame_of(self, image: str, size: tuple[int, int]) -> tuple[int, int]:
        """The (width, height) in which boxes of a picture are given; `size` is that of the picture at hand."""
        return size

    def read_encoded(self, image: str, rng: np.random.RandomState) -> tuple[Sample, tuple[int, int]]:
        """`image`, or `image_features` [T, C] where the feature cache has them, and the picture's (width, height). `image_entry`
        says under which name features are kept, so that who computes them can write them."""
        if self.features is None:
            processed, size = self.read_image(image, rng)
            return {"image": processed}, size
        store: FeatureStore = self.features

        def look_up() -> tuple[Sample, tuple[int, int]]:
            content = self.content(image)
            name = store.name_of(content, str(self._preparation))
            found = store.read(name)
            if found.features is not None:
                return {"image_features": found.features, "image_entry": {"name": name}}, found.size
            picture = self.open_picture(io.BytesIO(content), self.picture_name(image))
            entry = {"name": name, "size": picture.size, "damaged": found.damaged}
            return {"image": self.vis_processor(picture, rng=rng), "image_entry": entry}, picture.size

        encoded, size = self._kept.get(f"encoded {image}", look_up)
        return dict(encoded), self.frame_of(image, size)

    def decode(self, image: str) -> Image.Image:
        """The picture that rows name so. BadSample where it is not there, or broken."""
        path = self._file(image)
        return self.open_picture(path, str(path))

    def content(self, image: str) -> bytes:
        """The bytes of the picture that rows name so. BadSample where it is not there, or cannot be read."""
        path = self._file(image)
        try:
            return path.read_bytes()
        except OSError as error:
            raise BadSample(f"broken image: {path} ({type(error).__name__}: {error})") from error

    def picture_name(self, image: str) -> str:
        """What messages call a picture."""
        return str(self.vis_root / image)

    def _file(self, image: str) -> Path:
        path = self.vis_root / image
        if not path.is_file():
            raise BadSample(f"missing image: {path}")
        if not path.stat().st_size:
            raise BadSample(f"broken image: {path} (the file is empty)")
        return path

    def open_picture(self, source: Path | IO[bytes], name: str) -> Image.Image:
        """A picture from a file or its bytes, in RGB."""
        try:
            with Image.open(source) as picture:
                return picture if self.headers_only else picture.convert("RGB")
        except Exception as error:  # a broken file makes Pillow's decoders raise almost anything; it costs this row only
            why = str(error).replace(repr(source), name)  # an address in memory says nothing, and is another in every run
            raise BadSample(f"broken image: {name} ({type(error).__name__}: {why})") from error

    def load_picture_and_text(self, row: Row, rng: np.random.RandomState) -> tuple[Sample, tuple[int, int]]:
        """The sample of a parsed row without its box, and the picture's (width, height) in pixels."""
        text = self.load_text(self.usable(row), rng)
        encoded, size = self.read_encoded(row["image"], rng)
        return {**encoded, "image_key": row["image"], **text}, size

    def picture_of(self, index: int) -> tuple[Image.Image, list[float] | None]:
        """What row `index` shows, for people: its picture in RGB as it lies on disk, and its box, left, top, right and bottom
        in pixels of it; None where the whole picture is meant. BadSample where it cannot be read."""
        return self.decode(self.usable(self.rows[index])["image"]), None

    def placeholder(self, index: int) -> Sample:
        row = self.rows[index]
        image = self.vis_processor(Image.new("RGB", (8, 8)), rng=np.random.RandomState(0))
        if isinstance(image, Tensor):
            image = torch.zeros_like(image)
        return {"image": image, "image_key": "", "text_input": "", "image_id": row["image_id"]}


class CaptionDataset(ImageDataset):
    """Training: one row, one caption."""

    needs = "image, caption and, if wished, image_id"

    def parse(self, row: Row, label: str) -> Row:
        image, caption = text_of(row, "image"), text_of(row, "caption")
        return {"image": image, "image_id": id_of(row, file_image_id(image)), "captions": [caption]}

    def load(self, index: int, rng: np.random.RandomState) -> Sample:
        return self.load_picture_and_text(self.rows[index], rng)[0]


class CaptionEvalDataset(CaptionDataset):
    """Evaluation: one sample per picture, all its captions as references. No row is left out."""

    training = False

    def parse(self, row: Row, label: str) -> Row:
        captions = captions_of(row)
        try:
            image = text_of(row, "image")
        except BadSample as error:
            return {"image": "", "image_id": id_of(row, label), "captions": captions, "problem": error.reason}
        return {"image": image, "image_id": file_image_id(image), "captions": captions}

    def arrange(self, rows: Iterator[Row]) -> Iterable[Row]:
        return self.merge(rows)


@registry.register_builder("coco_caption")
class CocoCaptionBuilder(BaseDatasetBuilder):
    """COCO captions, or any captions in their layout."""

    name = "coco_caption"
    train_dataset_cls = CaptionDataset
    eval_dataset_cls = CaptionEvalDataset
    DATASET_CONFIG_DICT = {"default": "configs/datasets/coco_caption.yaml"}
