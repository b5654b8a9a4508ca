"""Samples that hold what the encoders gave earlier, in place of pictures and clouds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.models import load_model_from_config
from tests import tiny

MODALITIES = ["image", "image_region", "pointcloud", "pointcloud_region"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def encoded(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with features in place of its inputs."""
    rest = dict(batch)
    if "image" in rest:
        return {**rest, "image_features": model.encoders["image"].compute(rest.pop("image"))}
    found = model.encoders["pointcloud"].compute(rest.pop("pointcloud"))
    return {**rest, "pointcloud_features": found.embeds, "pointcloud_centres": found.centres}


def built(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    return load_model_from_config(tiny.model_config(folder, "regionblip_opt", **changes)).eval()


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("switches", [{}, {"region_features": "roi"}, {"region_attention": "region"}], ids=str)
def test_features_stand_for_the_inputs(modality: str, switches: dict[str, Any], folder: Path) -> None:
    model, batch = built(folder, **switches), tiny.batch_of(modality)
    with_features = encoded(model, batch)
    for encoder in ("visual_encoder", "point_encoder"):
        getattr(model, encoder).forward = None  # an encoder that is called would fail
    losses = model(with_features)
    fresh = built(folder, **switches)(batch)
    for name, value in fresh.items():
        assert torch.equal(losses[name], value), name


def test_rows_share_features(folder: Path) -> None:
    model, batch = built(folder), tiny.batch_of("image_region")
    shared = {**batch, "image": batch["image"][:2], "image_index": torch.tensor([0, 1, 0, 1])}
    decoding = {"num_beams": 2, "max_length": 6}
    assert model.generate(encoded(model, shared), **decoding) == model.generate(shared, **decoding)


def test_neither_input_nor_features_is_refused(folder: Path) -> None:
    batch = tiny.batch_of("image")
    del batch["image"]
    with pytest.raises(ValueError, match="needs samples\\['image'\\]"):
        built(folder)(batch)
