"""Point-BERT (arXiv 2111.14819) as ULIP releases it: groups of points in, a class token and a token per group out.

Parameter names are the released ones below `module.transformer_q.`. The position embedding is added again before every block,
inside the residual stream.  Differs from the release: blocks are timm's, sampling starts at point 0 in evaluation, and a trained
encoder normalises over the clouds of all processes.

Shapes: B clouds, N points, G groups of K points, C channels (3, or 6 with colour), D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lavis.common import dist_utils
from lavis.common.precision import autocast_of, without_autocast
from lavis.models.encoders.point_ops import group_points

RELEASED = re.compile(r"(?:module\.)?(?:transformer_q|point_encoder)\.(.*)")
POINTS_AT_ONCE = 2048  # 64 groups of 32: the quickest of 256 to 16,384 points, in float32 and in bfloat16
LEFT_OUT = re.compile(r"cls_head\..*|lm_head\..*|mask_token")


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm of points [M, C] that in training takes its statistics over the points of all processes, on any device
    (torch's SyncBatchNorm works on GPUs alone)."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and dist_utils.is_distributed()):
            return super().forward(input)
        points = float(sum(dist_utils.gather_sizes(len(input))))
        mean = dist_utils.sum_with_grad(input.sum(dim=0)) / points
        centred = input - mean
        variance = dist_utils.sum_with_grad(centred.square().sum(dim=0)) / points
        with torch.no_grad():
            assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * points / (points - 1), self.momentum)
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class MiniPointNet(nn.Module):
    """Points of a group [B, G, K, C] -> one vector per group [B, G, W]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(channels, 128, 1), GlobalBatchNorm(128), nn.ReLU(inplace=True), nn.Conv1d(128, 256, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), GlobalBatchNorm(512), nn.ReLU(inplace=True), nn.Conv1d(512, width, 1)
        )

    def forward(self, groups: Tensor) -> Tensor:
        """In evaluation and without a graph, where batch norm is a fixed scale and shift, the parts are multiplied out first."""
        if self.training or torch.is_grad_enabled():
            return self._layer_by_layer(groups)
        return self._multiplied_out(groups)

    def _layer_by_layer(self, groups: Tensor) -> Tensor:
        # The convolutions have kernel 1, so they are linear layers over points. The second stage reads [whole, local] of a point;
        # `whole` is the same for all points of a group, so its half of the product is taken once per group.
        clouds, count, size, channels = groups.shape
        widen, norm, relu, narrow = self.first_conv
        local = _linear(relu(norm(_linear(groups.reshape(-1, channels), widen))), narrow)
        whole = local.view(clouds * count, size, -1).amax(dim=1)
        widen, norm, relu, narrow = self.second_conv
        of_whole, of_local = _matrix(widen).split(whole.shape[1], dim=1)
        mixed = F.linear(local, of_local).view(clouds * count, size, -1) + F.linear(whole, of_whole, _bias(widen)).unsqueeze(1)
        points = _linear(relu(norm(mixed.flatten(0, 1))), narrow)
        return points.view(clouds, count, size, -1).amax(dim=2)

    def _multiplied_out(self, groups: Tensor) -> Tensor:
        """As `_layer_by_layer`, up to rounding. Batch norm goes into the layer before it; the end of the first stage and what the
        second reads of a point are two products in a row, so one; a bias is added behind the maximum. On a CPU some groups at a
        time, so that what lies between the products stays in the cache."""
        clouds, count, size, channels = groups.shape
        dtype = autocast_of(groups.device) or groups.dtype
        with without_autocast(groups.device):
            products = self._products()
        first, first_bias, local, whole, whole_bias, mixed, last, last_bias = (part.to(dtype) for part in products)
        at_once = max(1, POINTS_AT_ONCE // size) if groups.device.type == "cpu" else clouds * count
        found = []
        for part in groups.to(dtype).reshape(-1, size, channels).split(at_once):
            points = F.linear(part.flatten(0, 1), first, first_bias).relu_()
            of_whole = F.linear(F.linear(points, local).view(-1, size, len(local)).amax(dim=1), whole, whole_bias)
            points = F.linear(points, mixed).view(-1, size, len(mixed)).add_(of_whole.unsqueeze(1)).relu_()
            found.append(F.linear(points, last).amax(dim=1))
        return (torch.cat(found) + last_bias).view(clouds, count, -1)

    def _products(self) -> tuple[Tensor, ...]:
        """Weights and biases of `_multiplied_out`, in the order of their use."""
        widen, norm, _, narrow = self.first_conv
        first, first_bias = _with_norm(widen, norm)
        local, local_bias = _matrix(narrow), _bias(narrow)
        widen, norm, _, narrow = self.second_conv
        second, second_bias = _with_norm(widen, norm)
        whole, of_local = second.split(len(local), dim=1)
        whole_bias = second_bias + (whole + of_local) @ local_bias  # local_bias is in the maximum and in each point
        return first, first_bias, local, whole, whole_bias, of_local @ local, _matrix(narrow), _bias(narrow)


def _matrix(conv: nn.Module) -> Tensor:
    """The weight [out, in] of a convolution of kernel 1."""
    assert isinstance(conv, nn.Conv1d)
    return conv.weight.squeeze(-1)


def _bias(conv: nn.Module) -> Tensor:
    assert isinstance(conv, nn.Conv1d) and conv.bias is not None
    return conv.bias


def _linear(points: Tensor, conv: nn.Module) -> Tensor:
    """A convolution of kernel 1 on points [M, C], without moving the channels."""
    return F.linear(points, _matrix(conv), _bias(conv))


def _with_norm(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution of kernel 1 and the batch norm in evaluation behind it, as one linear layer."""
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return _matrix(conv) * scale[:, None], (_bias(conv) - norm.running_mean) * scale + norm.bias


class BlockList(nn.Module):
    """Holds the blocks under their released name."""

    def __init__(self, width: int, heads: int, drop_path: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=4.0, qkv_bias=False, drop_path=rate, norm_layer=nn.LayerNorm) for rate in drop_path
        )

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens + position)
        return tokens


class PointBert(nn.Module):
    """pointcloud [B, N, 3 or 6] -> tokens [B, 1 + G, D], the class token first."""

    def __init__(
        self,
        *,
        trans_dim: int,
        depth: int,
        num_heads: int,
        group_size: int,
        num_group: int,
        encoder_dims: int,
        drop_path_rate: float = 0.1,
        with_color: bool = False,
    ) -> None:
        super().__init__()
        self.group_size, self.num_group, self.channels = group_size, num_group, 6 if with_color else 3
        self.encoder = MiniPointNet(self.channels, encoder_dims)
        self.reduce_dim = nn.Linear(encoder_dims, trans_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, trans_dim))
        self.cls_pos = nn.Parameter(torch.randn(1, 1, trans_dim))
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, trans_dim))
        rates = [rate.item() for rate in torch.linspace(0, drop_path_rate, depth, device="cpu")]
        self.blocks = BlockList(trans_dim, num_heads, rates)
        self.norm = nn.LayerNorm(trans_dim)

    def forward(
        self,
        pointcloud: Tensor,
        *,
        start: Tensor | None = None,
        index: Tensor | None = None,
        with_centres: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`start` [B]: the point at which sampling begins (None: 0); `index` [B, G, 1 + K]: groups that were found before, in
        place of sampling here. ValueError on another shape or too few points.

        `with_centres`: return the tokens and the centres [B, G, 3] of their groups, in the cloud's coordinates.
        """
        self.check(pointcloud)
        groups, centres = group_points(pointcloud, self.num_group, self.group_size, start=start, index=index)
        dtype = self.reduce_dim.weight.dtype
        tokens = self.reduce_dim(self.encoder(groups.to(dtype)))
        cls = self.cls_token.expand(len(tokens), -1, -1)
        with without_autocast(centres.device):  # bfloat16 would round coordinates to 1/256
            position = torch.cat([self.cls_pos.expand(len(tokens), -1, -1), self.pos_embed(centres.to(dtype))], dim=1)
        out = self.norm(self.blocks(torch.cat([cls, tokens], dim=1), position))
        return (out, centres) if with_centres else out

    def check(self, pointcloud: Tensor) -> None:
        """ValueError unless the cloud has the channels that the encoder was built for."""
        if pointcloud.dim() != 3 or pointcloud.shape[-1] != self.channels:
            wanted = f"[B, N, {self.channels}]" + (" (xyz and colour)" if self.channels == 6 else " (xyz)")
            raise ValueError(f"pointcloud has shape {tuple(pointcloud.shape)}; this encoder was built for {wanted}")


def fit_point_bert_state_dict(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's part of a released ULIP / Point-BERT state dict under our names, and the names that were left out.

    Released keys start with `module.transformer_q.`; momentum copies, queues and pre-training heads are left out. A bare state
    dict is taken as it is.
    """
    released = any(RELEASED.match(name) for name in state)
    fitted, dropped = {}, []
    for name, tensor in state.items():
        match = RELEASED.fullmatch(name) if released else re.fullmatch(r"(.*)", name)
        if match is None or LEFT_OUT.fullmatch(match.group(1)):
            dropped.append(name)
        else:
            fitted[match.group(1)] = tensor
    return fitted, dropped
