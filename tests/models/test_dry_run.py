"""A dry run on the meta device says what a real step does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common.config import merge_model_config
from lavis.models import load_model_from_config
from lavis.models.dry_run import build_on_meta, dry_run, example_batch
from tests import tiny
from tests.saved import Saved

ROWS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dry")


def real_step(model: Any, modality: str) -> tuple[set[str], int]:
    """What got a gradient and how much was kept, in a step with numbers on the shapes of `example_batch`."""
    batch = {
        key: torch.rand(value.shape) if isinstance(value, torch.Tensor) else value
        for key, value in example_batch(model, modality, ROWS).items()
    }
    model.zero_grad()
    with Saved(model) as saved:
        loss = model(batch).loss
    loss.backward()
    return {name for name, param in model.named_parameters() if param.grad is not None}, saved.bytes


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("blip2", {}),
        ("blip2_t5", {"llm_dropout": False}),
        ("regionblip_opt", {"enable_aux_regloss": True}),
        ("regionblip_opt", {"llm_grad_checkpoint": True}),
        ("regionblip_t5", {"enable_aux_regloss": True, "llm_grad_checkpoint": True, "llm_dropout": False}),
    ],
)
def test_what_learns_and_what_is_kept(folder: Path, arch: str, changes: dict[str, Any]) -> None:
    """The names are exactly those of a real step, the bytes almost: kernels of the CPU keep sums of their own."""
    config = tiny.model_config(folder, arch, **changes)
    real, dry = load_model_from_config(config).train(), build_on_meta(merge_model_config(config), device="cuda")[0]
    dry = dry.float()  # the real one computes in float32, being on the CPU
    assert {tensor.device.type for tensor in dry.state_dict().values()} == {"meta"}
    for modality in real.specs:
        names, kept = real_step(real, modality)
        found = dry_run(dry, modality, rows=ROWS)
        assert found.with_gradient == names, modality
        assert found.kept == pytest.approx(kept, rel=0.1), modality
    assert all(param.grad is None for param in dry.parameters())


def test_the_share_that_autocast_saves_is_real(folder: Path) -> None:
    """Against torch's own autocast, on the CPU: its lists of operations are almost those of CUDA."""
    config = tiny.model_config(folder, "regionblip_opt")
    real, dry = load_model_from_config(config).train(), build_on_meta(merge_model_config(config), device="cpu")[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, kept = real_step(real, "image_region")
    assert dry_run(dry, "image_region", rows=ROWS, dtype=torch.bfloat16).kept == pytest.approx(kept, rel=0.25)
