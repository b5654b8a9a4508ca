"""The paper's ablations as switches of the config: what each changes, and that off changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common.config import ConfigError
from lavis.datasets.cloud_geometry import box_corners
from lavis.models import load_model_from_config
from lavis.models.qformer.lora import ModalityLinear
from tests import tiny

# A ViT and a Point-BERT without blocks: a patch token knows its own pixels, a group token its own points
LOCAL_VIT = {"img_size": 56, "patch_size": 14, "embed_dim": 24, "depth": 0, "num_heads": 2, "vit_precision": "fp32"}
LOCAL_POINTBERT = {"trans_dim": 16, "depth": 0, "num_heads": 2, "group_size": 4, "num_group": 8, "encoder_dims": 16}
REGIONS = ["image_region", "pointcloud_region"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ablations")


def build(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    local = {"vit": LOCAL_VIT, "pointbert": {**LOCAL_POINTBERT, "with_color": True}}
    return load_model_from_config(tiny.model_config(folder, "regionblip_opt", **local, **changes)).eval()


def pictures() -> dict[str, Any]:
    """Two regions on one 4 x 4 grid of patches, on the same picture."""
    return {
        "modality": "image_region",
        "image": torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(3)),
        "image_index": torch.tensor([0, 0]),
        "box": torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.55, 0.3, 0.9, 0.9]]),
        "text_input": tiny.TEXTS[:2],
    }


def clouds() -> dict[str, Any]:
    """Two columns of coloured points, 4 m high, one 10 m above the other; a box stands around each."""
    points = torch.rand(1, 40, 6, generator=torch.Generator().manual_seed(4))
    points[..., 2] *= 4
    points[0, 20:, 2] += 10
    boxes = [box_corners([0.5, 0.5, z, 1.2, 1.2, 4.2]) for z in (2.0, 12.0)]
    return {
        "modality": "pointcloud_region",
        "pointcloud": points,
        "pointcloud_index": torch.tensor([0, 0]),
        "box_corners": torch.stack([torch.tensor(corners) for corners in boxes]),
        "text_input": tiny.TEXTS[:2],
    }


def changed_outside(samples: dict[str, Any]) -> dict[str, Any]:
    """The samples with everything that lies outside the first region changed: pixels, or colours (which move no centre)."""
    if "image" in samples:
        image = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(9))
        image[..., :28, :28] = samples["image"][..., :28, :28]
        return {**samples, "image": image}
    cloud = samples["pointcloud"].clone()
    cloud[0, 20:, 3:] = 1 - cloud[0, 20:, 3:]
    return {**samples, "pointcloud": cloud}


def batch(modality: str) -> dict[str, Any]:
    return pictures() if modality == "image_region" else clouds()


def caption_logits(model: Any, samples: dict[str, Any]) -> torch.Tensor:
    """What the LLM computes in the caption loss [B, L, V]."""
    found: list[torch.Tensor] = []
    hook = model.llm.model.register_forward_hook(lambda module, args, out: found.append(out.logits))
    with torch.no_grad():
        model(samples)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("modality", REGIONS)
@pytest.mark.parametrize("attention", ["all", "region"])
def test_what_lies_outside_is_not_seen_under_the_mask(folder: Path, modality: str, attention: str) -> None:
    model = build(folder, region_attention=attention, lora={"rank": 2})
    here, elsewhere = (caption_logits(model, samples) for samples in (batch(modality), changed_outside(batch(modality))))
    if attention == "region":
        torch.testing.assert_close(here[0], elsewhere[0], atol=1e-6, rtol=0)
    else:
        assert not torch.allclose(here[0], elsewhere[0], atol=1e-4)
    assert not torch.allclose(here[1], elsewhere[1], atol=1e-4), "the second region is what changed"


@pytest.mark.parametrize("modality", REGIONS)
def test_a_region_without_tokens_sees_all(folder: Path, modality: str) -> None:
    samples = batch(modality)
    nowhere = (
        {"box": torch.tensor([[0.5, 0.5, 0.5, 0.5]] * 2)} if "box" in samples else {"box_corners": torch.zeros(2, 8, 3) + 90}
    )
    logits = [caption_logits(build(folder, region_attention=a), {**samples, **nowhere}) for a in ("all", "region")]
    torch.testing.assert_close(*logits, atol=1e-6, rtol=0)


def test_corners_are_read_as_published_unless_the_config_says_plain(folder: Path) -> None:
    samples = clouds()
    published, plain = (build(folder, region_attention="region", corner_axes=axes) for axes in ("published", "plain"))
    with torch.no_grad():
        tokens = published.query_input(published.read(samples)).tokens
        visible = tokens.visible
        assert visible.shape == (2, 9) and visible[:, 0].all()
        assert torch.equal(visible[0, 1:], tokens.positions[0, :, 2] < 7) and torch.equal(visible[1, 1:], ~visible[0, 1:])
        flat = {**samples, "box_corners": samples["box_corners"][..., [0, 2, 1]]}
        assert not torch.equal(plain.query_input(plain.read(samples)).tokens.visible, visible)
        middle = flat["box_corners"].mean(dim=1, keepdim=True)
        flat["box_corners"] = flat["box_corners"] - middle + samples["box_corners"].mean(dim=1, keepdim=True)
        assert torch.equal(plain.query_input(plain.read(flat)).tokens.visible, visible)


@pytest.mark.parametrize("modality", REGIONS)
@pytest.mark.parametrize("switch", [{"region_attention": "region"}, {"region_features": "roi"}])
def test_regions_of_shared_inputs_equal_regions_of_copies(folder: Path, modality: str, switch: dict[str, str]) -> None:
    model = build(folder, **switch)
    for name, parameter in model.named_parameters():
        if ".roi." in name:
            torch.nn.init.normal_(parameter)
    shared = batch(modality)
    key = "image" if "image" in shared else "pointcloud"
    copies = {k: v for k, v in shared.items() if k != f"{key}_index"} | {key: shared[key].expand(2, *shared[key].shape[1:])}
    torch.testing.assert_close(caption_logits(model, shared), caption_logits(model, copies), atol=1e-5, rtol=0)
    assert model.generate(shared, num_beams=2, max_length=5) == model.generate(copies, num_beams=2, max_length=5)


@pytest.mark.parametrize("modality", REGIONS)
def test_region_features_start_silent_and_learn(folder: Path, modality: str) -> None:
    plain, roi = build(folder), build(folder, region_features="roi", enable_aux_regloss=True)
    new = set(roi.state_dict()) - set(plain.state_dict())
    assert new == {f"branches.{name}.region.roi.{kind}" for name in REGIONS for kind in ("weight", "bias")}
    samples = batch(modality)
    assert torch.equal(caption_logits(plain, samples), caption_logits(roi, samples)), "from zero: what was learned stays"
    before = caption_logits(roi, samples)
    optimizer = torch.optim.AdamW([p for name, p in roi.named_parameters() if f"{modality}.region.roi" in name], lr=0.05)
    losses = roi(samples)
    losses.loss.backward()
    layer = roi.branches[modality].region.roi
    assert layer.weight.grad.abs().sum() > 0 and layer.bias.grad.abs().sum() > 0
    optimizer.step()
    after = roi(samples)
    assert after.loss < losses.loss
    assert not torch.allclose(before, caption_logits(roi, samples), atol=1e-4)


def test_region_features_speak_of_the_region_where_its_position_is_withheld(folder: Path) -> None:
    """With no position embedding two boxes on a picture are told apart by their features alone."""
    nothing, features = (build(folder, ablation_no_posembed=True, region_features=kind) for kind in (None, "roi"))
    torch.nn.init.normal_(features.branches["image_region"].region.roi.weight)
    samples = {**pictures(), "text_input": ["a white cube"] * 2}
    assert torch.equal(*caption_logits(nothing, samples))
    assert not torch.allclose(*caption_logits(features, samples), atol=1e-4)


def test_position_and_regression_switches(folder: Path) -> None:
    samples = {**pictures(), "text_input": ["a white cube"] * 2}
    assert not torch.allclose(*caption_logits(build(folder), samples), atol=1e-4)
    weights = {(False, 1.0): 0.0, (True, 1.0): 1.0, (True, 0.25): 0.25, (True, 0.0): 0.0}
    losses = {
        (on, weight): build(folder, enable_aux_regloss=on, aux_regloss_weight=weight)(samples).loss_reg.item()
        for on, weight in weights
    }
    assert losses[True, 1.0] > 0
    for key, weight in weights.items():
        assert losses[key] == pytest.approx(weight * losses[True, 1.0])


@pytest.mark.parametrize("frozen", [True, False])
def test_the_qformer_is_frozen_or_trains(folder: Path, frozen: bool) -> None:
    model = build(folder, freeze_qformer=frozen, llm_dropout=False).train()
    assert model.Qformer.training is not frozen
    base = {name: p for name, p in model.Qformer.named_parameters() if ".lora_" not in name}
    before = {name: p.detach().clone() for name, p in base.items()}
    optimizer = torch.optim.AdamW(model.get_optimizer_params(weight_decay=0.05), lr=1e-2)
    model(pictures()).loss.backward()
    with_gradient = {name for name, p in base.items() if p.grad is not None and p.grad.abs().sum() > 0}
    optimizer.step()
    moved = {name for name, p in base.items() if not torch.equal(p, before[name])}
    if frozen:
        assert not moved and not with_gradient
    else:
        assert with_gradient <= moved and "bert.encoder.layer.0.crossattention.self.key.weight" in with_gradient
        assert set(f"Qformer.{name}" for name in moved) <= set(model.trainable_state_dict())


@pytest.mark.parametrize("own", [True, False])
def test_clouds_read_by_their_own_or_the_shared_qformer(folder: Path, own: bool) -> None:
    model = build(folder, enable_pointcloud_qformer=own)
    model(clouds()).loss.backward()
    touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert ("Qformer_pc" in touched) is own and ("Qformer" in touched) is not own
    adapters = {name for name, p in model.Qformer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert own or (adapters and all(name.endswith(".pointcloud_region") for name in adapters))


def test_rank_and_targets_of_the_adapters(folder: Path) -> None:
    lora = {"rank": 3, "alpha": 6.0, "qformer_targets": "query|key|value", "llm_targets": "fc1|fc2"}
    model = build(folder, lora=lora)
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, ModalityLinear)}
    ends = {name.rsplit(".", 1)[-1] for name in adapted}
    assert ends == {"query", "key", "value", "fc1", "fc2"}
    assert all(module.lora_A["image"].shape[0] == 3 and module.scaling == 2.0 for module in adapted.values())
    model(pictures()).loss.backward()
    for name, module in adapted.items():
        if name.startswith("llm."):
            assert module.lora_B["image_region"].grad.abs().sum() > 0 and module.lora_B["image"].grad is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region_features": "crop"}, "model.region_features is 'crop'; accepted: null, roi"),
        ({"region_attention": "mask"}, "model.region_attention is 'mask'; accepted: all, region"),
        ({"region_attention": None}, "model.region_attention is None; accepted: all, region"),
        ({"corner_axes": "xzy"}, "model.corner_axes is 'xzy'; accepted: published, plain"),
        ({"freeze_qformer": "yes"}, "model.freeze_qformer must be true or false"),
        ({"ablation_no_posembed": 1}, "model.ablation_no_posembed must be true or false"),
        ({"aux_regloss_weight": -1.0}, "model.aux_regloss_weight is -1.0; accepted: numbers from 0"),
        ({"aux_regloss_weight": "much"}, "model.aux_regloss_weight must be"),
        ({"lora": {"rank": "all"}}, "model.lora.rank must be"),
        ({"lora": {"rank": 0}}, "model.lora.rank is 0; accepted: whole numbers from 1"),
        ({"lora": {"qformer_targets": "qery"}}, "matches 'qery'; its linear layers are"),
        (
            {"region_attention": "region", "modalities": {"depth": {"encoder": "pointcloud", "region": "box"}}},
            "modalities.depth: a box does not say which tokens of encoder pointcloud lie in it",
        ),
    ],
)
def test_unknown_values_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=re.escape(message)):
        build(folder, **change)
