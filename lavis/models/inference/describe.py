"""Captions of pixel boxes on a PIL image, with one encoder pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from lavis.datasets.geometry import pixel_boxes_to_normalised
from lavis.processors import load_processor

if TYPE_CHECKING:
    from PIL.Image import Image

    from lavis.models.query_model import QueryModel


def describe(
    model: QueryModel,
    image: Image,
    boxes: Sequence[Sequence[float]] | None = None,
    *,
    modality: str | None = None,
    **decoding: object,
) -> list[str]:
    """Captions of pixel boxes [[x1, y1, x2, y2], ...] on a PIL image; of the whole image without.

    `decoding`: keywords of `generate`. ValueError for a box with no area inside the image. The model is left in its mode.
    """
    if boxes is not None and len(boxes) == 0:
        return []
    samples = {"image": picture(model, image), **picture_samples(model, image.size, boxes, modality=modality)}
    was_training = model.training
    model.eval()
    try:
        return model.generate(samples, **decoding)  # type: ignore[arg-type]
    finally:
        model.train(was_training)


def picture(model: QueryModel, image: Image) -> Tensor:
    """A PIL image as the encoder of images reads it [1, 3, S, S]."""
    processor = load_processor("blip_image_eval", {"image_size": model.cfg.vit.img_size})
    return cast(Tensor, processor(image.convert("RGB"))).unsqueeze(0)


def picture_samples(
    model: QueryModel, size: tuple[int, int], boxes: Sequence[Sequence[float]] | None = None, *, modality: str | None = None
) -> dict[str, object]:
    """The samples of one image of `size`, width and height in pixels, but for the image itself: a row per pixel box, or
    one for the whole image. ValueError for a box with no area inside it."""
    if boxes is None:
        return {"modality": modality or modality_with_region(model, region=False)}
    normalised = pixel_boxes_to_normalised(boxes, *size)
    return {
        "modality": modality or modality_with_region(model, region=True),
        "box": torch.as_tensor(normalised, dtype=torch.float32),
        "image_index": torch.zeros(len(boxes), dtype=torch.long),
    }


def modality_with_region(model: QueryModel, *, region: bool) -> str:
    """The first modality on images, with or without a region that is a box; ValueError when the model has none."""
    for spec in model.specs.values():
        chain = model.branch(spec.name).region
        fits = chain is None if not region else chain is not None and "box" in chain.position_keys
        if spec.encoder == "image" and fits:
            return spec.name
    kind = "a box" if region else "no region"
    raise ValueError(f"this model has no image modality with {kind}; it knows {', '.join(model.specs)}")
