"""Several batches per update, and which losses then learn as from one larger batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lavis.models import load_model_from_config
from lavis.runners.step import TrainStep
from tests import tiny

EVEN = ["a red square", "a blue circle on the table", "a red square", "a blue circle on the table"]
UNEVEN = ["a red square", "a lamp", "a blue circle on the right side of the table", "two green triangles and a small lamp"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tiny")
    model = load_model_from_config(tiny.model_config(folder, "regionblip_opt", enable_aux_regloss=True))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if (parameter.ndim > 1 and not name.startswith("llm.")) or ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def part(batch: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {key: value if isinstance(value, str) else value[rows] for key, value in batch.items()}


def gradient(model: Any, name: str, batches: list[dict[str, Any]]) -> torch.Tensor:
    """The gradient that one update of `batches` would follow, of the loss `name` alone."""
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.0)
    found: list[torch.Tensor] = []
    optimizer.register_step_pre_hook(
        lambda *_: found.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params]))
    )
    settings = SimpleNamespace(seed=1, amp=False, amp_dtype=None, grad_clip_norm=None)
    step = TrainStep(optimizer, run_cfg=settings, device=torch.device("cpu"))
    for number, batch in enumerate(batches):
        last = number + 1 == len(batches)
        step(lambda batch=batch: {"loss": model(batch)[name]}, step=number, window=len(batches), update=last)
    return found[0]


def equals_the_larger_batch(model: Any, name: str, modality: str, texts: list[str], *, first: int) -> bool:
    batch = {**tiny.batch_of(modality), "text_input": texts}
    parts = [part(batch, slice(0, first)), part(batch, slice(first, 4))]
    whole, together = gradient(model, name, [batch]), gradient(model, name, parts)
    assert whole.abs().max() > 1e-4
    return bool((whole - together).abs().max() < 1e-5 * whole.abs().max())


@pytest.mark.parametrize("modality", ["image_region", "pointcloud_region"])
def test_region_loss_is_that_of_the_larger_batch_where_batches_are_equal(model: Any, modality: str) -> None:
    assert equals_the_larger_batch(model, "loss_reg", modality, UNEVEN, first=2)
    assert not equals_the_larger_batch(model, "loss_reg", modality, UNEVEN, first=1)


@pytest.mark.parametrize("name", ["loss_lm", "loss_llm"])
def test_token_losses_are_those_of_the_larger_batch_where_tokens_are_equally_many(model: Any, name: str) -> None:
    assert equals_the_larger_batch(model, name, "image_region", EVEN, first=2)
    assert not equals_the_larger_batch(model, name, "image_region", UNEVEN, first=2)


@pytest.mark.parametrize("name", ["loss_itc", "loss_itm"])
def test_losses_that_compare_rows_are_of_one_batch(model: Any, name: str) -> None:
    assert not equals_the_larger_batch(model, name, "image", EVEN, first=2)
