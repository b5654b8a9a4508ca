"""Position-assisted feature extraction (PaFE): a region by its position alone.

RegionBLIP (arXiv 2308.02299): an MLP of the region's position is added to every learned query, and a linear head predicts the
position back from the mean query output.  2-D: 4 numbers x1 y1 x2 y2 in [0, 1].  3-D: 24 numbers, the 8 box corners in metres.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from lavis.common.precision import without_autocast
from lavis.common.registry import registry
from lavis.models.qformer.tokens import QFormerInput
from lavis.models.regions.base import PositionPrompt, RegionSettings

HIDDEN = 128


@registry.register_region("box_mlp")
class BoxMLP(PositionPrompt):
    """Position MLP Linear(n, 128)-GELU-Linear(128, D) and regression head Linear(D, n) for n = 4 or 24."""

    def __init__(self, settings: RegionSettings) -> None:
        super().__init__(settings)
        self.posembed = nn.Sequential(nn.Linear(self.position_size, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, settings.width))
        self.reg = nn.Linear(settings.width, self.position_size)
        self.adds = not settings.cfg.get("ablation_no_posembed")

    @classmethod
    def from_settings(cls, settings: RegionSettings) -> BoxMLP:
        return cls(settings)

    def into(self, given: QFormerInput, region: object) -> QFormerInput:
        """The position's embedding [B, D] is added to every query."""
        if not self.adds:
            return given
        position = cast(Tensor, region)
        with without_autocast(position.device):  # bfloat16 would round coordinates to 1/256
            embedded = self.posembed(position.to(self.reg.weight.dtype))
        return replace(given, queries=given.queries + embedded.unsqueeze(1))

    def loss(self, hidden: Tensor, region: object) -> Tensor:
        """Mean L1 between the head's reading of the query outputs [B, Q, D] and the position."""
        position = cast(Tensor, region)
        with without_autocast(position.device):
            return F.l1_loss(self.reg(hidden.float().mean(dim=1)), position.to(self.reg.weight.dtype))
