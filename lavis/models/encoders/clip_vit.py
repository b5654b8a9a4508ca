"""The CLIP ViT-L of BLIP-2 (`vit_model: clip_L`) through timm's VisionTransformer (CLIP, arXiv 2103.00020): a norm before the
blocks, x * sigmoid(1.702 x) as activation, no final norm.

CLIP ViT-L/14 has 24 blocks; BLIP-2 (arXiv 2301.12597) reads the output of the second last, so `vit.depth` is 23. Copies of LAVIS'
code differ in this number: a checkpoint wants the depth that it was trained with. Sizes: embed_dim 1024, num_heads 16,
mlp_ratio 4, patch_size 14, and qformer.input_dim 1024.

Files: LAVIS' `clip_vit_L.pth`, OpenAI's (names below `visual.`) and Hugging Face's CLIPVisionModel or CLIPModel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lavis.models.encoders.eva_vit import DropRatesOnCpu, check_patches, check_picture
from lavis.models.qformer.recompute import recompute_layers

# (OpenAI's, timm's); the first that fits counts, in both directions
OPENAI = [
    ("conv1.", "patch_embed.proj."),
    ("positional_embedding", "pos_embed"),
    ("class_embedding", "cls_token"),
    ("ln_pre.", "norm_pre."),
    ("ln_post.", "norm."),
    ("transformer.resblocks.", "blocks."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".attn.in_proj_", ".attn.qkv."),
    (".attn.out_proj.", ".attn.proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
]
HUGGING_FACE = [
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("embeddings.position_embedding.weight", "pos_embed"),
    ("embeddings.class_embedding", "cls_token"),
    ("pre_layrnorm.", "norm_pre."),  # spelled so
    ("post_layernorm.", "norm."),
    ("encoder.layers.", "blocks."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".self_attn.out_proj.", ".attn.proj."),
]
QKV = re.compile(r"(blocks\.\d+)\.self_attn\.q_proj\.(weight|bias)")
OPENAI_NAMES = re.compile(r"(visual\.)?(class_embedding|positional_embedding|conv1\.|ln_pre\.|ln_post\.|transformer\.|proj$)")
OTHER_TOWER = re.compile(r"text_model\.|text_projection|visual_projection|logit_scale")


class ClipViT(VisionTransformer):
    """image [B, 3, S, S] -> tokens [B, 1 + (S / patch)^2, C], the class token first."""

    align_corners = True  # of the interpolation of positions, as LAVIS does for CLIP

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
                pre_norm=True,
                act_layer="quick_gelu",
                norm_layer=partial(nn.LayerNorm, eps=1e-5),
            )
        self.norm = nn.Identity()
        if grad_checkpoint:
            recompute_layers(self)

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        check_picture(image, self.patch_embed.img_size)
        return self.forward_features(image)


def is_clip(keys: Iterable[str]) -> bool:
    """Whether keys are those of a CLIP vision tower, in OpenAI's or Hugging Face's names."""
    keys = set(keys)
    return any(key.endswith("pre_layrnorm.weight") for key in keys) or any(
        {f"{prefix}class_embedding", f"{prefix}ln_pre.weight"} <= keys for prefix in ("", "visual.")
    )


def from_clip_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A CLIP state dict under timm's names, and the names of what is no part of the vision tower."""
    hugging_face = any(key.endswith("pre_layrnorm.weight") for key in state)
    renamed, left_out = {}, []
    for key, tensor in state.items():
        if hugging_face:
            outside, table = OTHER_TOWER.match(key) or key.endswith("position_ids"), HUGGING_FACE
            name = _swap(key.removeprefix("vision_model."), table)
        else:
            prefix = "visual." if "visual.class_embedding" in state else ""
            outside = not (key.startswith(prefix) and OPENAI_NAMES.match(key))
            name = _swap(key.removeprefix(prefix), OPENAI)
        if outside or name == "proj":
            left_out.append(key)
            continue
        renamed[name] = tensor.reshape(1, -1, tensor.shape[-1]) if name in ("cls_token", "pos_embed") else tensor
    return _fused(renamed) if hugging_face else renamed, left_out


def to_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's names under OpenAI's and LAVIS'."""
    back = [(ours, theirs) for theirs, ours in OPENAI]
    shapes = {"cls_token": lambda t: t.flatten(), "pos_embed": lambda t: t.squeeze(0)}
    return {_swap(key, back): shapes.get(key, lambda t: t)(tensor) for key, tensor in state.items()}


def _swap(key: str, table: list[tuple[str, str]]) -> str:
    for before, after in table:
        if key.startswith(before) if before[0] != "." else before in key:
            key = key.replace(before, after, 1)
    return key


def _fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """q, k and v of every block as one `attn.qkv`."""
    fused = {}
    for key, tensor in state.items():
        if match := QKV.fullmatch(key):
            parts = [tensor, *(state[key.replace(".q_proj.", f".{other}_proj.")] for other in "kv")]
            fused[f"{match[1]}.attn.qkv.{match[2]}"] = torch.cat(parts)
        elif ".self_attn." not in key:
            fused[key] = tensor
    return fused
