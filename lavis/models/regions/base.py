"""How a region reaches the Q-Former: the seam of all region prompts, and the chain in which they work together.

`region:` of a modality's entry names one prompt, or several that work one after the other (`region: [box_mlp, roi]`). A prompt
may change the queries, what they see, or the text beside them, and may have a loss of its own. A new prompt is a new file with a
class registered by `registry.register_region`.

The published names `box` and `corners` mean `box_mlp` with a position of 4 or 24 numbers, and the published switches
`region_features: roi` and `region_attention: region` append `roi` and `visible_tokens` (`parts_of`).

Shapes: B regions, Q queries, D Q-Former width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.models.encoders.base import Samples, tensor_of
from lavis.models.qformer.tokens import QFormerInput

if TYPE_CHECKING:
    from lavis.models.modality import Modality

POSITIONS = {"box": ("box", 4), "corners": ("box_corners", 24)}  # kind -> (sample key, numbers per region)
OF_ENCODER = {"image": "box", "pointcloud": "corners"}  # the kind of position where an entry does not say


@dataclass(frozen=True)
class RegionSettings:
    """What a prompt is built from: kind of position, Q-Former width D, token width C, and the whole model configuration."""

    kind: str
    encoder: str
    width: int
    token_width: int
    cfg: DictConfig


class RegionPrompt(nn.Module, ABC):
    """One way of telling the Q-Former of a region. Its children stand in the branch under `region.`"""

    position_key: str | None = None  # samples key of an example input, and its numbers per region
    position_size: int = 0

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: RegionSettings) -> RegionPrompt:
        """Build; ConfigError for settings that do not fit this prompt."""

    @abstractmethod
    def read(self, samples: Samples, *, entry: Modality, device: torch.device, training: bool) -> Tensor | object:
        """Its part of the samples, shape and range checked. ValueError where it is missing or bad."""

    def into(self, given: QFormerInput, region: object) -> QFormerInput:
        """What the Q-Former is given, with the region in it."""
        return given

    def loss(self, hidden: Tensor, region: object) -> Tensor | None:
        """A loss of its own over query outputs [B, Q, D], a mean over this process's rows; None for a prompt without one."""
        return None


class PositionPrompt(RegionPrompt):
    """Base of the prompts that read a position: box [B, 4] (x1 y1 x2 y2 in [0, 1]) or box_corners [B, 8, 3] in metres."""

    def __init__(self, settings: RegionSettings) -> None:
        super().__init__()
        self.kind = settings.kind
        self.position_key, self.position_size = POSITIONS[settings.kind]

    def read(self, samples: Samples, *, entry: Modality, device: torch.device, training: bool) -> Tensor:
        """Position [B, n] on the device. A training step on a GPU does not wait for a check of the range."""
        assert self.position_key is not None
        position = tensor_of(samples, self.position_key)
        if position is None:
            raise ValueError(f"modality {entry.name!r} needs samples[{self.position_key!r}]")
        if position.is_cpu or not training:
            self.check(position)
        flat = position.flatten(1) if position.dim() > 1 else position
        if flat.dim() != 2 or flat.shape[1] != self.position_size:
            shape = tuple(position.shape)
            raise ValueError(f"{self.position_key} has shape {shape}; a region takes [B, {self.position_size}] numbers")
        return flat.to(device)

    def check(self, position: Tensor) -> None:
        """ValueError when a 2-D box is not in [0, 1] (pixels instead of shares of the image are the usual mistake)."""
        if self.kind == "box" and not bool(((position >= 0) & (position <= 1)).all()):
            raise ValueError(f"box values must lie in [0, 1] of the image, got {position.min():.4g} to {position.max():.4g}")


class RegionChain(nn.Module):
    """The prompts of one entry, in order. Their children are its own: checkpoints say `region.posembed`, not which prompt."""

    def __init__(self, prompts: Sequence[RegionPrompt]) -> None:
        super().__init__()
        self.prompts = list(prompts)  # a plain list: the children are registered below
        for prompt in self.prompts:
            for name, child in prompt.named_children():
                self.add_module(name, child)

    def read(self, samples: Samples, *, entry: Modality, device: torch.device, training: bool) -> list[object]:
        """What each prompt reads of the samples."""
        return [prompt.read(samples, entry=entry, device=device, training=training) for prompt in self.prompts]

    def into(self, given: QFormerInput, regions: Sequence[object]) -> QFormerInput:
        """What the Q-Former is given, with the region in it."""
        for prompt, region in zip(self.prompts, regions, strict=True):
            given = prompt.into(given, region)
        return given

    def loss(self, hidden: Tensor, regions: Sequence[object]) -> Tensor | None:
        """The sum of the prompts' own losses; None where none has one."""
        found = [prompt.loss(hidden, region) for prompt, region in zip(self.prompts, regions, strict=True)]
        present = [loss for loss in found if loss is not None]
        return torch.stack(present).sum() if len(present) > 1 else present[0] if present else None

    @property
    def position_keys(self) -> dict[str, int]:
        """The sample keys of positions that the prompts read, and their numbers per region."""
        return {prompt.position_key: prompt.position_size for prompt in self.prompts if prompt.position_key is not None}


def parts_of(entry: Modality, cfg: DictConfig) -> tuple[str, list[str]]:
    """The kind of position and the prompts of an entry, published names and switches translated; no prompts without a region."""
    named = [entry.region] if isinstance(entry.region, str) else list(entry.region or ())
    kind = next((name for name in named if name in POSITIONS), OF_ENCODER.get(entry.encoder, "box"))
    parts = ["box_mlp" if name in POSITIONS else name for name in named]
    if parts and cfg.get("region_features") == "roi" and "roi" not in parts:
        parts.append("roi")
    if parts and cfg.get("region_attention") == "region" and "visible_tokens" not in parts:
        parts.append("visible_tokens")
    return kind, parts


def build_chain(entry: Modality, cfg: DictConfig, *, width: int) -> RegionChain | None:
    """The region prompts of an entry; None where it has none. ConfigError for an unknown name, or one that stands twice."""
    kind, parts = parts_of(entry, cfg)
    if not parts:
        return None
    if len(set(parts)) != len(parts):
        raise ConfigError(f"modalities.{entry.name}.region names a prompt twice: {', '.join(parts)}")
    settings = RegionSettings(kind, entry.encoder, width, int(cfg.qformer.input_dim), cfg)
    try:
        return RegionChain([registry.get_class("region", part).from_settings(settings) for part in parts])
    except ConfigError as error:
        raise ConfigError(f"modalities.{entry.name}: {error}") from error
