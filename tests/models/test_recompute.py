"""Recomputed layers: less is kept, gradients stay what they were."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.models import load_model_from_config
from tests import tiny
from tests.saved import Saved


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recompute")


def build(folder: Path, arch: str, *, vit: dict[str, Any] | None = None, **changes: Any) -> Any:
    config = tiny.model_config(folder, arch, **changes)
    config["vit"] |= vit or {}
    model = load_model_from_config(config)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.train()


def step(model: Any, modality: str) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a batch, and the bytes that were kept for them."""
    torch.manual_seed(11)
    with Saved(model) as saved:
        loss = model(tiny.batch_of(modality, rows=3)).loss
    loss.backward()
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}, saved.bytes


@pytest.mark.parametrize("llm_dropout", [False, True])
@pytest.mark.parametrize("arch", ["regionblip_opt", "regionblip_t5"])
def test_a_recomputed_language_model_learns_the_same_and_keeps_less(folder: Path, arch: str, llm_dropout: bool) -> None:
    """With dropout on, the same numbers are drawn again; with it off the model is in eval mode and recomputed all the same."""
    plain, kept = step(build(folder, arch, llm_dropout=llm_dropout), "image_region")
    model = build(folder, arch, llm_dropout=llm_dropout, llm_grad_checkpoint=True)
    assert model.llm.training == llm_dropout
    found, less = step(model, "image_region")
    assert found.keys() == plain.keys() and any(name.startswith("llm.") for name in found)
    for name, expected in plain.items():
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)
    inside = kept_by_llm(build(folder, arch, llm_dropout=llm_dropout)), kept_by_llm(model)
    assert less < kept and inside[1] < 0.4 * inside[0], (kept, less, inside)


def kept_by_llm(model: Any) -> int:
    """Bytes kept by the language model alone."""
    prefix = torch.randn(4, 8, model.llm.width, requires_grad=True)
    with model.router.route("image"), Saved(model) as saved:
        model.llm.loss(model.llm.caption_prompts(prefix, ""), tiny.TEXTS[:4])
    return saved.bytes


@pytest.mark.parametrize("tower", [{}, {"vit_model": "clip_L", "mlp_ratio": 4.0}])
def test_a_recomputed_vit_learns_the_same_and_keeps_less(folder: Path, tower: dict[str, Any]) -> None:
    plain, kept = step(build(folder, "blip2", freeze_vit=False, vit=tower), "image")
    model = build(folder, "blip2", freeze_vit=False, vit={**tower, "use_grad_checkpoint": True})
    found, less = step(model, "image")
    assert found.keys() == plain.keys() and any(name.startswith("visual_encoder.blocks.") for name in found)
    for name, expected in plain.items():
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)
    assert less < kept
    state = model.state_dict()
    assert state.keys() == build(folder, "blip2", freeze_vit=False, vit=tower).state_dict().keys()


def test_a_frozen_vit_keeps_nothing_either_way(folder: Path) -> None:
    kept = [step(build(folder, "blip2", vit={"use_grad_checkpoint": value}), "image")[1] for value in (False, True)]
    assert kept[0] == kept[1]


def test_texts_stay_and_a_copy_runs_its_own_layers(folder: Path) -> None:
    plain = build(folder, "regionblip_opt").eval()
    model = build(folder, "regionblip_opt", llm_grad_checkpoint=True).eval()
    batch, settings = tiny.image_batch("image"), {"num_beams": 2, "max_length": 8}
    assert model.generate(batch, **settings) == plain.generate(batch, **settings)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.llm.parameters():
            parameter.zero_()
    assert torch.equal(model(batch).loss_llm, plain(batch).loss_llm)
    assert not torch.equal(other(batch).loss_llm, plain(batch).loss_llm)
