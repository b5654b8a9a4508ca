"""The recorded numbers of the published RegionBLIP at toy size, from its own checkpoint files through the public interface."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lavis.models import load_model_from_config
from lavis.models.batch import entry_of
from lavis.models.encoders.eva_vit import EvaViT, fit_vit_state_dict
from lavis.models.encoders.point_bert import PointBert, fit_point_bert_state_dict
from lavis.models.encoders.point_ops import farthest_point_sample, group_points, nearest_neighbours
from lavis.models.inference.generate import prompts_of
from lavis.models.language import Decoding
from tests import parity
from tests.models.test_language import padded

VIT = {"img_size": 56, "patch_size": 14, "embed_dim": 96, "depth": 3, "num_heads": 4, "mlp_ratio": 4.3637}
POINTBERT = {"trans_dim": 48, "depth": 3, "num_heads": 4, "group_size": 8, "num_group": 16, "encoder_dims": 32}
RECORDS = [
    ("opt", "image"),
    ("opt", "image_region"),
    ("opt", "pointcloud_region"),
    ("t5", "image_region"),
    ("t5", "pointcloud"),
]


def folder() -> Path:
    """The RegionBLIP records."""
    return parity.parity_dir() / "regionblip"


def published_config(llm: str, **changes: Any) -> dict[str, Any]:
    """The tiny configuration of the records, in published keys."""
    return {
        "arch": f"regionblip_{llm}",
        "bert_path": str(folder() / "tiny_models/bert"),
        f"{llm}_model": str(folder() / "tiny_models" / llm),
        "embed_dim": 32,
        "max_txt_len": 16,
        "enable_pointcloud_qformer": True,
        "freeze_vit": True,
        "freeze_point_encoder": True,
        "freeze_qformer": True,
        "freeze_blip2_pretrain": True,
        "enable_aux_regloss": True,
        "qformer": {"input_dim": 96, "num_query_token": 8, "cross_attention_freq": 2},
        "vit": VIT,
        "pointbert": POINTBERT,
        **({"t5_precision": "float"} if llm == "t5" else {}),
        **changes,
    }


@pytest.fixture(scope="module", params=RECORDS, ids=lambda r: "_".join(r))
def record(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A recorded task: model, samples, expected tensors and meta data."""
    llm, modality = request.param
    model = load_model_from_config(published_config(llm))
    model.load_checkpoint(folder() / f"regionblip_{llm}_tiny.pth")
    model.eval()
    tensors = load_file(folder() / f"{llm}_{modality}.safetensors")
    meta = json.loads((folder() / f"{llm}_meta.json").read_text())["tasks"][modality]
    ours = {"point_clouds": "pointcloud", "refer_box_corners": "box_corners"}  # published names of the scene dataset
    inputs = {key[3:]: value for key, value in tensors.items() if key.startswith("in/")}
    samples = {ours.get(key, key): value for key, value in inputs.items()}
    samples |= {"task_name": meta["task_name"], "text_input": meta["texts"]}
    parity.count_records(1)
    return {"model": model, "samples": samples, "tensors": tensors, "meta": meta, "llm": llm}


@pytest.fixture
def hardest_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records drew the likeliest negative."""
    monkeypatch.setattr(torch, "multinomial", lambda weights, n: weights.argmax(dim=-1, keepdim=True))


def test_losses_and_gradients(record: dict[str, Any], hardest_negatives: None) -> None:
    model, tensors, meta = record["model"], record["tensors"], record["meta"]
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # the record holds gradients of parameters that are frozen otherwise
    model.zero_grad()
    losses = model(record["samples"])
    for name, value in losses.items():
        if f"out/{name}" in tensors:
            assert value.item() == pytest.approx(tensors[f"out/{name}"].item(), abs=5e-5), name
    losses.loss.backward()
    named = dict(model.named_parameters())
    to_ours = model.key_map.to_lavis
    for published in meta["grad_names"]:
        expected = tensors[f"grad/{published}"]
        error = (named[to_ours(published, "regionblip")].grad - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, published
    for published, norm in meta["trainable_grad_norms"].items():
        name = to_ours(published, "regionblip")
        if published not in meta["grad_names_frozen_in_reference"]:
            assert name in trainable, f"{published} is trainable in the published model"
            assert named[name].grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), published


def test_hidden_states(record: dict[str, Any]) -> None:
    model, samples, tensors = record["model"], record["samples"], record["tensors"]
    batch = model.read(samples)
    spec = batch.spec
    with torch.no_grad(), model.router.route(spec.name):
        hidden, tokens, _, _ = model.look(batch)
        ids, mask = model.tokenize(samples["text_input"])
        text = model.qformers[spec.qformer].text_pass(ids, mask)
        prefix = model.branch(spec.name).to_llm(hidden)
    seen = mask.bool()
    assert torch.equal(ids, tensors["tok/bert_ids"][:, : ids.shape[1]])
    assert not tensors["tok/bert_mask"][:, ids.shape[1] :].any()
    encoded = tensors["mid/image_embeds"] if spec.encoder == "image" else tensors["mid/pc_embeds"]
    torch.testing.assert_close(tokens.embeds, encoded, atol=2e-5, rtol=0)
    torch.testing.assert_close(hidden, tensors["mid/qformer_query_hidden"], atol=2e-5, rtol=0)
    expected_text = tensors["mid/qformer_text_hidden"][:, : ids.shape[1]]
    torch.testing.assert_close(text[seen], expected_text[seen], atol=2e-5, rtol=0)
    torch.testing.assert_close(prefix, tensors["mid/llm_prefix"], atol=2e-5, rtol=0)


def test_features(record: dict[str, Any]) -> None:
    model, samples, tensors = record["model"], record["samples"], record["tensors"]
    visual = model.extract_features(samples, mode="image")
    torch.testing.assert_close(visual.image_embeds_proj, tensors["mid/vision_feats"], atol=2e-5, rtol=0)
    text = model.extract_features({key: samples[key] for key in ("task_name", "text_input")}, mode="text")
    torch.testing.assert_close(text.text_embeds_proj[:, 0], tensors["mid/text_feat"], atol=2e-5, rtol=0)


def test_llm_tokens(record: dict[str, Any]) -> None:
    model, tensors, texts = record["model"], record["tensors"], record["meta"]["texts"]
    ids, mask = padded(model.llm, texts)
    if record["llm"] == "opt":
        expected = tensors["tok/llm_ids"], tensors["tok/llm_mask"]
    else:
        expected = tensors["tok/t5_output_ids"], tensors["tok/t5_output_mask"]
    assert torch.equal(mask, expected[1])
    assert torch.equal(ids * mask, expected[0] * expected[1])


def test_captions_and_scores(record: dict[str, Any]) -> None:
    model, tensors = record["model"], record["tensors"]
    inputs = {key: value for key, value in record["samples"].items() if key != "text_input"}
    for variant, generation in record["meta"]["generation"].items():
        settings = dict(generation["call_kwargs"])
        prompt = settings.pop("samples.prompt", None)
        samples = inputs if prompt is None else {**inputs, "prompt": prompt}
        assert model.generate(samples, **settings) == generation["captions"], variant
        batch = model.read(samples)
        with torch.no_grad(), model.router.route(batch.spec.name):
            decoded = model.llm.decode(prompts_of(model, batch), Decoding(**settings))
        assert torch.equal(decoded.sequences, tensors[f"gen/{variant}/sequences"]), variant
        if decoded.scores is not None:
            torch.testing.assert_close(decoded.scores, tensors[f"gen/{variant}/sequences_scores"], atol=1e-4, rtol=0)


def test_shared_inputs_give_the_same_captions(record: dict[str, Any]) -> None:
    """Rows that read one picture or cloud through its index equal rows with copies of it."""
    model, samples = record["model"], record["samples"]
    index = torch.tensor([0, 0, 2, 2])
    encoder = entry_of(samples, model.specs).encoder
    copies = {k: v for k, v in samples.items() if k != "text_input"} | {encoder: samples[encoder][index]}
    shared = {**copies, encoder: samples[encoder][[0, 2]], f"{encoder}_index": torch.tensor([0, 0, 1, 1])}
    assert model.generate(shared, num_beams=2) == model.generate(copies, num_beams=2)


def test_answers_and_prompted_loss(hardest_negatives: None) -> None:
    meta = json.loads((folder() / "opt_meta.json").read_text())
    tensors = load_file(folder() / "opt_extra.safetensors")
    image = {"modality": "image", "image": tensors["vqa/in_image"]}
    model = load_model_from_config(published_config("opt", prompt=meta["prompted_image_loss"]["cfg.prompt"])).eval()
    model.load_checkpoint(folder() / "regionblip_opt_tiny.pth")
    expected = meta["prompted_image_loss"]
    losses = model({**image, "text_input": expected["texts"]})
    for name in ("loss", "loss_itc", "loss_itm", "loss_lm", "loss_llm"):
        assert losses[name].item() == pytest.approx(expected[name], abs=5e-5)
    for variant in meta["vqa"].values():
        answers = model.predict_answers({**image, "text_input": variant["questions"]}, **variant["call_kwargs"])
        assert answers == variant["answers"]
    parity.count_records(1)


def test_zero_shot() -> None:
    meta = json.loads((folder() / "opt_meta.json").read_text())["zero_shot"]
    tensors = load_file(folder() / "opt_extra.safetensors")
    model = load_model_from_config(published_config("opt")).eval()
    model.load_checkpoint(folder() / "regionblip_opt_tiny.pth")
    samples = {"modality": "pointcloud", "pointcloud": tensors["zs/in_pointcloud"]}
    logits = model.classify(samples, classnames=meta["classnames"])
    torch.testing.assert_close(logits, tensors["zs/logits"], atol=2e-5, rtol=0)
    assert logits.argmax(dim=1).tolist() == meta["predicted"]
    parity.count_records(1)


@pytest.mark.parametrize("pixels", [56, 84, 42])
def test_eva_position_interpolation(pixels: int) -> None:
    tensors = load_file(folder() / "eva_interp.safetensors")
    vit = EvaViT(**{**VIT, "img_size": pixels, "depth": 1}).eval()
    state, dropped = fit_vit_state_dict(torch.load(folder() / "eva_vit_tiny.pth", weights_only=True), vit)
    vit.load_state_dict(state)
    assert all(name.startswith(("blocks.1.", "norm.", "head.")) for name in dropped)
    torch.testing.assert_close(vit.pos_embed, tensors[f"{pixels}/pos_embed"], atol=1e-6, rtol=0)
    torch.testing.assert_close(vit(tensors[f"{pixels}/in_image"]), tensors[f"{pixels}/out"], atol=2e-5, rtol=0)
    parity.count_records(1)


@pytest.mark.parametrize("llm", ["opt", "t5"])
def test_optimizer_groups(llm: str) -> None:
    """Weight decay goes where the published rule puts it."""
    expected = json.loads((folder() / f"optim_groups_{llm}.json").read_text())
    model = load_model_from_config(published_config(llm))
    names = {id(p): model.key_map.from_lavis(name, "regionblip") for name, p in model.named_parameters()}
    decay, plain = ({names[id(p)] for p in group["params"]} for group in model.get_optimizer_params(weight_decay=0.05))

    assert decay == set(expected["weight_decay"])
    assert plain == set(expected["no_weight_decay"])
    parity.count_records(1)


@pytest.mark.parametrize("llm", ["opt", "t5"])
def test_published_names_map_both_ways(llm: str) -> None:
    """Every published tensor has a place here, and goes back under its own name."""
    model = load_model_from_config(published_config(llm))
    ours = dict(model.state_dict())
    lines = (folder() / f"state_dict_keys_{llm}.txt").read_text().splitlines()[1:]
    published = [line.split("\t") for line in lines]
    for key, shape, _, state, alias, *_ in ([*line, ""] for line in published):
        name = model.key_map.to_lavis(key, "regionblip")
        if alias or state == "buffer":
            continue
        assert list(ours[name].shape) == json.loads(shape), key
        assert model.key_map.from_lavis(name, "regionblip") == key
        parameter = dict(model.named_parameters())[name]
        assert parameter.requires_grad == (state == "trainable"), key
    parity_saved = (folder() / f"runner_saved_keys_{llm}.txt").read_text().split()
    aliases = {line[0] for line in published if len(line) > 4 and line[4]}
    buffers = {line[0] for line in published if line[3] == "buffer"}
    saved = {model.key_map.from_lavis(name, "regionblip") for name in model.trainable_state_dict()}
    assert saved == set(parity_saved) - aliases - buffers, "a checkpoint holds what is trained"
    named = {model.key_map.to_lavis(line[0], "regionblip") for line in published}
    assert set(ours) <= named, "nothing of ours is without a published name"
    parity.count_records(1)


def test_point_encoder() -> None:
    """Point-BERT from the released layout: picks, neighbours, group tokens and output."""
    tensors = load_file(folder() / "point_encoder.safetensors")
    encoder = PointBert(trans_dim=48, depth=3, num_heads=4, group_size=8, num_group=16, encoder_dims=32).eval()
    content = torch.load(folder() / "point_bert_tiny.pt", weights_only=True)["base_model"]
    state, dropped = fit_point_bert_state_dict(content)
    encoder.load_state_dict(state)
    assert all(re.search(r"cls_head|lm_head|mask_token|transformer_k|queue", name) for name in dropped)
    points = tensors["in"]
    picks = farthest_point_sample(points, 16)
    assert torch.equal(picks, tensors["fps_index"].long())
    centres = points[torch.arange(len(points))[:, None], picks]
    torch.testing.assert_close(centres, tensors["center"])
    neighbours = nearest_neighbours(points, centres, 8).sort(dim=-1).values
    assert torch.equal(neighbours, tensors["knn_index_sorted"].long())
    with torch.no_grad():
        groups, _ = group_points(points, 16, 8)
        torch.testing.assert_close(encoder.encoder(groups), tensors["group_tokens"], atol=2e-5, rtol=0)
        torch.testing.assert_close(encoder(points), tensors["out"], atol=2e-5, rtol=0)
    parity.count_records(1)
