"""Hugging Face's BLIP-2: what transformers saves is read here, and computes what transformers computes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from lavis.common.config import ConfigError
from lavis.models import load_model_from_config
from lavis.models.language import Behind, Decoding
from lavis.models.losses import query_text_similarity
from tests import hf, tiny

PROMPTS = {"opt": ["a photo of"] * 4, "t5": ["a photo of"] * 2 + ["a white cube"] * 2}  # of one length each
NOT_IN_STAGE2 = (
    "itc_proj",
    "text_proj",
    "itm_head",
    "temp",
    ".cls.",
    "word_embeddings",
    "position_embeddings",
    "intermediate.",
    "output.",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module", params=["opt", "t5"])
def pair(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """A model of transformers, and ours that took everything from its folder."""
    kind = request.param
    theirs, path = hf.captioner(folder, kind)
    config = tiny.model_config(folder, f"blip2_{kind}", max_txt_len=32)
    vit = {**config["vit"], "pretrained": path}
    ours = load_model_from_config({**config, f"{kind}_model": path, "vit": vit}).eval()
    report = ours.load_checkpoint(path)
    return {"kind": kind, "theirs": theirs, "ours": ours, "path": path, "report": report, "config": config}


def inputs(pair: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Pictures, and the ids and mask that transformers wants: image tokens, then the prompt, all of one length."""
    image = tiny.image_batch()["image"]
    tokenizer = pair["ours"].llm.tokenizer
    ids = torch.tensor([tokenizer(text).input_ids for text in PROMPTS[pair["kind"]]])
    token = pair["theirs"].config.image_token_index
    ids = torch.cat([torch.full((len(ids), hf.QUERIES), token), ids], dim=1)
    return image, {"pixel_values": image, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def prefix_of(model: Any, image: torch.Tensor) -> torch.Tensor:
    return model.branch("image").to_llm(model.look(model.read({"modality": "image", "image": image})).hidden)


@torch.no_grad()
def test_logits_equal_those_of_transformers(pair: dict[str, Any]) -> None:
    ours, (image, given) = pair["ours"], inputs(pair)
    prefix, ids = prefix_of(ours, image), given["input_ids"][:, hf.QUERIES :]
    embeds = torch.cat([prefix, ours.llm.embed(ids)], dim=1)
    decoder = {"decoder_input_ids": torch.tensor([[0, 5, 6, 7]] * 4)} if pair["kind"] == "t5" else {}
    expected = pair["theirs"](**given, **decoder)
    torch.testing.assert_close(prefix, pair["theirs"].language_projection(expected.qformer_outputs[0]), atol=1e-5, rtol=1e-5)
    logits = ours.llm.model(inputs_embeds=embeds, attention_mask=given["attention_mask"], **decoder).logits
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert logits.std() > 0.1 and not torch.allclose(logits[0], logits[1], atol=1e-2), "pictures make a difference"


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_generated_ids_equal_those_of_transformers(pair: dict[str, Any], beams: int) -> None:
    """Greedy ids are equal. So are those of beams at length penalty 0, where a score is the sum of log-probabilities.

    At another penalty they need not be: transformers 4.31, whose rules are the published ones, divides by a length that counts
    the start token also for beams that are still open at the end, and stops a row later.
    """
    ours, theirs, (image, given) = pair["ours"], pair["theirs"], inputs(pair)
    settings = {"num_beams": beams, "max_new_tokens": 12, "length_penalty": 0.0, "min_length": 0}
    eos = ours.llm.dialect.ends[0] if pair["kind"] == "opt" else 1
    expected = theirs.generate(**given, **settings, do_sample=False, eos_token_id=eos)
    before = given["input_ids"].shape[1] if pair["kind"] == "opt" else 1
    prompts = PROMPTS[pair["kind"]]
    decoded = ours.llm.decode(Behind(prefix_of(ours, image), prompts), Decoding(**settings))
    found = [up_to(row, eos) for row in decoded.sequences[:, 1:].tolist()]
    assert found == [up_to(row, eos) for row in expected[:, before:].tolist()]
    assert len(set(map(tuple, found))) == 4, "pictures make a difference"


def up_to(ids: list[int], eos: int) -> list[int]:
    """Ids before the end token; what pads a row behind it differs between versions."""
    return ids[: ids.index(eos)] if eos in ids else ids


def test_the_report_explains_every_key(pair: dict[str, Any]) -> None:
    report, ours = pair["report"], pair["ours"]
    assert report.layout == "hf-blip2" and not report.ignored and not report.needed
    assert len(report.loaded) + len(report.missing) >= len(dict(ours.named_parameters()))
    assert all(any(part in name for part in NOT_IN_STAGE2) for name in report.missing)
    assert {"visual_encoder.blocks.1.attn.q_bias", "ln_vision.weight", "branches.image.llm_proj.bias"} <= set(report.loaded)
    assert ours.bases["llm"] == ours.bases["visual_encoder"] == pair["path"]
    assert not {"visual_encoder", "llm", "ln_vision"} & set(ours.random_parts())


@torch.no_grad()
def test_a_folder_loads_over_the_llm_of_another_folder(pair: dict[str, Any], folder: Path) -> None:
    """The LLM's own folder has no row for the image token; everything comes from the BLIP-2 folder at once."""
    config = pair["config"]
    if pair["kind"] == "t5":
        config = {**config, "t5_model": hf.own_head(config["t5_model"], folder / "t5_own_head")}
    ours = load_model_from_config(config).eval()
    rows = ours.llm.model.get_input_embeddings().num_embeddings
    assert rows == pair["ours"].llm.model.get_input_embeddings().num_embeddings - 1
    assert not ours.load_checkpoint(pair["path"]).ignored
    whole, cut = pair["ours"].state_dict(), ours.state_dict()
    for name in pair["report"].loaded:
        assert torch.equal(cut[name], whole[name][: len(cut[name])]), name


def test_regionblip_takes_the_folder_as_its_blip2(pair: dict[str, Any], folder: Path) -> None:
    kind = pair["kind"]
    config = tiny.model_config(folder, f"regionblip_{kind}", load_blip2_pretrain=True, blip2_pretrain=pair["path"])
    model = load_model_from_config({**config, f"{kind}_model": pair["path"]}).eval()
    image = tiny.image_batch()["image"]
    torch.testing.assert_close(
        model.extract_features({"image": image, "modality": "image"}, mode="image").image_embeds,
        pair["ours"].extract_features({"image": image, "modality": "image"}, mode="image").image_embeds,
    )
    assert set(model.random_parts()) == {"Qformer", "Qformer_pc", "point_encoder"}, "stage 2 has no text half"
    assert model.frozen_bases()["blip2"]["sha256"] == model.frozen_bases()["llm"]["sha256"] != ""


@pytest.mark.parametrize("added", [0, 1])
@torch.no_grad()
def test_stage1_scores_equal_those_of_transformers(folder: Path, added: int) -> None:
    """ITC and ITM; `added`: whether the folder's vocabulary counts `[DEC]`, as the released one does."""
    config = tiny.model_config(folder, "blip2")
    tokenizer = AutoTokenizer.from_pretrained(config["bert_path"])
    theirs, path = hf.retriever(folder, len(tokenizer) + added)
    ours = load_model_from_config(config).eval()
    report = ours.load_checkpoint(path)
    assert not report.ignored and set(name.split(".cls.")[0] for name in report.missing) == {"temp", "Qformer"}
    image, texts = tiny.image_batch()["image"], tiny.TEXTS[:4]
    ids, mask = ours.tokenize(texts)
    itc = theirs(pixel_values=image, input_ids=ids, attention_mask=mask).logits_per_image
    looked = ours.look(ours.read({"modality": "image", "image": image}))
    visual = ours.visual_features(ours.specs["image"], looked.hidden)
    found = query_text_similarity(visual, ours.sentence_features(ours.Qformer.text_pass(ids, mask)))
    torch.testing.assert_close(found, itc, atol=1e-5, rtol=1e-5)
    itm = theirs(pixel_values=image, input_ids=ids, attention_mask=mask, use_image_text_matching_head=True).logits_per_image
    joint = ours.Qformer.joint_pass(looked.queries, ids, mask, looked.tokens)[:, : hf.QUERIES]
    torch.testing.assert_close(ours.itm_head(joint).mean(dim=1), itm, atol=1e-5, rtol=1e-5)
    assert itc.std() > 1e-3 and itm.std() > 1e-2


def test_the_t5_of_a_folder_keeps_its_activation(folder: Path) -> None:
    """A folder whose T5 uses the tanh GELU computes with it, however the model was built."""
    theirs, path = hf.captioner(folder / "tanh", "t5", activation=None)
    assert theirs.language_model.config.dense_act_fn == "gelu_new"
    config = tiny.model_config(folder, "blip2_t5")
    ours = load_model_from_config({**config, "t5_model": hf.own_head(config["t5_model"], folder / "tanh_own_head")}).eval()
    before = type(ours.llm.model.encoder.block[0].layer[1].DenseReluDense.act)
    ours.load_checkpoint(path)
    after = type(ours.llm.model.encoder.block[0].layer[1].DenseReluDense.act)
    assert after is type(theirs.language_model.encoder.block[0].layer[1].DenseReluDense.act) is not before


def test_two_tensors_do_not_go_into_one(folder: Path) -> None:
    """An OPT with an output layer that is not its embedding is not read into one that ties them."""
    model = load_model_from_config(tiny.model_config(folder, "blip2_opt"))
    tied = model.state_dict()["llm.model.lm_head.weight"]
    state = {"llm.model.lm_head.weight": tied + 1, "llm.model.model.decoder.embed_tokens.weight": tied}
    with pytest.raises(ConfigError, match="are one tensor in the model, but differ in the checkpoint"):
        model.load_checkpoint({"model": state})


def test_bad_folders_are_refused(pair: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    other = {"opt": "t5", "t5": "opt"}[pair["kind"]]
    config = tiny.model_config(folder, f"blip2_{other}")
    with pytest.raises(ConfigError, match=f"another language model: it holds llm.model.*this model's is {other} of "):
        load_model_from_config(config).load_checkpoint(pair["path"])
    with pytest.raises(ConfigError, match=f"holds a {pair['kind']}; .* is expected here"):
        load_model_from_config({**config, f"{other}_model": pair["path"]})
    broken = tmp_path / "broken"
    shutil.copytree(pair["path"], broken)
    shard = sorted(broken.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ConfigError, match=f"lacks the shard {shard.name}, which model.safetensors.index.json names"):
        load_model_from_config(pair["config"]).load_checkpoint(broken)
    with pytest.raises(ConfigError, match="holds no weights; accepted: model.safetensors.index.json"):
        load_model_from_config(pair["config"]).load_checkpoint(tmp_path)
