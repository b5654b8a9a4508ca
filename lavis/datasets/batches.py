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

ENCODER_INPUTS = {"image": "image_key", "pointcloud": "cloud_key"}  # what an encoder reads, and the key that names it


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
    batch: Batch = {"modality": modalities[0]}
    for key in keys:
        values = [sample[key] for sample in samples]
        if share_inputs and ENCODER_INPUTS.get(key) in keys:
            batch[key], batch[f"{key}_index"] = _shared(samples, key)
        elif key not in ("modality", "skipped"):
            batch[key] = torch.stack(values) if isinstance(values[0], Tensor) else values
    batch["skipped"] = [entry for sample in samples for entry in sample.get("skipped", [])]
    return batch


def _shared(samples: Sequence[Sample], key: str) -> tuple[Tensor, Tensor]:
    """The I different encoder inputs [I, ...] of B samples, and which of them is whose [B]."""
    names = [sample[ENCODER_INPUTS[key]] for sample in samples]
    inputs: dict[str, Tensor] = {}
    for name, sample in zip(names, samples, strict=True):
        inputs.setdefault(name, sample[key])
    places = {name: place for place, name in enumerate(inputs)}
    return torch.stack(list(inputs.values())), torch.tensor([places[name] for name in names])


def rename_inputs(sample: Sample, prefix: str) -> None:
    """Put something in front of the names of a sample's encoder inputs: samples share what has one name."""
    sample.update({key: f"{prefix} {sample[key]}" for key in ENCODER_INPUTS.values() if key in sample})
