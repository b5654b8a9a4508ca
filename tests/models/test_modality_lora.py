"""Adapters: the identity at first, equal to PEFT's, one modality never touching another, right under checkpointing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from lavis.models.qformer.lora import ModalityLinear, ModalityRouter, adapter_parameters, inject_modality_lora
from tests import tiny

IDS = torch.tensor([[2, 9, 11, 13, 15], [2, 8, 10, 12, 14]])


def fill(module: nn.Module, modality: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(module, modality):
        parameter.data.normal_(std=0.5, generator=generator)


def forward(model: nn.Module, kind: str) -> torch.Tensor:
    extra = {"decoder_input_ids": IDS[:, :3]} if kind == "t5" else {}
    return model(input_ids=IDS, **extra).logits


def load(kind: str, folder: Path) -> tuple[nn.Module, str]:
    make = {"opt": tiny.opt_folder, "llama": tiny.llama_folder, "t5": tiny.t5_folder}[kind]
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    return auto.from_pretrained(make(folder / kind)).eval(), "q|v" if kind == "t5" else "q_proj|v_proj"


@pytest.mark.parametrize("kind", ["opt", "llama", "t5"])
def test_zero_b_is_the_identity_and_modalities_are_apart(kind: str, tmp_path: Path) -> None:
    model, targets = load(kind, tmp_path)
    keys = set(model.state_dict())
    before = forward(model, kind)
    router = ModalityRouter(["image", "image_region"])
    swapped = inject_modality_lora(model, router, targets)
    assert swapped and keys <= set(model.state_dict()), "base keys stay as they were"
    with router.route("image"):
        assert torch.equal(forward(model, kind), before)
    fill(model, "image_region", seed=1)
    with router.route("image"):
        assert torch.equal(forward(model, kind), before), "the adapters of another modality have no effect"
    with router.route("image_region"):
        assert not torch.allclose(forward(model, kind), before)


def test_equals_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, targets = load("opt", tmp_path)
    router = ModalityRouter(["image"])
    ours = copy.deepcopy(base)
    inject_modality_lora(ours, router, targets, rank=8, alpha=1)
    fill(ours, "image", seed=3)
    config = peft.LoraConfig(r=8, lora_alpha=1, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, bias="none")
    theirs = peft.get_peft_model(base, config).eval()
    layers = {name: module for name, module in ours.named_modules() if isinstance(module, ModalityLinear)}
    for name, module in theirs.base_model.model.named_modules():
        if name in layers:
            module.lora_A["default"].weight.data.copy_(layers[name].lora_A["image"])
            module.lora_B["default"].weight.data.copy_(layers[name].lora_B["image"])
    with router.route("image"):
        torch.testing.assert_close(forward(ours, "opt"), forward(theirs, "opt"), atol=1e-5, rtol=0)


def test_calls_outside_a_route_and_unknown_names_raise() -> None:
    layer = nn.Sequential(nn.Linear(4, 4))
    router = ModalityRouter(["image"])
    inject_modality_lora(layer, router, "0")
    with pytest.raises(RuntimeError, match="outside a route"):
        layer(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="accepted|adapts image"), router.route("imge"):
        pass
    with pytest.raises(ValueError, match="no linear layer"):
        inject_modality_lora(nn.Sequential(nn.Linear(4, 4)), router, "q_proj")


def test_checkpointing_recomputes_under_the_route_of_the_forward_pass(tmp_path: Path) -> None:
    model, targets = load("opt", tmp_path)
    router = ModalityRouter(["image", "image_region"])
    inject_modality_lora(model, router, targets)
    fill(model, "image_region", seed=1)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        with router.route("image_region"):
            loss = forward(model, "opt").square().mean()
        loss.backward()  # outside the route, in the autograd engine's thread
        return [p.grad.clone() for p in adapter_parameters(model, "image_region")]

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": router.checkpoint_contexts})
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.dropout = 0.0
    for layer in model.model.decoder.layers:
        layer.dropout = 0.0
    model.model.decoder.dropout = 0.0
    for expected, found in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(found, expected)
