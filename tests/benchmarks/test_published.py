"""The published way of computing gives what our model gives, so that a ratio of their times says something."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from benchmarks import sizes
from benchmarks.published.model import Published, PublishedStep
from benchmarks.published.points import farthest_points
from benchmarks.work import one, spread
from lavis.common.seeding import clear_step


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("folders")
    sizes.write_folders(folder, sizes.SMALL)
    return sizes.build_model(folder, sizes.SMALL).eval()


def backward(side: Any, samples: dict[str, Any], parameters: list[torch.nn.Parameter]) -> tuple[dict[str, float], list[Any]]:
    clear_step()  # of a training in another test: hard negatives would be drawn by it, on our side alone
    torch.manual_seed(1)
    losses = side(samples)
    losses["loss"].backward()
    grads = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return {name: float(losses[name].detach()) for name in ("loss", "loss_itc", "loss_lm", "loss_llm")}, grads


@pytest.mark.parametrize("modality", sizes.MODALITIES)
def test_losses_and_gradients(model: Any, modality: str) -> None:
    samples = sizes.batch(modality, sizes.SMALL)
    other = copy.deepcopy(model)
    ours, grads = backward(model, samples, list(model.parameters()))
    theirs, other_grads = backward(Published(other), samples, list(other.parameters()))
    assert ours == pytest.approx(theirs, rel=1e-5)
    largest = max(float(grad.abs().max()) for grad in other_grads if grad is not None)
    for (name, _), grad, expected in zip(model.named_parameters(), grads, other_grads, strict=True):
        assert (grad is None) == (expected is None), name
        if grad is not None:
            torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_a_wrong_adapter_would_show(model: Any) -> None:
    samples, other = sizes.batch("image_region", sizes.SMALL), copy.deepcopy(model)
    with torch.no_grad():
        dict(other.named_parameters())["llm.model.model.decoder.layers.0.self_attn.q_proj.lora_B.image_region"].zero_()
        assert abs(float(model(samples)["loss"]) - float(Published(other)(samples)["loss"])) > 1e-4


def test_shared_pictures_are_copied(model: Any) -> None:
    samples = sizes.batch("image_region", sizes.SMALL, inputs=2)
    copied = spread(samples)
    assert samples["image_index"].tolist() == [0] * 6 + [1] * 2
    assert len(copied["image"]) == 8 and "image_index" not in copied and torch.equal(copied["image"][7], samples["image"][1])
    with torch.no_grad():
        assert float(model(samples)["loss"]) == pytest.approx(float(Published(model)(copied)["loss"]), rel=1e-5)
    assert len(one(copied, 3)["image"]) == 1 and torch.equal(one(copied, 3)["box"][0], copied["box"][3])


@pytest.mark.parametrize("modality", ["image", "pointcloud_region"])
def test_captions(model: Any, modality: str) -> None:
    samples = sizes.batch(modality, sizes.SMALL)
    decoding = {"num_beams": 3, "max_length": 12, "min_length": 4}
    found = Published(model).generate(samples, **decoding)
    assert len(set(found)) > 1 or modality == "image"
    assert found == model.generate(samples, **decoding)


def test_a_step_learns_what_is_not_frozen(model: Any) -> None:
    other = copy.deepcopy(model).train()
    before = {name: parameter.detach().clone() for name, parameter in other.named_parameters()}
    PublishedStep(Published(other))(sizes.batch("pointcloud", sizes.SMALL))
    moved = {name for name, parameter in other.named_parameters() if not torch.equal(parameter, before[name])}
    assert "Qformer_pc.cls.predictions.bias" in moved and "pc_adapter.weight" in moved
    assert all(parameter.requires_grad for name, parameter in other.named_parameters() if name in moved)


def test_sampling_takes_the_farthest() -> None:
    line = torch.tensor([0.0, 1.0, 2.0, 10.0, 4.0])
    points = torch.stack([line, torch.zeros(5), torch.zeros(5)], dim=1)[None]
    assert farthest_points(points, 4, torch.tensor([0])).tolist() == [[0, 3, 4, 2]]
