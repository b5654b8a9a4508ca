"""RegionBLIP and BLIP-2 on tiny random models: what is frozen, what a batch may look like, what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lavis.common.config import ConfigError
from lavis.models import load_model_from_config, load_preprocess, model_zoo
from tests import tiny

VIT = {"img_size": 28, "patch_size": 14, "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
MODALITIES = ["image", "image_region", "pointcloud", "pointcloud_region"]
ARCHS = ["blip2", "blip2_opt", "blip2_t5", "regionblip_opt", "regionblip_t5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def regionblip(folder: Path) -> Any:
    torch.manual_seed(0)
    return load_model_from_config(tiny.model_config(folder, "regionblip_opt", enable_aux_regloss=True))


@pytest.mark.parametrize("arch", ARCHS)
def test_every_arch_learns_and_captions(arch: str, folder: Path) -> None:
    torch.manual_seed(0)
    model = load_model_from_config(tiny.model_config(folder, arch))
    batch = tiny.image_batch("image_region" if "image_region" in model.specs else "image")
    optimizer = torch.optim.AdamW(model.get_optimizer_params(weight_decay=0.05), lr=3e-3)
    first = model.eval()(batch).loss.item()  # without dropout, which hides a small step
    model.train()
    for _ in range(8):
        losses = model(batch)
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
    assert model.eval()(batch).loss.item() < first
    captions = model.eval().generate({k: v for k, v in batch.items() if k != "text_input"}, num_beams=2, max_length=6)
    assert len(captions) == 4 and all(isinstance(caption, str) for caption in captions)


def test_losses_that_do_not_apply_are_zero(regionblip: Any) -> None:
    image, region = regionblip(tiny.image_batch()), regionblip(tiny.image_batch("image_region"))
    assert set(image) == {"loss", "loss_itc", "loss_itm", "loss_lm", "loss_llm", "loss_reg"}
    assert image.loss_reg == 0 and image.loss_itm > 0
    assert region.loss_itm == 0 and region.loss_reg > 0
    for losses in (image, region):
        assert all(value.dim() == 0 for value in losses.values())
        parts = [value for name, value in losses.items() if name != "loss"]
        torch.testing.assert_close(losses.loss, torch.stack(parts).sum())


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_batch_of_one(regionblip: Any, modality: str) -> None:
    losses = regionblip.train()(tiny.batch_of(modality, rows=1))
    losses.loss.backward()
    assert torch.isfinite(losses.loss)
    assert len(regionblip.eval().generate(tiny.batch_of(modality, rows=1), num_beams=3, max_length=5)) == 1


def test_freezing_as_published(regionblip: Any) -> None:
    trainable = {name for name, p in regionblip.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("visual_encoder", "ln_vision")) for name in trainable)
    assert not any(name.startswith(("Qformer.", "llm.", "point_encoder.")) and ".lora_" not in name for name in trainable)
    assert not any(name.endswith((".lora_A.image", ".lora_B.image")) and "Qformer_pc" not in name for name in trainable)
    assert all(p.requires_grad for p in regionblip.Qformer_pc.parameters()), "published: adapters of other modalities too"
    assert "branches.image.query_tokens" not in trainable and "branches.image.itc_proj.weight" in trainable
    assert "branches.image.llm_proj.weight" not in trainable
    assert {"branches.image_region.query_tokens", "temp", "itm_head.weight", "text_proj.weight"} <= trainable
    regionblip.train()
    assert not regionblip.Qformer.training and not regionblip.visual_encoder.training
    assert not regionblip.point_encoder.training
    assert regionblip.llm.training and regionblip.Qformer_pc.training, "published: these two keep their dropout"


def test_dropout_is_a_switch(folder: Path) -> None:
    switches = {"llm_dropout": False, "qformer_pc_dropout": False}
    model = load_model_from_config(tiny.model_config(folder, "regionblip_opt", **switches)).train()
    assert not any(module.training for part in (model.llm, model.Qformer_pc) for module in part.modules())
    assert all(p.requires_grad for p in model.Qformer_pc.parameters())


def test_region_training_leaves_image_captions_alone(folder: Path) -> None:
    torch.manual_seed(1)
    model = load_model_from_config(tiny.model_config(folder, "regionblip_opt"))
    picture = {"image": tiny.image_batch()["image"], "modality": "image"}
    before = model.eval().generate(picture, num_beams=3, max_length=10)
    optimizer = torch.optim.AdamW(model.get_optimizer_params(weight_decay=0.05), lr=1e-2)
    region = tiny.image_batch("image_region")
    told_before = model.generate(region, num_beams=3, max_length=10)
    for _ in range(5):
        optimizer.zero_grad()
        model.train()(region).loss.backward()
        optimizer.step()
    assert model.eval().generate(picture, num_beams=3, max_length=10) == before
    assert model.generate(region, num_beams=3, max_length=10) != told_before, "the regions did learn"


def test_images_shared_by_regions_are_encoded_once(regionblip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    regionblip.eval()
    region = tiny.image_batch("image_region")
    index = torch.tensor([0, 0, 1, 1])
    copies = {**region, "image": region["image"][index]}
    shared = {**region, "image": region["image"][:2], "image_index": index}
    seen: list[int] = []
    encode = regionblip.visual_encoder.forward
    monkeypatch.setattr(regionblip.visual_encoder, "forward", lambda image: (seen.append(len(image)), encode(image))[1])
    together, apart = regionblip(shared), regionblip(copies)
    assert seen == [2, 4]
    for name in together:
        torch.testing.assert_close(together[name], apart[name], atol=1e-5, rtol=1e-5)


def test_describe_captions_pixel_boxes_with_one_encoder_pass(regionblip: Any) -> None:
    picture = Image.new("RGB", (100, 50), (200, 30, 30))
    boxes = [[10, 5, 60, 40], [0, 0, 100, 50], [30.7, 20.2, 90, 49]]
    texts = regionblip.describe(picture, boxes=boxes, num_beams=2, max_length=6)
    assert len(texts) == 3
    assert regionblip.describe(picture, boxes=[boxes[1]], num_beams=2, max_length=6) == [texts[1]]
    assert len(regionblip.describe(picture, num_beams=2, max_length=6)) == 1
    assert regionblip.describe(picture, boxes=[]) == []
    with pytest.raises(ValueError, match="no area"):
        regionblip.describe(picture, boxes=[[10, 10, 10.5, 40]])


def test_features(regionblip: Any) -> None:
    batch = tiny.image_batch("image_region")
    image = regionblip.extract_features(batch, mode="image")
    assert image.image_embeds.shape == (4, 4, 32) and image.image_embeds_proj.shape == (4, 4, 16)
    torch.testing.assert_close(image.image_embeds_proj.norm(dim=-1), torch.ones(4, 4))
    assert image.text_embeds is None and image.multimodal_embeds is None
    text = regionblip.extract_features({"text_input": batch["text_input"], "modality": "image"}, mode="text")
    assert text.text_embeds_proj.shape[-1] == 16 and text.image_embeds is None
    assert regionblip.extract_features(batch).multimodal_embeds.shape == (4, 4, 32)
    with pytest.raises(ValueError, match="accepted: multimodal, image, text"):
        regionblip.extract_features(batch, mode="vision")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "imge"}, "this model knows image, image_region, pointcloud"),
        ({"box": None}, "needs samples\\['box'\\]"),
        ({"box": torch.tensor([[10.0, 20.0, 30.0, 40.0]] * 4)}, "must lie in \\[0, 1\\]"),
        ({"image": None}, "needs samples\\['image'\\]"),
        ({"image": torch.zeros(4, 3, 30, 30)}, "built for \\[B, 3, 28, 28\\]"),
        ({"text_input": ["a"]}, "1 texts for 4 rows"),
        ({"text_input": None}, "needs samples\\['text_input'\\]"),
    ],
)
def test_bad_samples_are_named(regionblip: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regionblip({**tiny.image_batch("image_region"), **change})


def test_checkpoints_hold_what_is_trained_and_load_back(regionblip: Any, folder: Path) -> None:
    state = regionblip.trainable_state_dict()
    assert set(state) == {name for name, p in regionblip.named_parameters() if p.requires_grad}
    torch.manual_seed(5)
    other = load_model_from_config(tiny.model_config(folder, "regionblip_opt", enable_aux_regloss=True))
    report = other.load_checkpoint({"model": state})
    assert report.layout == "lavis" and not report.ignored and set(report.loaded) == set(state)
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in state.items())
    assert report.missing["visual_encoder.cls_token"] == "frozen, as initialised"
    assert report.missing["llm.model.model.decoder.embed_tokens.weight"] == "loaded before, from a file of its own"
    assert report.missing["Qformer.bert.encoder.layer.0.attention.self.query.lora_A.image"] == "adapters as initialised"


def test_blip2_weights_load_into_the_image_branch(folder: Path) -> None:
    torch.manual_seed(2)
    blip2 = load_model_from_config(tiny.model_config(folder, "blip2_opt"))
    published = {blip2.key_map.from_lavis(name, "blip2"): tensor for name, tensor in blip2.state_dict().items()}
    assert {"query_tokens", "opt_proj.weight", "ln_vision.weight"} <= set(published)
    path = folder / "blip2.pth"
    torch.save({"model": published}, path)
    model = load_model_from_config(
        tiny.model_config(folder, "regionblip_opt", load_blip2_pretrain=True, blip2_pretrain=str(path), regions_from_image=True)
    )
    picture = {"image": tiny.image_batch()["image"], "modality": "image"}
    assert model.eval().generate(picture, max_length=12) == blip2.eval().generate(picture, max_length=12)
    assert torch.equal(model.branches["image_region"].query_tokens, blip2.branches["image"].query_tokens)
    assert model.random_parts() == ["Qformer_pc", "point_encoder"], "the file held every part of BLIP-2, the ViT too"


def test_random_parts_are_named(regionblip: Any) -> None:
    assert {"visual_encoder", "ln_vision", "Qformer", "branches.image"} <= set(regionblip.random_parts())
    assert "llm" not in regionblip.random_parts()


def test_a_checkpoint_of_another_size_is_refused(regionblip: Any, folder: Path) -> None:
    other = load_model_from_config(tiny.model_config(folder, "regionblip_opt", qformer={"input_dim": 24, "num_query_token": 6}))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"query_tokens: \(1, 4, 32\) in the file, \(1, 6, 32\) in the model"):
        other.load_checkpoint({"model": regionblip.trainable_state_dict()})
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    with pytest.raises(ValueError, match="no known checkpoint layout"):
        other.load_checkpoint({"model": {"something.weight": torch.zeros(2)}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_beams": 5}, "Unknown key 'model.num_beams'"),
        ({"arch": "regionblip_optt"}, "regionblip_opt"),
        ({"bert_path": "/no/such/folder"}, "holds no BERT"),
        ({"vit": {"vit_model": "eva2_clip_L"}}, "accepted: eva_clip_g"),
        ({"vit": {"vit_precision": "int8"}}, "accepted: fp32"),
        ({"modalities": {"image": {"losses": {"itx": 1.0}}}}, "itx"),
        ({"load_finetuned": True}, "finetuned names no file"),
    ],
)
def test_bad_configs_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        load_model_from_config({**tiny.model_config(folder, "regionblip_opt"), **change})


def test_a_missing_llm_folder_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="no language model at '/no/such/llm'"):
        load_model_from_config(tiny.model_config(folder, "regionblip_opt", opt_model="/no/such/llm"))


def test_t5_in_half_precision_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="T5 overflows in float16"):
        load_model_from_config(tiny.model_config(folder, "regionblip_t5", t5_precision="fp16"))


def test_a_llama_serves_as_the_llm(folder: Path) -> None:
    llama = tiny.llama_folder(folder / "llama")
    model = load_model_from_config(tiny.model_config(folder, "regionblip_opt", opt_model=llama))
    batch = tiny.image_batch("image_region")
    model(batch).loss.backward()
    assert len(model.eval().generate(batch, num_beams=3, max_length=6)) == 4
    assert len(model.predict_answers({**batch, "modality": "image"}, prompt="question: {} short answer:", num_beams=2)) == 4


def test_a_further_modality_is_one_more_row(folder: Path) -> None:
    row = {"suffix": "thermal", "region": "box", "losses": {"llm": 1.0}}
    model = load_model_from_config(tiny.model_config(folder, "regionblip_opt", modalities={"thermal": row}))
    losses = model({**tiny.image_batch("image_region"), "modality": "thermal"})
    assert losses.loss_llm > 0 and losses.loss_itc == 0
    assert "lora_A.thermal" in " ".join(model.state_dict())


def test_zoo_and_preprocess() -> None:
    table = dict(model_zoo)
    assert set(ARCHS) <= set(table) and len(model_zoo) == sum(len(types) for types in table.values())
    assert "Architectures" in str(model_zoo)
    visual, text = load_preprocess({"vis_processor": {"eval": {"name": "blip_image_eval", "image_size": 28}}})
    assert visual["eval"](Image.new("RGB", (9, 9))).shape == (3, 28, 28) and text["train"]("A b") == "A b"


def test_clouds_learn_and_share_an_encoder_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = load_model_from_config(tiny.model_config(folder, "regionblip_opt", enable_aux_regloss=True)).eval()
    region, index = tiny.cloud_batch("pointcloud_region"), torch.tensor([0, 0, 1, 1])
    copies = {**region, "pointcloud": region["pointcloud"][index]}
    shared = {**region, "pointcloud": region["pointcloud"][:2], "pointcloud_index": index}
    seen: list[int] = []
    encode = model.point_encoder.forward
    monkeypatch.setattr(model.point_encoder, "forward", lambda x, **kw: (seen.append(len(x)), encode(x, **kw))[1])
    together, apart = model(shared), model(copies)
    assert seen == [2, 4]
    for name in together:
        torch.testing.assert_close(together[name], apart[name], atol=1e-5, rtol=1e-5)
    together.loss.backward()
    assert model.pc_adapter.weight.grad is not None and model.branches["pointcloud_region"].region.reg.weight.grad is not None


def test_sampling_is_repeatable_in_evaluation_only(regionblip: Any) -> None:
    batch = tiny.cloud_batch()
    first, second = (regionblip.eval().extract_features(batch, mode="image").image_embeds for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(0)
    regionblip.train()
    first, second = (regionblip.encoders["pointcloud"].encode(regionblip.read(batch).inputs).embeds for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("modality", ["image", "pointcloud"])
def test_classify(regionblip: Any, modality: str) -> None:
    regionblip.eval()
    batch, names = tiny.batch_of(modality), ["red square", "white cube", "lamp"]
    logits = regionblip.classify(batch, classnames=names)
    assert logits.shape == (4, 3) and logits.abs().max() <= 1.0 + 1e-6
    published = regionblip.specs[modality].class_template
    assert torch.equal(regionblip.classify(batch, classnames=names, templates=[published]), logits)
    several = regionblip.classify(batch, classnames=names, templates=["a {}", "the {}"])
    assert several.shape == (4, 3) and not torch.equal(several, logits)
    classes = regionblip.class_features(batch, names, templates=["a {}", "the {}"])
    assert torch.equal(regionblip.classify(batch, names, classes=classes), several)
    with pytest.raises(ValueError, match="classnames is empty"):
        regionblip.classify(batch, classnames=[])


def test_clouds_through_the_shared_qformer(folder: Path) -> None:
    model = load_model_from_config(tiny.model_config(folder, "regionblip_opt", enable_pointcloud_qformer=False))
    assert not hasattr(model, "Qformer_pc")
    model(tiny.cloud_batch()).loss.backward()


def test_rows_set_to_null_are_left_out(folder: Path) -> None:
    rows = {"pointcloud": None, "pointcloud_region": None}
    model = load_model_from_config(tiny.model_config(folder, "regionblip_opt", modalities=rows))
    assert set(model.specs) == {"image", "image_region"}
    assert not hasattr(model, "point_encoder") and not hasattr(model, "Qformer_pc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box_corners": torch.zeros(4, 8, 2)}, "a region takes \\[B, 24\\] numbers"),
        ({"box_corners": None}, "needs samples\\['box_corners'\\]"),
        ({"pointcloud": None}, "needs samples\\['pointcloud'\\]"),
        ({"pointcloud": torch.zeros(4, 40, 6)}, "built for \\[B, N, 3\\]"),
        ({"pointcloud": torch.zeros(4, 5, 3)}, "fewer than the 8 groups"),
    ],
)
def test_bad_clouds_are_named(regionblip: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regionblip({**tiny.cloud_batch("pointcloud_region"), **change})


def test_frozen_parts_are_float32_on_a_cpu_and_as_configured_for_a_gpu(folder: Path) -> None:
    config = tiny.model_config(folder, "regionblip_opt", llm_precision="bf16", vit={"vit_precision": "fp16", **VIT})
    on_cpu = load_model_from_config(config)
    assert {p.dtype for p in on_cpu.parameters()} == {torch.float32}
    for_gpu = load_model_from_config(config, device="cuda")  # built, not moved
    assert for_gpu.visual_encoder.pos_embed.dtype == torch.float16 and for_gpu.llm.dtype == torch.bfloat16
    assert {p.dtype for p in for_gpu.parameters() if p.requires_grad} == {torch.float32}


def test_a_checkpoint_over_another_base_is_refused(folder: Path) -> None:
    model = load_model_from_config(tiny.model_config(folder, "regionblip_opt"))
    bases = {"llm": {"path": "elsewhere", "sha256": "0" * 64}}
    with pytest.raises(ConfigError, match="trained over another llm"):
        model.load_checkpoint({"model": model.trainable_state_dict(), "frozen_bases": bases})
    model.load_checkpoint({"model": model.trainable_state_dict(), "frozen_bases": model.frozen_bases()})


def test_an_untrained_region_branch_is_no_model_to_evaluate(regionblip: Any) -> None:
    assert "branches.image_region" not in regionblip.random_parts()
    assert "branches.image_region" in regionblip.random_parts(for_evaluation=True)


def test_layer_decay_acts_on_the_vit_alone(folder: Path) -> None:
    model = load_model_from_config(tiny.model_config(folder, "blip2", freeze_vit=False))
    groups = model.get_optimizer_params(weight_decay=0.05, lr_scale=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert scale[id(named["visual_encoder.blocks.1.attn.proj.weight"])] == 0.5
    assert scale[id(named["visual_encoder.blocks.0.attn.proj.weight"])] == 0.25
    assert scale[id(named["visual_encoder.pos_embed"])] == 0.125
    assert scale[id(named["Qformer.bert.embeddings.word_embeddings.weight"])] == 1.0


def test_files_are_looked_for_before_anything_is_built(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny.model_config(folder, "regionblip_opt")
    with pytest.raises(ConfigError, match="model.blip2_pretrain: no file /no/such.pth"):
        load_model_from_config({**config, "load_blip2_pretrain": True, "blip2_pretrain": "/no/such.pth", "bert_path": "/nowhere"})
    with pytest.raises(ConfigError, match="needs model.load_blip2_pretrain"):
        load_model_from_config({**config, "regions_from_image": True})
    load_model_from_config({**config, "finetuned": "/no/such.pth"})
    assert "the file is not read" in caplog.text
