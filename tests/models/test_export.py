"""Exported halves: a plain Hugging Face folder with one modality's adapters in its weights, and soft prompts that it decodes.

Tolerances: float32 logits of the merged model are ours to 1e-5 (the sum is associated differently); bfloat16 ones are within 2 %
of their spread of the float32 ones, merged or not (0.7 to 1.2 % each, see `test_bfloat16_weights_are_rounded_once`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lavis.common.checkpoint import load_weights, weight_files
from lavis.common.config import ConfigError
from lavis.models import load_model_from_config
from lavis.models.inference.generate import prompts_of
from lavis.models.language import Behind, CausalLM, Decoding, Seq2SeqLM
from lavis.models.language.base import DTYPE_KEY
from lavis.models.qformer.lora import ModalityLinear, adapter_parameters, merge_modality, merged_copy
from lavis.models.weights.export import export_llm, save_prompts, soft_prompts
from tests import hf, tiny

KINDS = ("opt", "llama", "t5")
REGION = "image_region"
LENGTHS: dict[str, Any] = {"max_length": 10, "min_length": 5}
GREEDY = Decoding(num_beams=1, **LENGTHS)
BATCH = tiny.image_batch(REGION)
UNEVEN = ["a photo of", "a photo of a red square on the left", "", "a"]  # prompts, so rows are padded


def build(folder: Path, kind: str, *, device: str = "cpu", **changes: Any) -> Any:
    """A tiny RegionBLIP in eval mode whose four modalities have adapters that matter, each its own."""
    if kind == "llama":
        changes["opt_model"] = tiny.llama_folder(folder / "llama")
    if kind == "t5":  # with an output layer of its own, as Flan-T5's is
        torch.manual_seed(0)
        changes["t5_model"] = hf.own_head(tiny.t5_folder(folder / "t5_tied"), folder / "t5_own")
    config = tiny.model_config(folder, "regionblip_t5" if kind == "t5" else "regionblip_opt", **changes)
    model: Any = load_model_from_config(config, device=device).eval()
    if kind == "t5":
        hf.scatter(model.llm.model, std=0.1)  # at its initial weights it says one word over and over
    for place, name in enumerate(model.specs):
        fill(model, name, seed=place)
        generator = torch.Generator().manual_seed(place)
        model.branch(name).llm_proj.weight.data.normal_(generator=generator)  # so that captions differ between rows
    return model


def fill(model: Any, modality: str, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(model, modality):
        parameter.data.normal_(std=0.4, generator=generator)


def load_plain(folder: Path, kind: str, **options: Any) -> Any:
    return (AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM).from_pretrained(folder, **options).eval()


@torch.no_grad()
def logits(llm: Any, embeds: Tensor, mask: Tensor) -> Tensor:
    """Logits [real positions, V] of a Hugging Face model for soft prompts; of a T5, of three decoder positions."""
    if llm.config.is_encoder_decoder:
        return llm(inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=torch.tensor([[0, 7, 9]] * len(mask))).logits
    return llm(inputs_embeds=embeds, attention_mask=mask).logits[mask.bool()]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def folder(kind: str, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder, its weights in several files."""
    target = tmp_path_factory.mktemp("served") / kind
    export_llm(model, target, modality=REGION, decoding=GREEDY, shard_size="40KB")
    return target


@pytest.fixture(scope="module")
def plain(kind: str, folder: Path) -> Any:
    return load_plain(folder, kind)


def test_logits_are_ours(model: Any, plain: Any) -> None:
    embeds, mask = soft_prompts(model, BATCH, prompts=UNEVEN)
    assert (mask == 0).any() and embeds.shape[:2] == mask.shape
    found = logits(plain, embeds, mask)
    with model.router.route(REGION):
        torch.testing.assert_close(found, logits(model.llm.model, embeds, mask), atol=1e-5, rtol=1e-5)
    for other in set(model.specs) - {REGION}:
        with model.router.route(other):
            assert (found - logits(model.llm.model, embeds, mask)).abs().max() > 0.1


def test_greedy_captions_by_hugging_face_are_ours(kind: str, model: Any, plain: Any, folder: Path) -> None:
    """By generation_config alone: ends and lengths are those of the folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    embeds, mask = soft_prompts(model, BATCH)
    found = tokenizer.batch_decode(plain.generate(inputs_embeds=embeds, attention_mask=mask), skip_special_tokens=True)
    expected = model.generate(BATCH, num_beams=1, **LENGTHS)
    assert [text.strip() for text in found] == [text.strip() for text in expected] and len(set(expected)) > 1
    with model.router.route(REGION):
        for prompts in (UNEVEN, ["a photo of"] * 4):
            embeds, mask = soft_prompts(model, BATCH, prompts=prompts)
            prefix = prompts_of(model, model.read(BATCH)).vectors
            ours = model.llm.generate(Behind(prefix, prompts), GREEDY)
            theirs = tokenizer.batch_decode(plain.generate(inputs_embeds=embeds, attention_mask=mask), skip_special_tokens=True)
            assert [text.strip() for text in theirs] == [text.strip() for text in ours]


def test_lengths_are_the_published_ones(kind: str, model: Any, folder: Path) -> None:
    """An end that the model wants at once comes after min_length, one that it never wants is not waited for."""
    embeds, mask = soft_prompts(model, BATCH)
    end = model.llm.dialect.ends[0] if kind != "t5" else model.llm.model.config.eos_token_id
    for bias in (1e4, -1e4):
        found, plain = [], load_plain(folder, kind)
        for llm in (plain, model.llm.model):

            def push(module: Any, args: Any, out: Any) -> None:
                out.logits[..., end] += bias  # noqa: B023

            hook = llm.register_forward_hook(push)
            if llm is plain:
                tokens = plain.generate(inputs_embeds=embeds, attention_mask=mask)
                found.append(tokens[:, 1:] if kind == "t5" else tokens)
            else:
                with model.router.route(REGION):
                    found.append(model.llm.decode(prompts_of(model, model.read(BATCH)), GREEDY).sequences[:, 1:])
            hook.remove()
        assert torch.equal(*found)
        longest = LENGTHS["max_length"] - (kind != "t5")
        assert found[0].shape[1] == (LENGTHS["min_length"] if bias > 0 else longest)


def test_beam_captions_by_our_beam_search_are_ours(kind: str, model: Any, folder: Path) -> None:
    """The folder is a language model for this package too. Prompts are read alike, so its tokenizer is whole."""
    wanted = {"max_txt_len": 16, "dtype": torch.float32}
    merged = (Seq2SeqLM if kind == "t5" else CausalLM)(str(folder), **wanted).eval()
    with model.router.route(REGION):
        prefix = prompts_of(model, model.read(BATCH)).vectors
        for prompts in (UNEVEN, ["a photo of"] * 4):
            decoding = Decoding(num_beams=5, **LENGTHS)
            ours = model.llm.decode(Behind(prefix, prompts), decoding)
            theirs = merged.decode(Behind(prefix, prompts), decoding)
            torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=1e-5)
            texts = model.llm.generate(Behind(prefix, prompts), decoding)
            assert texts == merged.generate(Behind(prefix, prompts), decoding) and len(set(texts)) > 1


def test_other_modalities_leave_no_trace(kind: str, folder: Path, tmp_path: Path) -> None:
    other = build(tmp_path, kind)
    for name in set(other.specs) - {REGION}:
        fill(other, name, seed=77)
    again = export_llm(other, tmp_path / "again", modality="task_alignLLM_ImageRegionText_posembed", decoding=GREEDY)
    first = json.loads((folder / "export.json").read_text())
    assert again["modality"] == REGION and again["adapters_sha256"] == first["adapters_sha256"]
    state, expected = load_weights(tmp_path / "again"), load_weights(folder)
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    assert not [name for name in state if "lora" in name]
    cloud = export_llm(other, tmp_path / "cloud", modality="pointcloud", decoding=GREEDY)
    assert cloud["adapters_sha256"] != first["adapters_sha256"] and cloud["weights"] != again["weights"]


def test_ties_and_settings_stay(kind: str, model: Any, plain: Any, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    tied = kind == "opt"
    assert config.get("tie_word_embeddings", True) is tied
    assert ("lm_head.weight" in load_weights(folder)) is not tied and len(weight_files(folder)) > 1
    head, rows = plain.get_output_embeddings().weight, plain.get_input_embeddings().weight
    assert (head is rows) is tied and torch.equal(head, model.llm.model.get_output_embeddings().weight)
    if kind == "t5":
        assert plain.config.dense_act_fn == "gelu" and torch.equal(rows, plain.get_encoder().get_input_embeddings().weight)


def test_the_model_itself_is_left_alone(model: Any) -> None:
    """The copy shares every tensor but the merged ones; merging in place leaves one modality, and refuses the others."""
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.llm.model.state_dict().items()}
    copied = merged_copy(model.llm.model, REGION)
    own = copied.state_dict()
    adapted = {name for name, layer in model.llm.model.named_modules() if isinstance(layer, ModalityLinear)}
    assert {name for name in own if own[name].data_ptr() != before[name][0]} == {f"{name}.weight" for name in adapted}
    for name, (place, values) in before.items():
        now = model.llm.model.state_dict()[name]
        assert now.data_ptr() == place and torch.equal(now, values)
    assert model.router.modalities == tuple(model.specs)


def test_merging_in_place(kind: str, tmp_path: Path) -> None:
    model = build(tmp_path, kind)
    expected = model.generate(BATCH, **LENGTHS)
    layers = merge_modality(model, REGION)
    assert any(name.startswith("Qformer.") for name in layers) and any(name.startswith("llm.") for name in layers)
    assert not list(adapter_parameters(model, REGION))
    assert model.generate(BATCH, **LENGTHS) == expected
    with pytest.raises(ValueError, match="unknown modality 'image'; this model adapts image_region"):
        model.generate(tiny.image_batch("image"))
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_modality(model, REGION)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_bfloat16_weights_are_rounded_once(kind: str, tmp_path: Path) -> None:
    """Bitwise the float32 sum, rounded. Logits: merging loses no more than bfloat16 does without it."""
    model = build(tmp_path, kind, device="cuda", llm_precision="bf16", **({"t5_precision": "bf16"} if kind == "t5" else {}))
    assert model.llm.dtype == torch.bfloat16
    export_llm(model, tmp_path / "out", modality=REGION, decoding=GREEDY)
    state = load_weights(tmp_path / "out")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    for name, layer in model.llm.model.named_modules():
        if isinstance(layer, ModalityLinear):
            change = layer.scaling * layer.lora_B[REGION] @ layer.lora_A[REGION]
            assert torch.equal(state[f"{name}.weight"], (layer.weight.float() + change).bfloat16())
    prefix = torch.randn(4, 4, model.llm.width, generator=torch.Generator().manual_seed(0))
    embeds, mask = model.llm.prompt_inputs(Behind(prefix, UNEVEN))
    merged = logits(load_plain(tmp_path / "out", kind, **{DTYPE_KEY: torch.bfloat16}), embeds, mask).float()
    with model.router.route(REGION):
        ours = logits(model.llm.model, embeds, mask).float()
        exact = logits(model.llm.model.float(), embeds.float(), mask)
    assert (merged - exact).std() < 0.02 * exact.std() and (ours - exact).std() < 0.02 * exact.std()


ELSEWHERE = """
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, file = sys.argv[1:]
prompts = load_file(file)
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
tokens = model.generate(inputs_embeds=prompts["inputs_embeds"], attention_mask=prompts["attention_mask"])
assert not [name for name in sys.modules if name.split(".")[0] == "lavis"]
print(json.dumps([text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]))
"""


def test_a_file_of_soft_prompts(model: Any, folder: Path, tmp_path: Path) -> None:
    """Says which adapters it is for, as the folder does."""
    embeds, mask = soft_prompts(model, BATCH)
    path = tmp_path / "prompts.safetensors"
    assert save_prompts(model, BATCH, path, about={"note": "four boxes"}) == embeds.shape
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["lavis"])
        assert torch.equal(file.get_tensor("inputs_embeds"), embeds) and torch.equal(file.get_tensor("attention_mask"), mask)
    made_of = json.loads((folder / "export.json").read_text())
    assert about["note"] == "four boxes" and about["modality"] == made_of["modality"] == REGION
    assert about["adapters_sha256"] == made_of["adapters_sha256"] and about["checkpoint"] is None


@pytest.mark.slow
def test_both_halves_work_without_this_package(tmp_path: Path) -> None:
    model = build(tmp_path, "opt")
    export_llm(model, tmp_path / "served", modality=REGION, decoding=GREEDY)
    save_prompts(model, BATCH, tmp_path / "prompts.safetensors")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "served"), str(tmp_path / "prompts.safetensors")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == model.generate(BATCH, num_beams=1, **LENGTHS)


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    model = build(tmp_path, "opt")

    def export(target: Path, exported: Any = model, modality: str = REGION) -> None:
        export_llm(exported, target, modality=modality, decoding=GREEDY)

    with pytest.raises(ConfigError, match="Unknown modality 'image_regoin'.*Did you mean 'image_region'.*Accepted: image, "):
        export(tmp_path / "out", modality="image_regoin")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for target, message in ((tmp_path / "full", "is not empty"), (tmp_path / "full" / "mine.txt", "is a file")):
        with pytest.raises(ConfigError, match=message):
            export(target)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    stage1, stage2 = (load_model_from_config(tiny.model_config(tmp_path, arch)) for arch in ("blip2", "blip2_opt"))
    with pytest.raises(ConfigError, match="arch blip2 has no language model"):
        export(tmp_path / "out", stage1, "image")
    with pytest.raises(ConfigError, match="blip2_opt has no adapters to merge"):
        export(tmp_path / "out", stage2, "image")
    with pytest.raises(ConfigError, match="no language model"):
        save_prompts(stage1, tiny.image_batch(), tmp_path / "prompts.safetensors")
    with pytest.raises(ConfigError, match="safetensors"):
        save_prompts(model, BATCH, tmp_path / "prompts.pt")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("prompts*"))
    (tmp_path / "empty").mkdir()
    export(tmp_path / "empty")
    assert (tmp_path / "empty" / "export.json").is_file()


def test_a_failure_among_the_shards_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tmp_path / "model", "opt")
    place = tmp_path / "here"
    written = []

    def full_disk(state: Any, filename: Any, *args: Any, **kwargs: Any) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(Path(filename))
        Path(filename).write_bytes(b"half")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr("transformers.modeling_utils.safe_save_file", full_disk)
        export_llm(model, place / "out", modality=REGION, decoding=GREEDY, shard_size="40KB")
    assert len(written) == 1 and not list(place.iterdir())
    export_llm(model, place / "out", modality=REGION, decoding=GREEDY, shard_size="40KB")
    assert [path.name for path in place.iterdir()] == ["out"]


def test_soft_prompts_of_stage_2_need_no_export(tmp_path: Path) -> None:
    """BLIP-2 has no adapters: its language model is plain as it is, and decodes its soft prompts."""
    model: Any = load_model_from_config(tiny.model_config(tmp_path, "blip2_opt")).eval()
    batch = tiny.image_batch()
    save_prompts(model, batch, tmp_path / "prompts.safetensors")
    embeds, mask = soft_prompts(model, batch)
    tokens = model.llm.model.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        max_new_tokens=9,
        min_new_tokens=4,
        eos_token_id=list(model.llm.dialect.ends),
        num_beams=1,
    )
    found = [text.strip() for text in model.llm.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    assert found == model.generate(batch, num_beams=1, **LENGTHS)
    with pytest.raises(ValueError, match="2 prompts for 4 rows"):
        soft_prompts(model, batch, prompts=["a", "b"])
