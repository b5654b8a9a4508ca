"""Frozen linear layers over packed weights: the same numbers, and never those of weights that are gone."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lavis.common import packed
from lavis.common.errors import ConfigError
from lavis.common.packed import Packed, PackedLinear, can_pack, check_limit, frozen_linear, pack_frozen_linear, unpack
from lavis.models import load_model_from_config
from lavis.models.qformer.lora import ModalityLinear
from tests import tiny

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
packs = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch has no oneDNN linear layers")


def frozen(rows_out: int = 24, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(16, rows_out, bias=bias).to(dtype).requires_grad_(False)


def packed_layers(module: nn.Module) -> list[Any]:
    return [layer for layer in module.modules() if isinstance(getattr(layer, "packed", None), Packed)]


@packs
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 16), (5, 16), (8, 5, 16), (20, 30, 16), (0, 16)])
def test_the_product_is_that_of_torch(dtype: torch.dtype, bias: bool, shape: tuple[int, ...]) -> None:
    if not can_pack(dtype):
        pytest.skip(f"this processor does not compute in {dtype}")
    plain = frozen(bias=bias, dtype=dtype)
    layer, x = PackedLinear(plain), torch.randn(*shape, dtype=dtype)
    with torch.no_grad():
        out = layer(x)
    torch.testing.assert_close(out, plain(x), atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])
    rows = x.numel() // 16
    assert layer.packed is not None
    assert (layer.packed._made is not None) == (rows >= 4 and (rows < 256 or dtype != torch.float32))


@packs
def test_gradients_come_from_torch() -> None:
    layer, x = PackedLinear(frozen()), torch.randn(8, 16, requires_grad=True)
    layer(x).square().sum().backward()
    expected = torch.autograd.grad(F.linear(x, layer.weight, layer.bias).square().sum(), x)[0]
    assert x.grad is not None and torch.equal(x.grad, expected)
    assert layer.packed is not None and layer.packed._made is None


@packs
@torch.no_grad()
def test_changed_weights_are_seen() -> None:
    layer, x = PackedLinear(frozen()), torch.randn(8, 16)
    changes: list[Any] = [
        lambda: layer.weight.mul_(2),
        lambda: layer.load_state_dict({"weight": torch.ones(24, 16), "bias": torch.zeros(24)}),
        lambda: setattr(layer.weight, "data", torch.randn(24, 16)),
        lambda: layer.bfloat16().float().half().float(),  # the last may get the memory of the first
        lambda: setattr(layer, "weight", nn.Parameter(torch.randn(24, 16), requires_grad=False)),
    ]
    before = layer(x)
    for change in changes:
        change()
        after = layer(x)
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)
        before = after


@packs
@torch.no_grad()
def test_autocast_and_other_types_are_as_ever() -> None:
    layer, x = PackedLinear(frozen()), torch.randn(8, 16)
    with pytest.raises(RuntimeError, match="dtype|type"):
        layer(x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):  # weights in float32 are converted at every use
        assert layer(x).dtype == torch.bfloat16
    if can_pack(torch.bfloat16):
        low = PackedLinear(frozen(dtype=torch.bfloat16))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(low(x), F.linear(x, low.weight, low.bias), atol=2e-2, rtol=2e-2)
        assert low.packed is not None and low.packed._made is not None


@packs
def test_only_frozen_weights_up_to_the_bound() -> None:
    model = nn.Sequential(frozen(), nn.Linear(24, 24), nn.Sequential(frozen(24), frozen(8)))
    keys, size = list(model.state_dict()), 24 * 16 * 4
    assert pack_frozen_linear([copy.deepcopy(model)], dtype=torch.float32, limit_gb=0) == 0
    assert pack_frozen_linear([model], dtype=torch.float32, limit_gb=2 * size / 1e9) == 2 * size
    assert [type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)] == [
        PackedLinear, nn.Linear, PackedLinear, nn.Linear,
    ]  # fmt: skip
    assert list(model.state_dict()) == keys
    unpack([model])
    assert packed_layers(model) == []


@pytest.mark.parametrize("limit", [-1, float("nan"), "1", None, True])
def test_a_bound_is_a_number(limit: Any) -> None:
    with pytest.raises(ConfigError, match="model.packed_gb is .*; accepted: numbers from 0"):
        check_limit(limit)


@packs
@torch.no_grad()
def test_a_new_parameter_in_the_same_memory_is_another_weight() -> None:
    layer, x = PackedLinear(frozen()), torch.randn(8, 16)
    layer.weight.mul_(2)
    layer(x)
    layer.weight = nn.Parameter(layer.weight.data, requires_grad=False)
    layer.weight.fill_(1.0)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


@packs
def test_other_types_and_inference_tensors_go_to_torch() -> None:
    x = torch.randn(8, 16)
    with torch.no_grad():
        for layer, rows in ((PackedLinear(frozen()).double(), x.double()), (PackedLinear(frozen()).half(), x.half())):
            assert torch.equal(layer(rows), F.linear(rows, layer.weight, layer.bias))
    with torch.inference_mode():
        made = PackedLinear(nn.Linear(16, 24).requires_grad_(False))
        assert torch.equal(made(x), F.linear(x, made.weight, made.bias))
    model = nn.Sequential(frozen(), frozen(16, dtype=torch.bfloat16))
    assert pack_frozen_linear([model], dtype=torch.float32, limit_gb=1) == 24 * 16 * 4  # the other would never be used


@packs
def test_copies_start_empty() -> None:
    layer, x = PackedLinear(frozen()), torch.randn(8, 16)
    with torch.no_grad():
        expected = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert layer.packed is not None and layer.packed._made is not None and other.packed._made is None
            assert torch.equal(other(x), expected)


@packs
@pytest.mark.parametrize("arch", ["regionblip_opt", "regionblip_t5"])
def test_a_model_says_the_same(tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_model_from_config(tiny.model_config(tmp_path, arch, packed_gb=0)).eval()
    model = load_model_from_config(tiny.model_config(tmp_path, arch)).eval()
    model.load_state_dict(plain.state_dict())
    assert packed_layers(plain) == [] and model.llm is not None
    layers = packed_layers(model)
    assert layers == packed_layers(model.llm) and {type(layer) for layer in layers} == {PackedLinear, ModalityLinear}
    for modality in ("image_region", "pointcloud"):
        batch = tiny.batch_of(modality, rows=3)
        settings = {"num_beams": 3, "max_length": 9, "min_length": 3}
        assert model.generate(batch, **settings) == plain.generate(batch, **settings)
    assert any(layer.packed._made is not None for layer in layers)


def test_a_torch_without_the_operations_computes_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "can_pack", lambda dtype: False)
    model = nn.Sequential(frozen())
    assert pack_frozen_linear([model], dtype=torch.float32, limit_gb=1) == 0 and type(model[0]) is nn.Linear
    x = torch.randn(8, 16)
    assert torch.equal(frozen_linear(x, model[0].weight, model[0].bias, None), model(x))
