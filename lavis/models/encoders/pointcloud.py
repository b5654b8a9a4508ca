"""The encoder of point clouds: a frozen Point-BERT, and an adapter that makes its tokens as wide as the Q-Former reads them.

Shapes: I clouds, N points, G groups of K points, T = 1 + G tokens, C width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lavis.common.precision import without_autocast
from lavis.common.registry import registry
from lavis.common.seeding import step_draws
from lavis.models.encoders.base import Encoder, Features, Inputs, Samples, index_of, keys_of, tensor_of
from lavis.models.encoders.point_bert import PointBert
from lavis.models.qformer.tokens import Tokens
from lavis.models.weights.part_files import load_part, part_of_file

POINTS = 8192  # of an example cloud; groups are what counts behind the sampling


@registry.register_encoder("pointcloud")
class PointCloudEncoder(Encoder):
    """pointcloud [I, N, 3 or 6] -> tokens [I, 1 + G, C], the class token first."""

    key, block, tower = "pointcloud", "pointbert", "point_encoder"

    def __init__(self, point_encoder: PointBert, *, width: int, out: int, frozen: bool, autocast: bool) -> None:
        super().__init__()
        self.point_encoder = point_encoder
        self.pc_adapter = nn.Linear(width, out)
        self.frozen, self.autocast = frozen, autocast

    @classmethod
    def from_config(cls, cfg: DictConfig) -> PointCloudEncoder:
        settings = {key: value for key, value in cfg.pointbert.items() if key not in ("pretrained", "autocast")}
        sizes = {"width": cfg.pointbert.trans_dim, "out": cfg.qformer.input_dim}
        return cls(PointBert(**settings), **sizes, frozen=bool(cfg.freeze_point_encoder), autocast=bool(cfg.pointbert.autocast))

    def read(self, samples: Samples, *, device: torch.device, training: bool) -> Inputs:
        """`pointcloud` [I, N, 3 or 6], or `pointcloud_features` [I, 1 + G, C'] that the tower gave earlier, with
        `pointcloud_centres` [I, G, 3]. `point_groups` [I, G, 1 + K]: groups that a dataset found
        (`lavis.processors.point_groups`). `pointcloud_index` [B]."""
        cloud, known, centres, groups = (
            tensor_of(samples, key) for key in ("pointcloud", "pointcloud_features", "pointcloud_centres", "point_groups")
        )
        index = index_of(samples, "pointcloud", device)
        if known is not None:
            return Inputs(known=Features(known.to(device), None if centres is None else centres.to(device)), index=index)
        if cloud is None:
            raise ValueError("an entry with encoder pointcloud needs samples['pointcloud']")
        self.point_encoder.check(cloud)
        start = self.start_points(samples, cloud.shape[:2], index, device) if training and groups is None else None
        return Inputs(cloud, index=index, start=start, groups=groups)

    def start_points(self, samples: Samples, shape: Sequence[int], index: Tensor | None, device: torch.device) -> Tensor:
        """The points [I] at which the sampling of clouds [I, N, C] begins in training (in evaluation: point 0).

        In a step of a runner a cloud's point follows from seed, step and the cloud's name (`cloud_key`, else `image_id`): it is
        the same whichever process holds the cloud, also where two hold regions of one.
        """
        clouds, points = shape
        keys = keys_of(samples, "cloud_key") if index is not None else keys_of(samples, "cloud_key", "image_id")
        drawn = None if keys is None else step_draws(keys, points)
        if drawn is None:
            return torch.randint(points, (clouds,), device=device)
        start = torch.tensor(drawn, device=device)
        return start if index is None else start.new_zeros(clouds).scatter(0, index, start)

    def features(self, inputs: Inputs) -> Features:
        """Autocast stays out of a trained tower, whose batch norms learn statistics."""
        if inputs.known is not None:
            return inputs.known
        assert inputs.raw is not None
        return self.compute(inputs.raw, start=inputs.start, groups=inputs.groups)

    def compute(self, cloud: Tensor, *, start: Tensor | None = None, groups: Tensor | None = None) -> Features:
        """The tower's tokens of clouds [I, N, 3 or 6], and the centres of the groups in the cloud's coordinates. `start` [I]:
        where sampling begins (None: point 0); `groups` [I, G, 1 + K] stand in place of sampling."""
        device = self.pc_adapter.weight.device
        as_it_is = contextlib.nullcontext() if self.frozen and self.autocast else without_autocast(device)
        with as_it_is, torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens, centres = self.point_encoder(cloud.to(device, torch.float32), start=start, index=groups, with_centres=True)
        return Features(tokens, centres)

    def tokens(self, features: Features, index: Tensor | None) -> Tokens:
        return Tokens(self.pc_adapter(features.embeds), index, positions=features.centres)

    def load(self, path: str) -> list[str]:
        """The tower from a released Point-BERT / ULIP file, or from a RegionBLIP checkpoint."""
        return load_part(self.point_encoder, part_of_file(path, "point_encoder."), path)

    def autocast_parts(self) -> list[nn.Module]:
        return [self.point_encoder.blocks] if self.frozen and self.autocast else []

    def example(self, rows: int, *, device: str) -> dict[str, Tensor]:
        return {"pointcloud": torch.empty(rows, POINTS, self.point_encoder.channels, device=device)}
