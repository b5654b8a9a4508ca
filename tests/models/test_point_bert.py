"""The point encoder: ways to compute it, and what autocast may do to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavis.models import load_model_from_config
from lavis.models.encoders import point_bert
from lavis.models.encoders.point_bert import MiniPointNet, PointBert
from tests import tiny


def with_statistics(module: nn.Module) -> Any:
    """The module in eval mode, with batch norms that have seen something."""
    generator = torch.Generator().manual_seed(0)
    for norm in (part for part in module.modules() if isinstance(part, nn.BatchNorm1d)):
        for tensor, low, high in (
            (norm.running_mean, -1, 1),
            (norm.running_var, 0.5, 2),
            (norm.weight, -2, 2),
            (norm.bias, -1, 1),
        ):
            nn.init.uniform_(tensor, low, high, generator=generator)
    return module.eval()


@pytest.mark.parametrize("at_once", [1, 20, 2048])
def test_multiplied_out_is_layer_by_layer(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(point_bert, "POINTS_AT_ONCE", at_once)
    torch.manual_seed(0)
    net = with_statistics(MiniPointNet(6, 16))
    groups = torch.randn(2, 7, 8, 6)
    with torch.no_grad():
        fast = net(groups)
    slow = net(groups)
    assert slow.requires_grad and not fast.requires_grad and fast.shape == (2, 7, 16)
    torch.testing.assert_close(fast, slow.detach(), atol=1e-5, rtol=1e-5)
    statistics = net.first_conv[1].running_mean.clone()
    with torch.no_grad():
        net.train()(groups)
    assert not torch.equal(net.first_conv[1].running_mean, statistics), "in training it is the batch that counts"


def test_attention_is_the_fused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(query.shape)
        return fused(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    sizes = {"trans_dim": 16, "depth": 3, "num_heads": 2, "group_size": 4, "num_group": 8, "encoder_dims": 16}
    PointBert(**sizes).eval()(torch.randn(2, 40, 3))
    assert calls == [(2, 2, 9, 8)] * 3


def test_only_coordinates_are_kept_from_autocast(tmp_path: Path) -> None:
    cloud = torch.randn(2, 40, 3) + 100  # metres from the origin, where bfloat16 has steps of half a metre
    tokens, centres = {}, {}
    positions: list[torch.dtype] = []
    for name, changes in {"low": {}, "full": {"autocast": False}, "trained": None}.items():
        config = tiny.model_config(tmp_path, "regionblip_opt", freeze_point_encoder=changes is not None)
        config["pointbert"] |= changes or {}
        torch.manual_seed(0)
        model = load_model_from_config(config)
        with_statistics(model.point_encoder)
        seen: list[torch.dtype] = []
        model.point_encoder.blocks.blocks[0].mlp.fc1.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out.dtype))
        model.point_encoder.pos_embed.register_forward_hook(lambda _, args, out: positions.append(out.dtype))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            centres[name] = model.eval().encoders["pointcloud"].compute(cloud).centres
        assert seen == [torch.bfloat16 if name == "low" else torch.float32], name
        with torch.no_grad():
            exact = model.point_encoder(cloud)
            with torch.autocast("cpu", torch.bfloat16):
                tokens[name] = model.point_encoder(cloud)
        assert tokens[name].dtype == torch.float32
        torch.testing.assert_close(tokens[name], exact, atol=0.05, rtol=0)
        assert not torch.equal(tokens[name], exact)
    assert set(positions) == {torch.float32}
    assert torch.equal(centres["low"], centres["full"]) and centres["low"].dtype == torch.float32
