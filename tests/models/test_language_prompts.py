"""Prompts of text and vectors in any order, and a dialect whose <bos> stands before everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.models.language import Behind, CausalLM, Decoding, Prompt, Seq2SeqLM
from lavis.models.language.beam import decode
from lavis.models.language.dialects import Dialect
from lavis.models.losses import IGNORE
from tests import tiny

STOP = "photo of"  # two tokens


def hashes(tokenizer: Any, model: Any, max_tokens: int) -> Dialect:
    """<bos>, vectors, text and an end that is text: how Click4Caption writes."""
    stop = tuple(tokenizer(STOP, add_special_tokens=False).input_ids)
    return Dialect(
        tokenizer, max_tokens, ends=(tokenizer.eos_token_id,), pad=tokenizer.eos_token_id, start=tokenizer.bos_token_id,
        end_text="###", bos=(tokenizer.bos_token_id,), opens_text=False, closes_by_text=True, cuts_prompts=False, stops=(stop,),
    )  # fmt: skip


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, settings = tmp_path_factory.mktemp("lms"), {"max_txt_len": 48, "dtype": torch.float32}
    llama = tiny.llama_folder(folder / "llama")
    return {
        "opt": CausalLM(tiny.opt_folder(folder / "opt"), **settings).eval(),
        "llama": CausalLM(llama, **settings).eval(),
        "hashes": CausalLM(llama, dialect=hashes, **settings).eval(),
        "t5": Seq2SeqLM(tiny.t5_folder(folder / "t5"), **settings).eval(),
    }


def mixed(lm: Any) -> list[Prompt]:
    draw = torch.Generator().manual_seed(0)
    one, two = (torch.randn(n, lm.width, generator=draw) for n in (3, 2))
    return [
        Prompt(("a red", one, "square on", two, "the left")),
        Prompt((two, "a photo of")),
        Prompt(("a blue circle", one)),
        Prompt((one,)),
        Prompt(("text alone",)),
    ]


@pytest.mark.parametrize("kind", ["opt", "llama", "hashes", "t5"])
def test_entries_of_any_order_are_read_as_they_are_alone(lms: dict[str, Any], kind: str) -> None:
    lm = lms[kind]
    prompts, targets = mixed(lm), tiny.TEXTS[:5]
    with torch.no_grad():
        together = lm.loss(prompts, targets)
        alone = [lm.loss([prompt], [target]) for prompt, target in zip(prompts, targets, strict=True)]
    torch.testing.assert_close(together.rows, torch.stack([loss.total for loss in alone]), atol=1e-3, rtol=1e-4)
    assert together.row_counts.tolist() == [int(loss.count) for loss in alone]
    decoding = Decoding(num_beams=3, max_length=8, min_length=3)
    assert lm.generate(prompts, decoding) == [lm.generate([prompt], decoding)[0] for prompt in prompts]
    answers = ["red", "a blue circle", "lamp"]
    assert lm.rank(prompts, answers, 3) == [lm.rank([prompt], answers, 3)[0] for prompt in prompts]


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_the_first_text_alone_is_opened(lms: dict[str, Any], kind: str) -> None:
    lm = lms[kind]
    prompt = mixed(lm)[0]
    embeds, mask = lm.prompt_inputs([prompt])
    parts = [s if not isinstance(s, str) else lm.embed(torch.tensor(lm.tokenizer(s, add_special_tokens=not i).input_ids))
             for i, s in enumerate(prompt.segments)]  # fmt: skip
    assert torch.equal(embeds[0], torch.cat(parts)) and mask.all()


def test_bos_before_the_vectors_and_an_end_that_is_text(lms: dict[str, Any]) -> None:
    lm = lms["hashes"]
    vectors = torch.randn(2, 4, lm.width, generator=torch.Generator().manual_seed(1))
    texts = ["a white cube", "two green triangles and a small lamp"]
    ids = [lm.tokenizer(f"{text}###", add_special_tokens=False).input_ids for text in texts]
    bos = lm.embed(torch.tensor([lm.tokenizer.bos_token_id]))
    with torch.no_grad():
        loss = lm.loss(Behind(vectors), texts)
        for row in range(2):
            embeds = torch.cat([bos, vectors[row], lm.embed(torch.tensor(ids[row]))])[None]
            labels = torch.tensor([[IGNORE] * 5 + ids[row]])
            expected = lm.model(inputs_embeds=embeds, labels=labels).loss * len(ids[row])
            torch.testing.assert_close(loss.rows[row], expected, atol=1e-3, rtol=1e-4)
    assert loss.row_counts.tolist() == list(map(len, ids))


def test_a_row_stops_behind_a_sequence_of_tokens(lms: dict[str, Any]) -> None:
    written = [5, 3, 4, 3, 6, 3, 4]

    def step(tokens: torch.Tensor, origin: torch.Tensor | None) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([written[tokens.shape[1] - 1], 6]), 8).float()

    decoding = Decoding(num_beams=1, min_length=0)
    found = decode(
        step, rows=2, start=0, eos=[1], stops=[(3, 6)], pad=2, max_length=8, decoding=decoding, device=torch.device("cpu")
    )
    assert found.sequences[0].tolist() == [0, 5, 3, 4, 3, 6, 2, 2]
    assert found.sequences[1].tolist() == [0] + [6] * 7
    dialect = lms["hashes"].dialect
    assert len(dialect.stops[0]) > 1
    assert dialect.text_before_end([7, 8, *dialect.stops[0], 9]) == [7, 8]
    assert dialect.text_before_end([7, dialect.ends[0], 9]) == [7] and dialect.text_before_end([7, 9]) == [7, 9]


def test_a_long_prompt_of_t5_is_cut_in_captions_alone(tmp_path: Path) -> None:
    lm = Seq2SeqLM(tiny.t5_folder(tmp_path / "t5"), max_txt_len=6, dtype=torch.float32).eval()
    vectors, prompt = torch.randn(2, 3, lm.width), "a photo of a red square on the left"
    cut = lm.tokenizer(prompt, truncation=True, max_length=6, return_tensors="pt").input_ids
    embeds, _ = lm.prompt_inputs(lm.caption_prompts(vectors, prompt))
    assert torch.equal(embeds, torch.cat([vectors, lm.embed(cut).expand(2, -1, -1)], dim=1))
    whole, _ = lm.prompt_inputs(Behind(vectors, [prompt] * 2))
    assert whole.shape[1] == 3 + len(lm.tokenizer(prompt).input_ids) > embeds.shape[1]


def test_bad_prompts_are_named() -> None:
    with pytest.raises(ValueError, match=r"a segment of a prompt has shape \(1, 2, 3\)"):
        Prompt((torch.zeros(1, 2, 3),))
    with pytest.raises(ValueError, match="1 texts for 2 rows"):
        Behind(torch.zeros(2, 3, 4), ["a"])
