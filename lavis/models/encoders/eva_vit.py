"""The EVA-ViT of BLIP-2 through timm's `Eva` (EVA, arXiv 2211.07636): absolute positions, q and v biases, no final norm.

The released EVA-ViT-g file has 40 blocks, a final norm and a head; BLIP-2 reads the output of block 39, so later blocks, the norm
and the head are dropped. timm names its parameters as the release does, so files load key by key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lavis.common.errors import ConfigError
from lavis.models.qformer.recompute import recompute_layers

DROPPED = re.compile(r"(norm|fc_norm|head)\..*")


class EvaViT(Eva):
    """image [B, 3, S, S] -> tokens [B, 1 + (S / patch)^2, C], the class token first."""

    align_corners = False

    def __init__(
        self,
        *,
        img_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path_rate: float = 0.0,
        grad_checkpoint: bool = False,
    ) -> None:
        check_patches(img_size, patch_size)
        with DropRatesOnCpu():
            super().__init__(
                img_size=img_size,
                patch_size=patch_size,
                embed_dim=embed_dim,
                depth=depth,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                drop_path_rate=drop_path_rate,
                num_classes=0,
                global_pool="",
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )
        self.norm = nn.Identity()  # BLIP-2 reads the blocks' output as it is
        if grad_checkpoint:
            recompute_layers(self)

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        check_picture(image, self.patch_embed.img_size)
        return self.forward_features(image)


class Vit(Protocol):
    """What the two ViTs share for loading."""

    align_corners: bool  # of the interpolation of positions
    blocks: Any
    pos_embed: Any


def check_patches(img_size: int, patch_size: int) -> None:
    """ConfigError unless the picture is a whole number of patches wide."""
    if img_size % patch_size:
        raise ConfigError(f"vit.img_size {img_size} is not a multiple of vit.patch_size {patch_size}")


def check_picture(image: Tensor, size: Iterable[int]) -> None:
    """ValueError unless image is [B, 3, S, S] of the size that the ViT was built for."""
    height, width = size
    if image.dim() != 4 or tuple(image.shape[-2:]) != (height, width):
        raise ValueError(f"image has shape {tuple(image.shape)}; the ViT was built for [B, 3, {height}, {width}]")


class DropRatesOnCpu(TorchFunctionMode):
    """Inside this block `torch.linspace` is on the CPU: timm reads its numbers while it builds, also on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        extra = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **{**(kwargs or {}), **extra})


def interpolate_pos_embed(pos_embed: Tensor, grid: int, *, align_corners: bool = False) -> Tensor:
    """Resize position embeddings [1, 1 + g*g, C] to a grid x grid picture: bicubic, the class position is kept."""
    cls, patches = pos_embed[:, :1], pos_embed[:, 1:]
    before = round(patches.shape[1] ** 0.5)
    if before == grid:
        return pos_embed
    square = patches.reshape(1, before, before, -1).permute(0, 3, 1, 2).float()
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=align_corners)
    return torch.cat([cls, square.flatten(2).transpose(1, 2).to(cls.dtype)], dim=1)


def fit_vit_state_dict(state: Mapping[str, Tensor], vit: Vit) -> tuple[dict[str, Tensor], list[str]]:
    """A released state dict (timm's names) cut to `vit`: positions interpolated, later blocks, final norm and head left out.

    Returns the state to load and the names that were left out.
    """
    fitted, dropped = {}, []
    depth = len(vit.blocks)
    for name, tensor in state.items():
        block = re.match(r"blocks\.(\d+)\.", name)
        if DROPPED.fullmatch(name) or (block and int(block.group(1)) >= depth):
            dropped.append(name)
        elif name == "pos_embed":
            grid = round((vit.pos_embed.shape[1] - 1) ** 0.5)
            fitted[name] = interpolate_pos_embed(tensor, grid, align_corners=vit.align_corners)
        else:
            fitted[name] = tensor
    return fitted, dropped
