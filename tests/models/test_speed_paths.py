"""What is done to be fast gives what the plain way gives: decoding in place, rows that leave, weights held in autocast's type."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lavis.common.precision import building_for, frozen_dtype, lowered
from lavis.models import load_model_from_config
from lavis.models.language import Behind, CausalLM, Decoding, Seq2SeqLM, beam, causal
from lavis.models.language.steps import CausalRows, RowStep
from lavis.models.qformer.attention import attend
from tests import tiny

ROWS, BEAMS = 7, 3


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("lms")
    settings = {"max_txt_len": 48, "dtype": torch.float32}
    return {
        "opt": CausalLM(tiny.opt_folder(folder / "opt"), **settings).eval(),
        "llama": CausalLM(tiny.llama_folder(folder / "llama"), **settings).eval(),
        "t5": Seq2SeqLM(tiny.t5_folder(folder / "t5"), **settings).eval(),
    }


def rows_of_their_own(lm: CausalLM, embeds: torch.Tensor, mask: torch.Tensor, copies: int, *, room: int) -> RowStep:
    return RowStep(CausalRows(lm, embeds, mask, room=room), copies)


def without_cache(lm: Any, prefix: torch.Tensor, prompts: list[str]) -> Any:
    """A decoding step that reads everything again, for rows whose number does not change."""
    rows = torch.arange(len(prefix)).repeat_interleave(BEAMS)
    if isinstance(lm, Seq2SeqLM):
        embeds, mask = lm.prompt_inputs(Behind(prefix, prompts))

        def step(tokens: torch.Tensor, origin: torch.Tensor | None) -> torch.Tensor:
            given = {"inputs_embeds": embeds[rows], "attention_mask": mask[rows]}
            return lm.model(**given, decoder_input_ids=tokens, use_cache=False).logits[:, -1]
    else:
        embeds, mask = lm.prompt_inputs(Behind(prefix, prompts))

        def step(tokens: torch.Tensor, origin: torch.Tensor | None) -> torch.Tensor:
            seen = torch.cat([mask[rows], torch.ones(len(rows), tokens.shape[1] - 1, dtype=torch.long)], dim=1)
            both = torch.cat([embeds[rows], lm.embed(tokens[:, 1:])], dim=1)
            place = (seen.cumsum(dim=1) - 1).clamp(min=0)
            extra = {"position_ids": place} if lm.places_tokens else {}
            return lm.model(inputs_embeds=both, attention_mask=seen, use_cache=False, **extra).logits[:, -1]

    return step


@pytest.mark.parametrize(
    ("kind", "side_by_side"), [("opt", True), ("llama", True), ("opt", False), ("llama", False), ("t5", False)]
)
def test_beams_say_what_they_say_without_any_cache(
    lms: dict[str, Any], kind: str, side_by_side: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = copy.copy(lms[kind])
    if kind != "t5":
        assert lm.places_tokens
        if not side_by_side:
            monkeypatch.setattr(causal, "TreeStep", rows_of_their_own)
    prefix = 3 * torch.randn(ROWS, 4, lm.width, generator=torch.Generator().manual_seed(3))
    prompts = ["a photo of", "", "a red square on the left", "a", "two green", "a blue circle", ""]
    decoding = Decoding(num_beams=BEAMS, max_length=14, min_length=2)
    sizes: list[int] = []
    plain = type(lm.model).forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        sizes.append(out.logits.shape[:2].numel())
        return out

    monkeypatch.setattr(type(lm.model), "forward", counted)
    ours = lm.decode(Behind(prefix, prompts), decoding)
    monkeypatch.undo()
    assert sizes[0] >= ROWS and max(sizes[1:]) == ROWS * BEAMS
    monkeypatch.setattr(beam, "KEEP_UP_TO", 0.0)
    start = ours.sequences[0, 0].item()
    eos, pad = list(lm.dialect.ends), lm.dialect.pad
    settings = {"max_length": 14 if kind != "t5" else 15, "decoding": decoding, "device": torch.device("cpu")}
    with torch.no_grad():
        step = without_cache(lm, prefix, prompts)
        expected = beam.decode(step, rows=ROWS, start=start, eos=eos, pad=pad, start_is_text=kind == "opt", **settings)
    assert torch.equal(ours.sequences, expected.sequences)
    torch.testing.assert_close(ours.scores, expected.scores, atol=1e-5, rtol=1e-5)


def test_rows_that_are_done_leave_and_the_rest_go_on() -> None:
    """A language of five tokens in which row r ends after r + 2 of them; token 1 ends a text."""
    seen: list[int] = []
    read = torch.arange(6).repeat_interleave(2)

    def step(tokens: torch.Tensor, origin: torch.Tensor | None) -> torch.Tensor:
        nonlocal read
        read = read if origin is None else read[origin]
        seen.append(len(tokens))
        logits = torch.zeros(len(tokens), 5)
        ends = tokens.shape[1] >= read + 2
        logits[:, 1] = torch.where(ends, 20.0, -20.0)
        logits[torch.arange(len(tokens)), 2 + read % 3] = 5.0
        return logits

    settings = {"rows": 6, "start": 0, "eos": [1], "pad": 0, "max_length": 12, "device": torch.device("cpu")}
    found = beam.decode(step, decoding=Decoding(num_beams=2, min_length=0), **settings).sequences
    assert seen[0] == 12 and seen[-1] < 6 and sorted(seen, reverse=True) == seen
    for row, text in enumerate(found.tolist()):
        body = text[1 : text.index(1)]
        assert body == [2 + row % 3] * (row + 1), text


def model_of(folder: Path, autocast: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = tiny.model_config(folder, "regionblip_opt", llm_dropout=False, llm_precision="fp32", freeze_qformer=True)
    model = load_model_from_config(config, autocast=autocast)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(len(name)))
    return model.train()


@pytest.mark.parametrize("modality", ["image_region", "pointcloud"])
def test_frozen_layers_held_in_bfloat16_give_the_losses_of_autocast_bit_by_bit(tmp_path: Path, modality: str) -> None:
    held, plain = model_of(tmp_path, torch.bfloat16), model_of(tmp_path, torch.float32)
    types = {name: p.dtype for name, p in held.named_parameters()}
    assert types["Qformer.bert.encoder.layer.0.attention.self.query.weight"] == torch.bfloat16
    assert {types[name] for name, p in held.named_parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert types["point_encoder.blocks.blocks.0.mlp.fc1.weight"] == torch.bfloat16
    found = []
    for model in (held, plain):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(tiny.batch_of(modality, rows=3))
        losses.loss.backward()
        found.append((dict(losses), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    for name, value in found[0][0].items():
        assert torch.equal(value, found[1][0][name]), name
    assert found[0][1].keys() == found[1][1].keys()
    for name, grad in found[0][1].items():
        assert torch.equal(grad, found[1][1][name]), name


def test_on_a_cpu_low_precision_is_for_autocast_alone() -> None:
    assert frozen_dtype("fp16", "key") == torch.float32
    with building_for("cpu", autocast=torch.bfloat16):
        assert frozen_dtype("fp16", "key") == torch.bfloat16
        assert frozen_dtype("fp32", "key") == torch.float32
    with building_for("cuda", autocast=torch.bfloat16):
        assert frozen_dtype("fp16", "key") == torch.float16
    assert frozen_dtype("fp16", "key") == torch.float32


@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_is_the_fused_one(masked: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, length, 8, generator=draw).bfloat16() for length in (5, 9, 9)]
    plain, fused = ([part.clone().requires_grad_() for part in parts] for _ in range(2))
    mask = torch.rand(2, 1, 5, 9, generator=draw) > 0.3 if masked else None
    out, expected = attend(*plain, mask), F.scaled_dot_product_attention(*fused, attn_mask=mask)
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)  # bfloat16 has 8 bits
    for side in (out, expected):
        side.float().square().sum().backward()
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=5e-2, rtol=5e-2)


def test_converted_once_is_converted_as_autocast_does() -> None:
    x = torch.randn(3, 4)
    assert lowered(x) is x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lowered(x).dtype == torch.bfloat16
        layer = copy.deepcopy(torch.nn.Linear(4, 4))
        assert torch.equal(layer(lowered(x)), layer(x))
