"""The EVA-ViT of BLIP-2 through timm's `Eva` (EVA, arXiv 2211.07636): absolute positions, q and v biases, no final norm.

The released EVA-ViT-g file has 40 blocks, a final norm and a head; BLIP-2 reads the output of block 39, so later blocks, the norm
and the head are dropped. timm names its parameters as the release does, so files load key by key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from torch import Tensor, nn

from lavis.common.errors import ConfigError

DROPPED = re.compile(r"(norm|fc_norm|head)\..*")


class EvaViT(Eva):
    """image [B, 3, S, S] -> tokens [B, 1 + (S / patch)^2, C], the class token first."""

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
        if img_size % patch_size:
            raise ConfigError(f"vit.img_size {img_size} is not a multiple of vit.patch_size {patch_size}")
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
        self.set_grad_checkpointing(grad_checkpoint)

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        size = self.patch_embed.img_size
        if image.dim() != 4 or tuple(image.shape[-2:]) != tuple(size):
            raise ValueError(f"image has shape {tuple(image.shape)}; the ViT was built for [B, 3, {size[0]}, {size[1]}]")
        return self.forward_features(image)


def interpolate_pos_embed(pos_embed: Tensor, grid: int) -> Tensor:
    """Resize position embeddings [1, 1 + g*g, C] to a grid x grid picture: bicubic, the class position is kept."""
    cls, patches = pos_embed[:, :1], pos_embed[:, 1:]
    before = round(patches.shape[1] ** 0.5)
    if before == grid:
        return pos_embed
    square = patches.reshape(1, before, before, -1).permute(0, 3, 1, 2).float()
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([cls, square.flatten(2).transpose(1, 2).to(cls.dtype)], dim=1)


def fit_eva_state_dict(state: Mapping[str, Tensor], vit: EvaViT) -> tuple[dict[str, Tensor], list[str]]:
    """A released EVA state dict cut to `vit`: positions interpolated, later blocks, final norm and head left out.

    Returns the state to load and the names that were left out.
    """
    fitted, dropped = {}, []
    depth = len(vit.blocks)
    for name, tensor in state.items():
        block = re.match(r"blocks\.(\d+)\.", name)
        if DROPPED.fullmatch(name) or (block and int(block.group(1)) >= depth):
            dropped.append(name)
        elif name == "pos_embed":
            fitted[name] = interpolate_pos_embed(tensor, vit.patch_embed.grid_size[0])
        else:
            fitted[name] = tensor
    return fitted, dropped
