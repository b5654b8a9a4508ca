"""A region by what its queries may see: an ablation of RegionBLIP (arXiv 2308.02299) whose form is ours."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from lavis.common.registry import registry
from lavis.models.qformer.tokens import QFormerInput
from lavis.models.regions.base import PositionPrompt, RegionSettings
from lavis.models.regions.roi import check_overlay, tokens_in_region


@registry.register_region("visible_tokens")
class VisibleTokens(PositionPrompt):
    """The region's queries see the class token and the tokens in the region, nothing else. It has no weights."""

    def __init__(self, settings: RegionSettings) -> None:
        super().__init__(settings)
        self.cfg = settings.cfg

    @classmethod
    def from_settings(cls, settings: RegionSettings) -> VisibleTokens:
        check_overlay(settings)
        return cls(settings)

    def into(self, given: QFormerInput, region: object) -> QFormerInput:
        inside = tokens_in_region(cast(Tensor, region), given.tokens, kind=self.kind, cfg=self.cfg)
        front = inside.new_ones(len(inside), given.tokens.unplaced)
        return replace(given, tokens=replace(given.tokens, visible=torch.cat([front, inside], dim=1)))
