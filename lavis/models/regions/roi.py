"""A region by the features that lie in it: RoIAlign (arXiv 1703.06870) of the image tokens, or the mean of the groups of points
whose centre lies in the region, through a linear layer onto every query.

An ablation of RegionBLIP (arXiv 2308.02299); the published code does not hold it, so its form is ours (`geometry.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.models.qformer.tokens import QFormerInput, Tokens
from lavis.models.regions import geometry
from lavis.models.regions.base import OF_ENCODER, PositionPrompt, RegionSettings


def check_overlay(settings: RegionSettings) -> None:
    """ConfigError for a position that does not say which tokens of its encoder lie in it."""
    if OF_ENCODER.get(settings.encoder) != settings.kind:
        raise ConfigError(
            f"a {settings.kind} does not say which tokens of encoder {settings.encoder} lie in it; "
            "model.region_features and model.region_attention want a box on image or corners on pointcloud"
        )


def tokens_in_region(position: Tensor, tokens: Tokens, *, kind: str, cfg: DictConfig) -> Tensor:
    """Which of the tokens that have a place lie in each row's region: bool [B, T - unplaced], all of them where none does.

    A box holds the patches that it overlaps, corners the groups of points whose centre lies in their hull.
    """
    if kind == "box":
        inside = geometry.cells_in_box(position, round((tokens.embeds.shape[1] - tokens.unplaced) ** 0.5))
    else:
        assert tokens.positions is not None, "the encoder of point clouds says where its tokens lie"
        corners = position.unflatten(1, (8, 3))
        if cfg.get("corner_axes", "published") == "published":
            corners = geometry.corners_in_space(corners)
        inside = geometry.points_in_hull(tokens.per_row(tokens.positions), corners)
    return geometry.all_if_none(inside)


@registry.register_region("roi")
class RoiFeatures(PositionPrompt):
    """The layer starts from zero: a model that has learned without it says what it said."""

    def __init__(self, settings: RegionSettings) -> None:
        super().__init__(settings)
        self.cfg = settings.cfg
        self.roi = skip_init(nn.Linear, settings.token_width, settings.width)  # no draw: the parts behind it start as without it
        nn.init.zeros_(self.roi.weight)
        nn.init.zeros_(self.roi.bias)

    @classmethod
    def from_settings(cls, settings: RegionSettings) -> RoiFeatures:
        check_overlay(settings)
        return cls(settings)

    def into(self, given: QFormerInput, region: object) -> QFormerInput:
        position, tokens = cast(Tensor, region), given.tokens
        located = tokens.embeds[:, tokens.unplaced :]
        if self.kind == "box":
            features = geometry.pool_box(located, position, tokens.index)
        else:
            inside = tokens_in_region(position, tokens, kind=self.kind, cfg=self.cfg)
            features = geometry.pool_inside(tokens.per_row(located), inside)
        return replace(given, queries=given.queries + self.roi(features.to(self.roi.weight.dtype)).unsqueeze(1))
