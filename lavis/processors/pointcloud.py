"""The point cloud processor base_point_cloud. What is drawn for a cloud belongs to its dataset."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lavis.common.registry import registry
from lavis.processors.base_processor import BaseProcessor


@registry.register_processor("base_point_cloud")
class PointCloudProcessor(BaseProcessor):
    """Points [N, C] of any numbers -> a float32 tensor [N, C] of its own memory; nothing is moved or drawn."""

    def __call__(self, item: ArrayLike, *, rng: np.random.RandomState | None = None) -> Tensor:
        points = np.array(item, dtype=np.float32)
        if points.ndim != 2 or points.shape[1] < 3:
            raise ValueError(f"a point cloud has shape {points.shape}; accepted: [N, C] with x, y, z first")
        return torch.from_numpy(points)
