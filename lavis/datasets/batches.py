"""From samples to a batch.

Samples that read one picture, or one cloud, may share it: then the batch holds it once, and says which sample reads which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Sample = dict[str, Any]
Batch = dict[str, Any]

# what an encoder reads, and the key that names it
ENCODER_INPUTS = {"image": "image_key", "pointcloud": "cloud_key", "point_groups": "cloud_key"}


def collate(samples: Sequence[Sample], *, share_inputs: bool = False) -> Batch:
    """B samples to one batch of the keys they share; tensors stacked, `skipped` joined, the rest lists.

    With `share_inputs`, samples of equal `image_key` share one picture: `image` [I, 3, H, W] and
    `image_index` [B] (long), where image_index[b] is the picture of sample b. So do samples of equal `cloud_key`:
    `pointcloud` [I, N, C] and `pointcloud_index` [B].
    """
    modalities = sorted({str(sample["modality"]) for sample in samples})
    if len(modalities) != 1:
        raise ValueError(f"a batch holds one modality, these samples have {', '.join(modalities) or 'none'}")
    keys = [key for key in samples[0] if all(key in sample for sample in samples)]
    cached = any("image_entry" in sample for sample in samples)
    if cached:
        keys = [key for key in keys if key not in ("image", "image_features", "image_entry")]
    batch: Batch = {"modality": modalities[0]}
    for key in keys:
        values = [sample[key] for sample in samples]
        if share_inputs and ENCODER_INPUTS.get(key) in keys:
            different, batch[f"{key}_index"] = _different(samples, key)
            batch[key] = torch.stack([sample[key] for sample in different])
        elif key not in ("modality", "skipped"):
            batch[key] = torch.stack(values) if isinstance(values[0], Tensor) else values
    if cached:
        batch.update(_cached_images(samples, share=share_inputs))
    batch["skipped"] = [entry for sample in samples for entry in sample.get("skipped", [])]
    return batch


def _different(samples: Sequence[Sample], key: str) -> tuple[list[Sample], Tensor]:
    """The first sample of each of the I different encoder inputs, and which input is whose [B]."""
    names = [sample[ENCODER_INPUTS[key]] for sample in samples]
    first: dict[str, Sample] = {}
    for name, sample in zip(names, samples, strict=True):
        first.setdefault(name, sample)
    places = {name: place for place, name in enumerate(first)}
    return list(first.values()), torch.tensor([places[name] for name in names])


def _cached_images(samples: Sequence[Sample], *, share: bool) -> Batch:
    """The pictures of samples some of which have `image_features` of the feature cache in place of `image`.

    `image` [M, 3, H, W] those without, `image_features` [I - M, T, C] of the others; where there are both, `image_order` [I] says
    where among these, one after the other, picture i is. `image_cache` says under which names features of the former are kept.
    """
    batch: Batch = {}
    if share:
        samples, batch["image_index"] = _different(samples, "image")
    found = ["image" not in sample for sample in samples]
    missed, kept = ([sample for sample, hit in zip(samples, found, strict=True) if hit is wanted] for wanted in (False, True))
    if missed:
        batch["image"] = torch.stack([sample["image"] for sample in missed])
    if kept:
        batch["image_features"] = torch.stack([sample["image_features"] for sample in kept])
    if missed and kept:
        batch["image_order"] = torch.tensor(found, dtype=torch.int8).argsort(stable=True).argsort(stable=True)
    entries = [sample.get("image_entry") or {"name": "", "size": (0, 0), "damaged": False} for sample in missed]
    batch["image_cache"] = {
        "hits": len(kept),
        "names": [entry["name"] for entry in entries],
        "sizes": [entry["size"] for entry in entries],
        "damaged": [entry["name"] for entry in entries if entry["damaged"]],
    }
    return batch


def rename_inputs(sample: Sample, prefix: str) -> None:
    """Put something in front of the names of a sample's encoder inputs: samples share what has one name."""
    sample.update({key: f"{prefix} {sample[key]}" for key in ENCODER_INPUTS.values() if key in sample})
