"""Position-assisted feature extraction (PaFE): how a region reaches the Q-Former.

RegionBLIP (arXiv 2308.02299): an MLP of the region's position is added to every learned query, and a linear head predicts the
position back from the mean query output.  2-D: 4 numbers x1 y1 x2 y2 in [0, 1].  3-D: 24 numbers, the 8 box corners in metres.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lavis.common.precision import without_autocast

REGION_KINDS = {"box": ("box", 4), "corners": ("box_corners", 24)}  # kind -> (sample key, numbers per region)
HIDDEN = 128


class RegionPosition(nn.Module):
    """Position MLP Linear(n, 128)-GELU-Linear(128, D) and regression head Linear(D, n) for n = 4 or 24."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.key, self.size = REGION_KINDS[kind]
        self.posembed = nn.Sequential(nn.Linear(self.size, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, width))
        self.reg = nn.Linear(width, self.size)
        self.roi: nn.Linear | None = None  # see setup_roi

    def setup_roi(self, token_width: int) -> None:
        """Add a layer for the region's own features [B, C] (ablation `region_features: roi`). It starts from zero: a model that
        has learned without it says what it said."""
        self.roi = nn.Linear(token_width, self.reg.in_features)
        nn.init.zeros_(self.roi.weight)
        nn.init.zeros_(self.roi.bias)

    def flatten(self, position: Tensor) -> Tensor:
        """box [B, 4] or corners [B, 8, 3] -> [B, n]; ValueError on another shape."""
        flat = position.flatten(1) if position.dim() > 1 else position
        if flat.dim() != 2 or flat.shape[1] != self.size:
            raise ValueError(f"{self.key} has shape {tuple(position.shape)}; a region takes [B, {self.size}] numbers")
        return flat.to(self.reg.weight.dtype)

    def check(self, position: Tensor) -> None:
        """ValueError when a 2-D box is not in [0, 1] (pixels instead of shares of the image are the usual mistake)."""
        if self.kind == "box" and not bool(((position >= 0) & (position <= 1)).all()):
            raise ValueError(f"box values must lie in [0, 1] of the image, got {position.min():.4g} to {position.max():.4g}")

    def embed(self, position: Tensor) -> Tensor:
        """Position of a region -> [B, D], to be added to every query."""
        with without_autocast(position.device):  # bfloat16 would round coordinates to 1/256
            return self.posembed(self.flatten(position))

    def loss(self, hidden: Tensor, position: Tensor) -> Tensor:
        """Mean L1 between the head's reading of the query outputs [B, Q, D] and the position."""
        with without_autocast(position.device):
            return F.l1_loss(self.reg(hidden.float().mean(dim=1)), self.flatten(position))
