"""Captions of things in pictures: the builders general_box_caption and general_box_caption_2.

Rows, as in RefCOCO and RegionCap-10M: {"image": path, "image_id": str, "bbox": [x, y, w, h] pixels,
"caption": str}, one per expression. Training takes each row; evaluation makes one sample of the rows of a
region, whose id in results is `<image_id>_box_<x>_<y>_<w>_<h>`. Layout after RegionBLIP (arXiv 2308.02299,
code mightyzau/RegionBLIP).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.datasets import geometry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.base_dataset import BadSample, Row, Sample
from lavis.datasets.datasets.captions import ImageDataset, Processor, captions_of, id_of, text_of


def bbox_of(row: Row) -> list[float]:
    """The xywh box of a row, in pixels; BadSample unless it is 4 numbers with an area."""
    if "bbox" not in row:
        raise BadSample("missing key: bbox")
    try:
        box = geometry.as_boxes(row["bbox"])
    except ValueError as error:
        raise BadSample(f"malformed bbox: {error}") from error
    if box.shape != (4,):
        raise BadSample(f"malformed bbox: {row['bbox']!r} is not one box of 4 numbers")
    if geometry.is_empty(geometry.xywh_to_xyxy(box)):
        raise BadSample(f"empty bbox: {row['bbox']!r} has no area")
    numbers: list[float] = box.tolist()
    return numbers


class RegionDataset(ImageDataset):
    """Training: one row, one expression for a region."""

    needs = "image, image_id, bbox [x, y, w, h] in pixels and caption"
    share_inputs = True  # regions of one picture in a batch are encoded with it once

    def __init__(self, *, vis_processor: Processor, name: str, **kwargs: Any) -> None:
        if not getattr(vis_processor, "keeps_frame", False):
            raise ConfigError(
                f"dataset {name}: {type(vis_processor).__name__} crops or flips, so boxes would point "
                "elsewhere; accepted: one that keeps the frame, such as general_box_caption_img_trainval"
            )
        super().__init__(vis_processor=vis_processor, name=name, **kwargs)

    def parse(self, row: Row, label: str) -> Row:
        image, caption = text_of(row, "image"), text_of(row, "caption")
        return {
            "image": image,
            "image_id": id_of(row, image),
            "bbox": bbox_of(row),
            "captions": [caption],
        }

    def thing_of(self, row: Row) -> str:
        return f"{row['image']} {row['bbox']}"

    def load(self, index: int, rng: np.random.RandomState) -> Sample:
        row = self.rows[index]
        sample, (width, height) = self.load_picture_and_text(row, rng)
        try:
            box = geometry.pixel_boxes_to_normalised(geometry.xywh_to_xyxy(row["bbox"]), width, height)
        except ValueError as error:
            raise BadSample(f"empty bbox: {error}") from error
        return {**sample, "box": torch.from_numpy(box)}

    def picture_of(self, index: int) -> tuple[Image.Image, list[float] | None]:
        picture, _ = super().picture_of(index)
        box = geometry.clamp(geometry.xywh_to_xyxy(self.rows[index]["bbox"]), *picture.size)
        if geometry.is_empty(box):
            raise BadSample(
                f"empty bbox: {self.rows[index]['bbox']} lies outside the picture of {picture.width} x {picture.height}"
            )
        return picture, box.tolist()


class RegionEvalDataset(RegionDataset):
    """Evaluation: one sample per region, the regions of a picture next to each other. No row is left out."""

    training = False

    def parse(self, row: Row, label: str) -> Row:
        parsed: Row = {"image": "", "bbox": None, "captions": captions_of(row)}
        image_id = id_of(row, str(row.get("image", label)))
        try:
            parsed["image_id"] = geometry.region_id(image_id, row.get("bbox", ()))
        except ValueError:
            parsed["image_id"] = f"{image_id}_box_{label}"
        try:
            parsed["image"] = text_of(row, "image")
            parsed["bbox"] = bbox_of(row)
        except BadSample as error:
            parsed["problem"] = error.reason
        return parsed

    def arrange(self, rows: Iterator[Row]) -> Iterable[Row]:
        return self.side_by_side(self.merge(rows))

    def placeholder(self, index: int) -> Sample:
        return {**super().placeholder(index), "box": torch.tensor([0.0, 0.0, 1.0, 1.0])}


@registry.register_builder("general_box_caption")
class GeneralBoxCaptionBuilder(BaseDatasetBuilder):
    """RefCOCO, RegionCap-10M, or any captioned boxes in their layout."""

    name = "general_box_caption"
    train_dataset_cls = RegionDataset
    eval_dataset_cls = RegionEvalDataset
    DATASET_CONFIG_DICT = {"default": "configs/datasets/general_box_caption.yaml"}


@registry.register_builder("general_box_caption_2")
class GeneralBoxCaption2Builder(GeneralBoxCaptionBuilder):
    """A second set of captioned boxes beside the first."""

    name = "general_box_caption_2"
