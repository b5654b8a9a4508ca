"""RegionBLIP on current Hugging Face language models by `opt_model` alone: Qwen, Llama 3 and SmolLM families, tiny and random."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lavis.common.config import ConfigError
from lavis.models import load_model_from_config
from lavis.models.language import Behind, CausalLM, Decoding
from lavis.models.language.beam import processors
from lavis.models.losses import IGNORE
from lavis.models.qformer.lora import ModalityLinear
from tests import tiny, tiny_llms
from tests.models.test_language import padded

PROMPTS = ["a photo of", "a photo of a red square on the left", ""]
# family -> (token in front of a text, token behind it, all ends, what fills rows up)
FORMATS = {
    "qwen2": (None, "<|endoftext|>", {"<|endoftext|>"}, "<|endoftext|>"),
    "qwen3": (None, "<|im_end|>", {"<|im_end|>", "<|endoftext|>"}, "<|endoftext|>"),
    "qwen3_untied": (None, "<|im_end|>", {"<|im_end|>", "<|endoftext|>"}, "<|endoftext|>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", {"<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"}, "<|eot_id|>"),
    "smollm2": (None, "<|endoftext|>", {"<|endoftext|>"}, "<|endoftext|>"),
    "smollm3": (None, "<|im_end|>", {"<|im_end|>"}, "<|im_end|>"),
}


@pytest.fixture(scope="module", params=tiny_llms.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    tiny_llms.require(request.param)
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_llms.folder(tmp_path_factory.mktemp(family) / "llm", family))


@pytest.fixture(scope="module")
def lm(folder: Path) -> CausalLM:
    return CausalLM(str(folder), max_txt_len=24, dtype=torch.float32).eval()


def prefix_of(lm: CausalLM, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 4, lm.width, generator=torch.Generator().manual_seed(0))


def prompt_inputs(lm: CausalLM, prefix: torch.Tensor, prompts: list[str]) -> dict[str, torch.Tensor]:
    """What Hugging Face's generate is given: prefix and prompt of each row, padded on the left."""
    ids = [torch.tensor(lm.dialect.encode(text), dtype=torch.long) for text in prompts]
    rows = [torch.cat([queries, lm.embed(row)]) for queries, row in zip(prefix, ids, strict=True)]
    longest = max(len(row) for row in rows)
    embeds = torch.stack([torch.cat([torch.zeros(longest - len(row), lm.width), row]) for row in rows])
    return {"inputs_embeds": embeds, "attention_mask": torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])}


def test_the_tokenizer_says_how_a_text_is_written(family: str, lm: CausalLM) -> None:
    opens, closes, ends, pad = FORMATS[family]
    ids, mask = padded(lm, ["a white cube", "two green triangles and a small lamp"])
    assert mask.sum(dim=1).diff() > 0 and mask[1].all()
    tokens = [lm.tokenizer.convert_ids_to_tokens(row[seen.bool()].tolist()) for row, seen in zip(ids, mask, strict=True)]
    for row, text in zip(tokens, ["a white cube", "two green triangles and a small lamp"], strict=True):
        words = row[1:-1] if opens else row[:-1]
        assert lm.tokenizer.convert_tokens_to_string(words) == text and row[-1] == closes and (not opens or row[0] == opens)
    assert {lm.tokenizer.convert_ids_to_tokens(end) for end in lm.dialect.ends} == ends
    assert lm.tokenizer.convert_ids_to_tokens(lm.dialect.pad) == pad and set(ids[0][mask[0] == 0].tolist()) == {lm.dialect.pad}
    assert len(lm.dialect.encode("a white cube")) == mask[0].sum() - 1, "a prompt is not closed"


def test_loss_is_hugging_faces(lm: CausalLM) -> None:
    prefix, texts = prefix_of(lm), tiny.TEXTS[:3]
    loss = lm.loss(Behind(prefix), texts)
    ids, mask = padded(lm, texts)
    labels = torch.cat([torch.full(prefix.shape[:2], IGNORE), ids.masked_fill(mask == 0, IGNORE)], dim=1)
    seen = torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)
    expected = lm.model(inputs_embeds=torch.cat([prefix, lm.embed(ids)], dim=1), attention_mask=seen, labels=labels).loss
    torch.testing.assert_close(loss.total / loss.count, expected, atol=1e-5, rtol=1e-5)
    assert loss.count == mask.sum()


def test_padding_does_not_change_the_logits_of_a_row(lm: CausalLM) -> None:
    found: list[torch.Tensor] = []
    hook = lm.model.register_forward_hook(lambda module, args, out: found.append(out.logits.detach()))
    prefix, texts = prefix_of(lm), ["a white cube", tiny.TEXTS[1], ""]
    together = lm.loss(Behind(prefix), texts)
    alone = [lm.loss(Behind(prefix[i : i + 1]), [texts[i]]) for i in range(3)]
    hook.remove()
    torch.testing.assert_close(together.total, torch.stack([loss.total for loss in alone]).sum(), atol=1e-4, rtol=1e-5)
    for i in range(3):
        kept = min(found[0].shape[1], found[1 + i].shape[1])  # the last `text + 1` positions, from the last query on
        torch.testing.assert_close(found[0][i, :kept], found[1 + i][0, :kept], atol=1e-4, rtol=1e-4)


class EndAt:
    """Forward hook that makes the model end row 0 with a given token at its n-th call."""

    def __init__(self, call: int, token: int) -> None:
        self.call, self.token, self.calls = call, token, 0

    def __call__(self, module: Any, args: Any, out: Any) -> None:
        self.calls += 1
        if self.calls == self.call:
            out.logits[0, -1, self.token] = 1e4


def test_greedy_tokens_are_hugging_faces(lm: CausalLM) -> None:
    """Prompts of different lengths, so padded on the left; whichever end token comes, a row stops."""
    prefix, prompts, new_tokens = prefix_of(lm), PROMPTS, 8
    for end in [None, *lm.dialect.ends]:
        found = []
        for ours in (True, False):
            hook = lm.model.register_forward_hook(EndAt(4, end) if end is not None else EndAt(0, 0))
            if ours:
                decoding = Decoding(num_beams=1, max_new_tokens=new_tokens, min_length=0)
                found.append(lm.decode(Behind(prefix, prompts), decoding).sequences[:, 1:])
            else:
                settings = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": lm.dialect.pad}
                found.append(lm.model.generate(**prompt_inputs(lm, prefix, prompts), **settings))
            hook.remove()
        assert torch.equal(*found)
        if end is not None:
            assert found[0][0].tolist()[3:] == [end] + [lm.dialect.pad] * (new_tokens - 4)


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_of_a_batch_do_not_touch_each_other(lm: CausalLM, beams: int) -> None:
    prefix, decoding = prefix_of(lm), Decoding(num_beams=beams, max_length=9, min_length=3)
    together = lm.generate(Behind(prefix, PROMPTS), decoding)
    alone = [lm.generate(Behind(prefix[i : i + 1], [PROMPTS[i]]), decoding)[0] for i in range(3)]
    assert together == alone and all(together)


def test_beam_scores_are_the_log_probabilities_of_what_is_written(lm: CausalLM) -> None:
    """With the cache, left padding and moving beams a text has the score that one plain pass over it gives."""
    prefix = prefix_of(lm)
    decoded = lm.decode(Behind(prefix, PROMPTS), Decoding(num_beams=4, max_length=7, min_length=7))
    inputs, tokens = prompt_inputs(lm, prefix, PROMPTS), decoded.sequences[:, 1:]
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], dim=1)
    embeds = torch.cat([inputs["inputs_embeds"], lm.embed(tokens)], dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = lm.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits[:, -tokens.shape[1] - 1 : -1]
    chosen = logits.log_softmax(dim=-1).gather(2, tokens.unsqueeze(2)).sum(dim=(1, 2))
    torch.testing.assert_close(decoded.scores, chosen / decoded.sequences.shape[1], atol=1e-4, rtol=1e-4)


def test_nucleus_sampling(lm: CausalLM) -> None:
    prefix = prefix_of(lm)
    greedy = lm.generate(Behind(prefix, PROMPTS), Decoding(num_beams=1, max_length=8))
    narrow = Decoding(use_nucleus_sampling=True, max_length=8, top_p=1e-6, num_captions=2)
    assert lm.generate(Behind(prefix, PROMPTS), narrow) == [text for text in greedy for _ in range(2)]
    torch.manual_seed(0)
    wide = Decoding(use_nucleus_sampling=True, max_length=8, top_p=0.95, temperature=3.0, num_captions=4)
    assert len(set(lm.generate(Behind(prefix, PROMPTS), wide))) > 6


def regionblip(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    base = tiny.model_config(folder.parent, "regionblip_opt", **changes)
    return load_model_from_config({**base, "opt_model": str(folder)})


def test_regionblip_learns_through_adapters_and_comes_back(folder: Path, lm: CausalLM) -> None:
    model = regionblip(folder, enable_aux_regloss=True)
    names = {name.rsplit(".", 1)[-1] for name, module in model.llm.named_modules() if isinstance(module, ModalityLinear)}
    assert names == {"q_proj", "v_proj"} and model.branches["image_region"].llm_proj.out_features == lm.width == model.llm.width
    frozen = {name: p.detach().clone() for name, p in model.llm.named_parameters() if ".lora_" not in name}
    batch = tiny.image_batch("image_region")
    optimizer = torch.optim.AdamW(model.get_optimizer_params(weight_decay=0.05), lr=5e-3)
    history = []
    for _ in range(8):
        losses = model.train()(batch)
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
        history.append(losses.loss_llm.item())
    assert all(after < before for before, after in pairwise(history)) and history[-1] < 0.95 * history[0]
    assert any(p.abs().max() > 0 for name, p in model.llm.named_parameters() if ".lora_B.image_region" in name)
    assert all(torch.equal(p, frozen[name]) for name, p in model.llm.named_parameters() if name in frozen)
    state = model.trainable_state_dict()
    assert not any(name.startswith("llm.") and ".lora_" not in name for name in state)

    other = regionblip(folder, enable_aux_regloss=True)
    report = other.load_checkpoint({"model": state, "frozen_bases": model.frozen_bases()})
    assert set(report.loaded) == set(state) and not report.ignored
    settings: dict[str, Any] = {"num_beams": 3, "max_length": 8, "min_length": 3}
    assert model.eval().generate(batch, **settings) == other.eval().generate(batch, **settings)
    assert torch.equal(model(batch).loss_llm, other(batch).loss_llm)
    questions = {**batch, "modality": "image", "text_input": ["what color is the square?"] * 4}
    assert len(model.predict_answers(questions, prompt="question: {} short answer:", num_beams=2)) == 4


def test_checkpointing_gives_the_same_gradients(folder: Path) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = regionblip(folder, llm_grad_checkpoint=checkpointed).train()
        model(tiny.image_batch("image_region")).loss_llm.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1]) and any(name.startswith("llm.") for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_a_start_token_that_only_counts_is_not_penalised() -> None:
    tokens, scores = torch.tensor([[2, 3]]), torch.ones(1, 5)
    decoding = Decoding(num_beams=1, min_length=0, repetition_penalty=2.0)
    for start_is_text, expected in ((True, [1, 1, 0.5, 0.5, 1]), (False, [1, 1, 1, 0.5, 1])):
        chain = processors(decoding, [2], torch.device("cpu"), start_is_text=start_is_text)
        assert chain(tokens, scores.clone())[0].tolist() == expected


def edit(name: str, **changes: Any) -> Any:
    """A change of a JSON file in a model folder; a value None removes the key."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return change


def test_a_tokenizer_that_adds_the_end_itself_adds_no_second(tmp_path: Path) -> None:
    def closing(folder: Path) -> None:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).backend_tokenizer
        ids = tokenizer.get_vocab()
        single = "<|begin_of_text|> $A <|eot_id|>"
        special = [(token, ids[token]) for token in ("<|begin_of_text|>", "<|eot_id|>")]
        tokenizer.post_processor = tiny_llms.processors.TemplateProcessing(single=single, special_tokens=special)
        tokenizer.save(str(folder / "tokenizer.json"))

    plain, closed = (
        CausalLM(tiny_llms.folder(tmp_path / str(i), "llama3", change=change), max_txt_len=16, dtype=torch.float32)
        for i, change in enumerate((None, closing))
    )
    assert closed.tokenizer("a").input_ids[-1] == closed.dialect.ends[0]
    for text in ("a white cube", ""):
        assert plain.dialect.encode(text) == closed.dialect.encode(text)
        assert plain.dialect.targets([text]) == closed.dialect.targets([text])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("config.json", model_type="qwen99"), "no language model at .*qwen99"),
        (
            edit("config.json", model_type="t5", architectures=["T5ForConditionalGeneration"]),
            "holds a t5; a causal language model",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 40), r"\(llama\) cannot be loaded as AutoModel"),
        (edit("config.json", vocab_size=90), "cannot be loaded as AutoModelForCausalLM|they are of two models"),
    ],
)
def test_bad_folders_are_named(tmp_path: Path, change: Any, message: str) -> None:
    folder = tiny_llms.folder(tmp_path / "llm", "smollm2", change=change)
    with pytest.raises(ConfigError, match=message):
        CausalLM(folder, max_txt_len=8, dtype=torch.float32)


def test_a_folder_without_an_end_token_is_named(tmp_path: Path) -> None:
    folder = Path(tiny_llms.folder(tmp_path / "llm", "llama3", change=edit("tokenizer_config.json", eos_token=None)))
    for name in ("config.json", "generation_config.json"):
        edit(name, eos_token_id=None)(folder)
    edit("config.json", eos_token_id=10**6)(folder)
    with pytest.raises(ConfigError, match="names an end-of-sequence token"):
        CausalLM(str(folder), max_txt_len=8, dtype=torch.float32)


def test_a_tokenizer_of_a_larger_model_is_named(tmp_path: Path) -> None:
    folder = tiny_llms.folder(tmp_path / "llm", "smollm2", change=lambda folder: (folder / "model.safetensors").unlink())
    edit("config.json", vocab_size=90)(Path(folder))
    with pytest.raises(ConfigError, match="its tokenizer knows .* tokens, its model 90; they are of two models"):
        CausalLM(folder, max_txt_len=8, dtype=torch.float32)
