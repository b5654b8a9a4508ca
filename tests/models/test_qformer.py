"""The Q-Former's layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from lavis.models import load_model_from_config
from lavis.models.qformer.qformer import KeyLinear, QFormer
from lavis.models.qformer.tokens import QFormerInput, Tokens
from tests import tiny


def small() -> QFormer:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return QFormer(config, encoder_width=8).eval()


def test_biases_of_keys_have_no_effect_and_a_gradient_of_zero() -> None:
    """In every pass, over cached keys too; with a plain layer the gradient is a rounding error."""
    qformer = small()
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]])
    mask = (ids > 0).long()
    queries, tokens = torch.randn(2, 3, 16), Tokens(torch.randn(2, 5, 8))

    def outputs() -> list[torch.Tensor]:
        hidden, cache = qformer.query_pass(QFormerInput(queries, queries.shape[1], tokens))
        passes = (qformer.text_pass(ids, mask), qformer.lm_pass(ids, mask, cache), qformer.joint_pass(queries, ids, mask, tokens))
        return [hidden, *passes]

    before = outputs()
    sum(out.square().sum() for out in before).backward()
    biases = {name: p for name, p in qformer.named_parameters() if name.endswith(".key.bias")}
    assert len(biases) == 3 and all(p.grad is not None and not p.grad.any() for p in biases.values())
    others = [p.grad for name, p in qformer.named_parameters() if name.endswith((".query.bias", ".value.bias", ".key.weight"))]
    assert all(grad is not None and grad.any() for grad in others)
    with torch.no_grad():
        for bias in biases.values():
            bias.normal_()
    for old, new in zip(before, outputs(), strict=True):
        torch.testing.assert_close(old, new, atol=1e-5, rtol=1e-5)


def test_keys_are_those_of_a_linear_layer() -> None:
    layer, x = KeyLinear(4, 6), torch.randn(3, 4)
    torch.nn.init.normal_(layer.bias)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("wanted", [("text", "decoder"), ("text",)])
def test_passes_at_once_are_the_passes(wanted: tuple[str, ...], limited: bool) -> None:
    """Outputs and gradients, with padded texts, rows that share an input, and queries that may not see all of it."""
    qformer = small().double()
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0], [8, 9, 0, 0]])
    mask, decoder = (ids > 0).long(), torch.cat([torch.full((3, 1), 19), ids[:, 1:]], dim=1)
    queries = torch.randn(3, 3, 16, dtype=torch.double, requires_grad=True)
    seen = torch.rand(3, 5) < 0.6 if limited else None
    tokens = Tokens(torch.randn(2, 5, 8, dtype=torch.double), torch.tensor([0, 0, 1]), visible=seen)

    hidden, cache = qformer.query_pass(QFormerInput(queries, queries.shape[1], tokens))
    apart = {"text": qformer.text_pass(ids, mask), "decoder": qformer.lm_pass(decoder, mask, cache)}
    outputs = qformer.passes_at_once(queries, tokens, mask, text=ids, decoder=decoder if "decoder" in wanted else None)
    found = dict(zip(("hidden", "text", "decoder"), outputs, strict=True))
    expected = {"hidden": hidden} | {name: apart[name] if name in wanted else None for name in apart}
    assert {name for name, value in found.items() if value is None} == {n for n, value in expected.items() if value is None}

    def gradients(outputs: dict[str, torch.Tensor | None]) -> list[torch.Tensor | None]:
        total = sum((k + 1) * out.pow(3).sum() for k, out in enumerate(outputs.values()) if out is not None)
        return list(torch.autograd.grad(total, [queries, *qformer.parameters()], allow_unused=True))

    for name, value in expected.items():
        if value is not None:
            torch.testing.assert_close(found[name], value, msg=name)
    for ours, theirs in zip(gradients(found), gradients(expected), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("losses", "idle"),
    [
        ({"itc": 1, "itm": 1, "lm": 1}, []),
        ({"itc": 0, "itm": 0, "lm": 1}, ["output_query", "text_proj"]),
        ({"itc": 0, "itm": 1, "lm": 0}, ["cls.", "text_proj"]),
    ],
)
def test_parameters_that_no_loss_reaches_have_no_gradient(tmp_path: Path, losses: dict[str, int], idle: list[str]) -> None:
    """AdamW leaves those alone; a gradient of zero would let it shrink them."""
    model = load_model_from_config(tiny.model_config(tmp_path, "blip2", modalities={"image": {"losses": losses}})).train()
    model(tiny.image_batch(rows=4)).loss.backward()
    last = f"layer.{len(model.Qformer.bert.encoder.layer) - 1}."
    without = [name for name, param in model.named_parameters() if param.requires_grad and param.grad is None]
    for part in ("output_query", "cls.", "text_proj"):
        assert any(part in name and (last in name or "layer." not in name) for name in without) == (part in idle), part
