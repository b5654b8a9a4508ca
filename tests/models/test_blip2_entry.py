"""BLIP-2's query tokens and projections go into the entry of `modalities` that says `blip2: true`, wherever it stands."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common.config import ConfigError
from lavis.models import load_model_from_config
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("entry")


@pytest.fixture(scope="module")
def published(folder: Path) -> dict[str, torch.Tensor]:
    """A BLIP-2 stage-2 file."""
    torch.manual_seed(2)
    blip2 = load_model_from_config(tiny.model_config(folder, "blip2_opt"))
    return blip2.key_map.write(blip2.state_dict(), "blip2")[0]


def built(folder: Path, **modalities: Any) -> Any:
    return load_model_from_config(tiny.model_config(folder, "regionblip_opt", modalities=modalities))


def test_without_such_an_entry_they_are_ignored_and_said(
    folder: Path, published: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    model = built(folder, image=None)
    before = model.branches["image_region"].query_tokens.clone()
    with caplog.at_level(logging.WARNING, "lavis"):
        report = model.load_checkpoint({"model": published})
    assert {"query_tokens", "vision_proj.weight", "opt_proj.weight"} <= set(report.ignored)
    assert "no entry of model.modalities says blip2: true" in caplog.text
    assert torch.equal(model.branches["image_region"].query_tokens, before) and "ln_vision.weight" in report.loaded


def test_the_entry_need_not_be_called_image_nor_stand_first(folder: Path, published: dict[str, torch.Tensor]) -> None:
    whole = {"suffix": "whole", "blip2": True, "losses": {"llm": 1.0}}
    model = built(folder, image=None, whole=whole)
    assert next(iter(model.specs)) != "whole"
    report = model.load_checkpoint({"model": published})
    assert torch.equal(model.branches["whole"].query_tokens, published["query_tokens"])
    assert not {"query_tokens", "opt_proj.weight"} & set(report.ignored)
    back, _ = model.key_map.write(model.state_dict(), "blip2")
    assert torch.equal(back["opt_proj.weight"], published["opt_proj.weight"])
    assert not model.branches["whole"].query_tokens.requires_grad, "freeze_blip2_pretrain freezes this entry"


def test_two_such_entries_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="modalities image and image_region both say blip2: true"):
        built(folder, image_region={"blip2": True})
