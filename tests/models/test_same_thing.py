"""Rows of one thing (`positive_key`) are no negatives of each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.models import load_model_from_config
from tests import tiny

KEYS = ["a", "b", "a", "c"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("same_thing")
    return load_model_from_config(tiny.model_config(folder, "regionblip_opt")).eval()


def losses_and_weights(
    model: Any, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[dict[str, float], list[torch.Tensor]]:
    """The losses, and the weights that negatives were drawn with, row by row."""
    drawn: list[torch.Tensor] = []

    def first(weights: torch.Tensor, count: int) -> torch.Tensor:
        drawn.append(weights.clone())
        return weights.argmax(keepdim=True)

    monkeypatch.setattr(torch, "multinomial", first)
    found = model({**tiny.image_batch("image"), **changes})
    return {name: float(value.detach()) for name, value in found.items()}, drawn


def test_itm_never_draws_them_and_itc_leaves_them_out(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, before = losses_and_weights(model, monkeypatch)
    kept, after = losses_and_weights(model, monkeypatch, positive_key=KEYS)
    same = torch.tensor([[a == b for b in KEYS] for a in KEYS])
    assert len(before) == len(after) == 8
    for number, (weights, old) in enumerate(zip(after, before, strict=True)):
        assert torch.equal(weights == 0, same[number % 4]) and (old > 0).sum() == 3
    assert kept["loss_itc"] != plain["loss_itc"] and kept["loss_lm"] == plain["loss_lm"] and kept["loss_llm"] == plain["loss_llm"]
    alone, _ = losses_and_weights(model, monkeypatch, positive_key=list("abcd"))
    assert alone["loss_itm"] == plain["loss_itm"] and alone["loss_itc"] == pytest.approx(plain["loss_itc"], abs=1e-6)


def test_a_batch_of_one_thing_has_no_negatives(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found, drawn = losses_and_weights(model, monkeypatch, positive_key=["a"] * 4)
    assert found["loss_itm"] == 0 and drawn == [] and found["loss_itc"] == pytest.approx(0, abs=1e-6)
    assert found["loss"] > 0
