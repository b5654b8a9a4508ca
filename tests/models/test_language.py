"""The language interface against Hugging Face's own loss and generate, on tiny random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.models.language import Behind, CausalLM, Decoding, Seq2SeqLM
from lavis.models.language.base import pad_right
from lavis.models.losses import IGNORE
from tests import tiny

KINDS = ["opt", "llama", "t5"]
PROMPTS = ["a photo of", "a photo of a red square on the left", ""]


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("lms")
    settings = {"max_txt_len": 48, "dtype": torch.float32}
    return {
        "opt": CausalLM(tiny.opt_folder(folder / "opt"), **settings).eval(),
        "llama": CausalLM(tiny.llama_folder(folder / "llama"), **settings).eval(),
        "t5": Seq2SeqLM(tiny.t5_folder(folder / "t5"), **settings).eval(),
    }


def prefix_of(lm: Any, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 4, lm.width, generator=torch.Generator().manual_seed(0))


def padded(lm: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of closed texts, padded on the right."""
    rows, device = lm.dialect.targets(texts), torch.device("cpu")
    return pad_right(rows, lm.dialect.pad, device), pad_right([[1] * len(row) for row in rows], 0, device)


def tokenized(lm: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the tokenizer itself makes of texts, padded on the right."""
    rows = [torch.tensor(lm.tokenizer(text).input_ids, dtype=torch.long) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=lm.dialect.pad)
    return ids, torch.tensor([[1] * len(row) + [0] * (ids.shape[1] - len(row)) for row in rows])


def encoder_input(lm: Any, prefix: torch.Tensor, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors and, as T5's tokenizer writes them, prompts: embeddings and mask."""
    ids, mask = tokenized(lm, prompts)
    return torch.cat([prefix, lm.embed(ids)], dim=1), torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_hugging_faces(lms: dict[str, Any], kind: str) -> None:
    lm = lms[kind]
    prefix, texts = prefix_of(lm), tiny.TEXTS[:3]
    loss = lm.loss(lm.caption_prompts(prefix, ""), texts)
    if kind == "t5":
        ids, mask = tokenized(lm, texts)
        embeds, seen = encoder_input(lm, prefix, [""] * 3)
        expected = lm.model(inputs_embeds=embeds, attention_mask=seen, labels=ids.masked_fill(mask == 0, IGNORE)).loss
    else:
        ids, mask = tokenized(lm, [text + lm.dialect.end_text for text in texts])
        assert (ids == lm.dialect.ends[0]).sum() >= 3, "every text is closed"
        labels = torch.cat([torch.full(prefix.shape[:2], IGNORE), ids.masked_fill(mask == 0, IGNORE)], dim=1)
        seen = torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)
        embeds = torch.cat([prefix, lm.embed(ids)], dim=1)
        expected = lm.model(inputs_embeds=embeds, attention_mask=seen, labels=labels).loss
    torch.testing.assert_close(loss.total / loss.count, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_hugging_faces(lms: dict[str, Any], kind: str) -> None:
    lm = lms[kind]
    prefix, new_tokens = prefix_of(lm, rows=2), 8
    decoding = Decoding(num_beams=1, max_new_tokens=new_tokens, min_length=0)
    ours = lm.decode(Behind(prefix, ["a photo of"] * 2), decoding).sequences[:, 1:]
    settings = {"max_new_tokens": new_tokens, "num_beams": 1, "do_sample": False, "pad_token_id": lm.tokenizer.pad_token_id}
    if kind == "t5":
        embeds, seen = encoder_input(lm, prefix, ["a photo of"] * 2)
        theirs = lm.model.generate(inputs_embeds=embeds, attention_mask=seen, **settings)[:, 1:]
    else:
        ids, mask = tokenized(lm, ["a photo of"] * 2)
        embeds = torch.cat([prefix, lm.embed(ids)], dim=1)
        seen = torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)
        theirs = lm.model.generate(inputs_embeds=embeds, attention_mask=seen, eos_token_id=list(lm.dialect.ends), **settings)
    assert torch.equal(ours[:, : theirs.shape[1]], theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 3])
def test_rows_of_a_batch_do_not_touch_each_other(lms: dict[str, Any], kind: str, beams: int) -> None:
    """Prompts of different lengths are padded; each row gets what it gets alone."""
    lm = lms[kind]
    prefix, decoding = prefix_of(lm), Decoding(num_beams=beams, max_length=9, min_length=3)
    together = lm.generate(Behind(prefix, PROMPTS), decoding)
    alone = [lm.generate(Behind(prefix[i : i + 1], [PROMPTS[i]]), decoding)[0] for i in range(3)]
    assert together == alone


@pytest.mark.parametrize("kind", KINDS)
def test_lengths(lms: dict[str, Any], kind: str) -> None:
    """The start token counts in max_length for causal models; T5 counts new tokens; min_length bans the end."""
    lm = lms[kind]
    extra = 0 if kind != "t5" else 1
    for beams in (1, 3):
        decoding = Decoding(num_beams=beams, max_length=7, min_length=7)
        sequences = lm.decode(Behind(prefix_of(lm), [""] * 3), decoding).sequences
        assert sequences.shape[1] == 7 + extra
        assert not torch.isin(sequences[:, 1:6], torch.tensor(lm.dialect.ends)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_several_captions(lms: dict[str, Any], kind: str) -> None:
    lm = lms[kind]
    beams = lm.decode(Behind(prefix_of(lm), [""] * 3), Decoding(num_beams=4, num_captions=2, max_length=8))
    assert len(beams.sequences) == 6 and beams.scores is not None
    assert (beams.scores.view(3, 2).diff(dim=1) <= 0).all(), "best first"
    torch.manual_seed(0)
    sampled = Decoding(use_nucleus_sampling=True, num_captions=5, max_length=8, top_p=0.95, temperature=2.0)
    texts = lm.generate(Behind(prefix_of(lm), [""] * 3), sampled)
    assert len(texts) == 15 and len(set(texts)) > 3
    with pytest.raises(ValueError, match="needs as many beams"):
        Decoding(num_beams=2, num_captions=3)


def test_repetition_penalty_changes_the_text(lms: dict[str, Any]) -> None:
    lm = lms["llama"]
    plain, penalised = (
        lm.generate(Behind(prefix_of(lm), [""] * 3), Decoding(num_beams=1, max_length=14, repetition_penalty=p))
        for p in (1.0, 5.0)
    )
    assert plain != penalised


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    folder = Path(tiny.llama_folder(tmp_path / "llama"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="no tokenizer could be read from"):
        CausalLM(str(folder), max_txt_len=8, dtype=torch.float32)


def test_a_folder_without_weights_is_random_and_says_so(tmp_path: Path) -> None:
    folder = Path(tiny.opt_folder(tmp_path / "opt"))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    assert CausalLM(str(folder), max_txt_len=8, dtype=torch.float32).is_random


def test_prompt_tokens_are_masked(tmp_path: Path) -> None:
    folder = tiny.opt_folder(tmp_path / "opt", dropout=0.0)
    plain = CausalLM(folder, max_txt_len=16, dtype=torch.float32)
    prompted = CausalLM(folder, max_txt_len=16, dtype=torch.float32, prompt="a photo of")
    counts = [int(lm.loss(Behind(prefix_of(lm, 1)), ["a photo of a red square"]).count) for lm in (plain, prompted)]
    assert counts[0] - counts[1] == len(plain.tokenizer("a photo of").input_ids)
