"""Encoder files as they are published: CLIP ViT-L in three layouts, EVA-ViT, Point-BERT and ULIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lavis.common.config import ConfigError
from lavis.models import load_model_from_config
from lavis.models.encoders.eva_vit import interpolate_pos_embed
from tests import tiny
from tests.hf import scatter

CLIP = {"vit_model": "clip_L", "mlp_ratio": 4.0, "depth": 2}
SIZES = {"img_size": 28, "patch_size": 14, "embed_dim": 24, "num_heads": 2, "vit_precision": "fp32"}


@pytest.fixture
def clip(tmp_path: Path) -> Any:
    """BLIP-2 stage 1 on a tiny CLIP, random."""
    return load_model_from_config(tiny.model_config(tmp_path, "blip2", vit={**SIZES, **CLIP})).eval()


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class OpenAIBlock(nn.Module):
    """A block of OpenAI's release, by its parameter names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGelu())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class OpenAITower(nn.Module):
    """The vision tower of OpenAI's release, by its parameter names; `read` says how many blocks are run."""

    def __init__(self, width: int = 24, heads: int = 2, depth: int = 3, patches: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 14, 14, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + patches, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(OpenAIBlock(width, heads) for _ in range(depth)))
        self.proj = nn.Parameter(torch.zeros(width, 16))

    def forward(self, image: Tensor, read: int) -> Tensor:
        patches = self.conv1(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(image), 1, -1), patches], dim=1) + self.positional_embedding
        return self.transformer.resblocks[:read](self.ln_pre(tokens).transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("layout", ["lavis", "openai"])
@torch.no_grad()
def test_clip_of_openai(clip: Any, tmp_path: Path, layout: str) -> None:
    """LAVIS' file has the tower alone; OpenAI's has it below `visual.` beside the text tower. The third block is not read."""
    tower = OpenAITower().eval()
    scatter(tower)
    state = dict(tower.state_dict())
    if layout == "openai":
        state = {f"visual.{name}": tensor for name, tensor in state.items()} | {
            "positional_embedding": torch.zeros(77, 8),
            "transformer.resblocks.0.ln_1.weight": torch.zeros(8),
            "logit_scale": torch.tensor(1.0),
        }
    torch.save(state, tmp_path / "clip.pth")
    report = clip.load_checkpoint(tmp_path / "clip.pth")
    assert report.layout == "clip" and not [name for name in report.missing if name.startswith("visual_encoder.")]
    assert any("blocks.2." in name for name in report.ignored)
    image = tiny.image_batch()["image"]
    torch.testing.assert_close(clip.visual_encoder(image), tower(image, read=2), atol=1e-5, rtol=1e-5)
    written, left_out = clip.key_map.write(clip.state_dict(), "blip2")
    assert not left_out
    for name in ("conv1.weight", "class_embedding", "positional_embedding", "transformer.resblocks.1.attn.in_proj_bias"):
        assert torch.equal(written[f"visual_encoder.{name}"], tower.state_dict()[name]), "LAVIS' names, inside a checkpoint too"
    again = load_model_from_config(clip.cfg).eval()
    again.load_checkpoint({"model": written})
    assert torch.equal(again.visual_encoder(image), clip.visual_encoder(image))


@torch.no_grad()
def test_clip_of_hugging_face(tmp_path: Path) -> None:
    """A CLIPVisionModelWithProjection folder as vit.pretrained."""
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    theirs = CLIPVisionModelWithProjection(config).eval()
    scatter(theirs)
    theirs.save_pretrained(tmp_path / "clip")
    vit = {**SIZES, **CLIP, "pretrained": str(tmp_path / "clip")}
    ours = load_model_from_config(tiny.model_config(tmp_path, "blip2", vit=vit)).eval()
    image = tiny.image_batch()["image"]
    expected = theirs(pixel_values=image, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(ours.visual_encoder(image), expected, atol=1e-5, rtol=1e-5)
    assert ours.bases["visual_encoder"] == str(tmp_path / "clip") and "visual_encoder" not in ours.random_parts()


def test_clip_learns_when_asked(clip: Any) -> None:
    model = load_model_from_config({**clip.cfg, "freeze_vit": False})
    groups = model.get_optimizer_params(weight_decay=0.05, lr_scale=0.5)
    model(tiny.image_batch()).loss.backward()
    assert model.visual_encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert {group["lr_scale"] for group in groups} == {1.0, 0.5, 0.25, 0.125}


def test_positions_are_interpolated_from_every_source(clip: Any, tmp_path: Path) -> None:
    """A file for 28 pixels in a model for 42, through load_checkpoint: bicubic; CLIP's corners are aligned, EVA's are not."""
    for model_name, aligned in (("clip_L", True), ("eva_clip_g", False)):
        vit = {**SIZES, **CLIP, "vit_model": model_name, "img_size": 28}
        small = load_model_from_config(tiny.model_config(tmp_path, "blip2", vit=vit))
        large = load_model_from_config(tiny.model_config(tmp_path, "blip2", vit={**vit, "img_size": 42}))
        large.load_checkpoint({"model": small.state_dict()})
        expected = interpolate_pos_embed(small.visual_encoder.pos_embed, 3, align_corners=aligned)
        torch.testing.assert_close(large.visual_encoder.pos_embed, expected)
        assert not torch.allclose(expected, interpolate_pos_embed(small.visual_encoder.pos_embed, 3, align_corners=not aligned))


def test_an_eva_file_loads_through_load_checkpoint(tmp_path: Path) -> None:
    """The release has a further block, a final norm and a head."""
    config = tiny.model_config(tmp_path, "blip2")
    released = load_model_from_config({**config, "vit": {**config["vit"], "depth": 3}}).visual_encoder.state_dict()
    released |= {"norm.weight": torch.ones(24), "norm.bias": torch.zeros(24), "head.weight": torch.zeros(5, 24)}
    torch.save(released, tmp_path / "eva_vit_g.pth")
    model = load_model_from_config(config)
    report = model.load_checkpoint(tmp_path / "eva_vit_g.pth")
    assert report.layout == "eva" and len(report.ignored) == 3 + sum(name.startswith("blocks.2.") for name in released)
    for name, tensor in model.visual_encoder.state_dict().items():
        assert torch.equal(tensor, released[name]), name
    file_as_vit = {**config, "vit": {**config["vit"], "pretrained": str(tmp_path / "eva_vit_g.pth")}}
    assert "visual_encoder" not in load_model_from_config(file_as_vit).random_parts()


@pytest.mark.parametrize(
    ("wrapper", "prefix"), [("base_model", "module.transformer_q."), ("state_dict", "module.point_encoder.")]
)
def test_point_bert_and_ulip_files(tmp_path: Path, wrapper: str, prefix: str) -> None:
    """Point-BERT's release and ULIP's, the latter beside a text tower."""
    config = tiny.model_config(tmp_path, "regionblip_opt")
    source = load_model_from_config(config).point_encoder
    scatter(source)
    state = {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
    others = {"module.logit_scale": torch.tensor(1.0), "module.transformer.resblocks.0.ln_1.weight": torch.ones(4)}
    heads = {f"{prefix}cls_head.0.weight": torch.zeros(2, 2), f"{prefix}mask_token": torch.zeros(1)}
    torch.save({wrapper: {**others, **state, **heads}, "epoch": 3}, tmp_path / "point.pt")
    model = load_model_from_config(config)
    report = model.load_checkpoint(tmp_path / "point.pt")
    assert report.layout == "point_bert" and set(report.ignored) == {*others, *heads}
    named = {**config, "pointbert": {**config["pointbert"], "pretrained": str(tmp_path / "point.pt")}}
    for found in (model.point_encoder, load_model_from_config(named).point_encoder):
        assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in found.state_dict().items())


def test_a_file_of_another_encoder_is_refused(clip: Any, tmp_path: Path) -> None:
    config = tiny.model_config(tmp_path, "blip2")
    torch.save(load_model_from_config(config).visual_encoder.state_dict(), tmp_path / "eva.pth")
    with pytest.raises(ConfigError, match="eva.pth lacks .* tensors of the ClipViT, the first: norm_pre.weight"):
        load_model_from_config(
            {**clip.cfg, "vit": {**clip.cfg.vit, "depth": 2, "mlp_ratio": 2.0, "pretrained": str(tmp_path / "eva.pth")}}
        )
    torch.save({"point_encoder.cls_pos": torch.zeros(1)}, tmp_path / "point.pth")
    with pytest.raises(ConfigError, match="point.pth holds no visual_encoder; its first keys: point_encoder.cls_pos"):
        load_model_from_config({**config, "vit": {**config["vit"], "pretrained": str(tmp_path / "point.pth")}})
    with pytest.raises(ConfigError, match="model.qformer.input_dim is 24, but the ViT is 48 wide"):
        load_model_from_config({**config, "vit": {**config["vit"], "embed_dim": 48}})
