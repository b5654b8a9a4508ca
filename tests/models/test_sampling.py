"""Nucleus sampling against Hugging Face's own, and decoding in processes that are done at different times."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common import dist_utils
from lavis.models import load_model_from_config
from lavis.models.inference.generate import prompts_of
from lavis.models.language import Behind, Decoding
from lavis.models.language.beam import TOP_K
from tests import tiny
from tests.distributed import run_distributed
from tests.models.test_answers import ARCHS, KINDS, lms, models  # noqa: F401  (fixtures)
from tests.models.test_language import encoder_input, prefix_of

PROMPTS = ["a photo of", "a photo of"]


def theirs(lm: Any, prefix: torch.Tensor, **settings: Any) -> torch.Tensor:
    """New tokens by transformers' generate."""
    settings |= {"do_sample": True, "num_beams": 1, "pad_token_id": lm.tokenizer.pad_token_id}
    embeds, seen = encoder_input(lm, prefix, PROMPTS)
    if lm.model.config.is_encoder_decoder:
        return lm.model.generate(inputs_embeds=embeds, attention_mask=seen, **settings)[:, 1:]
    return lm.model.generate(inputs_embeds=embeds, attention_mask=seen, eos_token_id=list(lm.dialect.ends), **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_hugging_faces(lms: dict[str, Any], kind: str) -> None:  # noqa: F811
    """The same seed draws the same tokens. A penalty on repetition is left out: theirs does not know of the start token."""
    lm = lms[kind]
    prefix = prefix_of(lm, rows=2)
    decoding = Decoding(use_nucleus_sampling=True, num_captions=3, max_new_tokens=9, min_length=0, top_p=0.8, temperature=4.0)
    torch.manual_seed(5)
    ours = lm.decode(Behind(prefix, PROMPTS), decoding).sequences[:, 1:]
    torch.manual_seed(5)
    expected = theirs(lm, prefix, num_return_sequences=3, max_new_tokens=9, top_p=0.8, temperature=4.0)
    assert len(ours) == 6 and torch.equal(ours, expected)
    assert len({tuple(row) for row in ours.tolist()}) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_nucleus_is_greedy(lms: dict[str, Any], kind: str) -> None:  # noqa: F811
    lm = lms[kind]
    prefix, lengths = prefix_of(lm), {"max_length": 9, "min_length": 3, "repetition_penalty": 1.3}
    greedy = lm.generate(Behind(prefix, tiny.TEXTS[:3]), Decoding(num_beams=1, **lengths))
    for settings in ({"top_p": 0.0}, {"top_p": 1e-6}, {"top_p": 1.0, "temperature": 1e-4}):
        sampled = Decoding(use_nucleus_sampling=True, num_captions=2, **lengths, **settings)
        texts = lm.generate(Behind(prefix, tiny.TEXTS[:3]), sampled)
        assert texts == [text for text in greedy for _ in range(2)], settings


@pytest.mark.parametrize("kind", KINDS)
def test_draws_stay_in_the_nucleus_and_follow_its_shares(lms: dict[str, Any], kind: str) -> None:  # noqa: F811
    lm = lms[kind]
    settings = {"max_new_tokens": 1, "min_length": 0}
    prefix, captured = prefix_of(lm, rows=1), []
    forward = lm.model.forward
    lm.model.forward = lambda *args, **kwargs: captured.append(out := forward(*args, **kwargs)) or out
    try:
        sampled = Decoding(use_nucleus_sampling=True, num_captions=400, top_p=0.5, **settings)
        torch.manual_seed(0)
        drawn = lm.decode(Behind(prefix, [""]), sampled).sequences[:, 1]
    finally:
        del lm.model.forward
    shares = captured[0].logits[0, -1].float().softmax(dim=-1)
    order = shares.argsort(descending=True)[:TOP_K]
    shares = shares / shares[order].sum()
    nucleus = order[: int((shares[order].cumsum(0) < 0.5).sum()) + 1]
    assert set(drawn.tolist()) <= set(nucleus.tolist())
    counted = float((drawn == order[0]).float().mean())
    assert counted == pytest.approx(float(shares[order[0]] / shares[nucleus].sum()), abs=0.1)


@pytest.mark.parametrize("arch", ARCHS)
def test_captions_of_a_model(models: dict[str, Any], arch: str) -> None:  # noqa: F811
    """As many as asked, those of a row next to each other, the same by the same seed, a prompt for each row."""
    model, batch = models[arch], tiny.image_batch(rows=3)
    batch["prompt"] = ["a photo of", "question: what color is the square? short answer:", "a red"]
    settings = {"use_nucleus_sampling": True, "num_captions": 4, "max_length": 8, "temperature": 1.5, "top_p": 0.95}
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model.generate(batch, **settings))
    assert len(drawn[0]) == 12 and drawn[0] == drawn[1] != drawn[2]
    greedy = model.generate(batch, num_beams=1, max_length=8)
    beams = model.generate(batch, num_beams=4, num_captions=2, max_length=8)
    narrow = model.generate(batch, **{**settings, "top_p": 0.0, "num_captions": 2})
    assert narrow == [text for text in greedy for _ in range(2)] and len(beams) == 6
    for row in range(3):
        alone = {"modality": "image", "image": batch["image"][row : row + 1], "prompt": batch["prompt"][row]}
        assert model.generate(alone, num_beams=1, max_length=8) == greedy[row : row + 1]
        assert model.generate(alone, num_beams=4, num_captions=2, max_length=8) == beams[2 * row : 2 * row + 2]
    with pytest.raises(ValueError, match="2 prompts for 3 rows"):
        model.generate({**batch, "prompt": ["a", "b"]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": 1.5}, "top_p must be from 0 to 1, got 1.5"),
        ({"top_p": -0.1}, "top_p must be from 0 to 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"num_captions": 0}, "num_captions must be at least 1"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(use_nucleus_sampling=True, **settings)


# Several processes


def build(config: dict[str, Any], *, hasty: bool) -> Any:
    """A model that counts its steps; `hasty`: what it says first is made the token that ends a text."""
    torch.manual_seed(0)
    model: Any = load_model_from_config(config).eval()
    lm = model.llm
    if hasty:
        with torch.no_grad(), model.router.route("image"):
            first = lm.decode(prompts_of(model, model.read(tiny.image_batch(rows=1))), Decoding(num_beams=1, max_length=3))
        lm.dialect = dataclasses.replace(lm.dialect, ends=(*lm.dialect.ends, int(first.sequences[0, 1])))
    model.steps = 0

    def count(*_: Any) -> None:
        model.steps += 1

    lm.model.register_forward_pre_hook(count)
    return model


def told(model: Any, rank: int) -> list[Any]:
    """Texts about one picture, or on rank 0 about three, and in how many steps of the language model."""
    batch = tiny.image_batch(rows=1 if rank else 3)
    ways: list[dict[str, Any]] = [
        {"num_beams": 1},
        {"num_beams": 3, "length_penalty": -3.0},
        {"use_nucleus_sampling": True, "top_p": 0.0},
    ]
    found = []
    for way in ways:
        model.steps = 0
        texts = model.generate(batch, max_length=20, min_length=0 if rank else 18, **way)
        found.append((texts, model.steps))
    return found


def captions(config: dict[str, Any], shard: bool) -> list[Any]:
    """What this process tells of its pictures, twice on rank 0 where nothing is sharded."""
    rank = dist_utils.get_rank()
    model = build(config, hasty=bool(rank))
    if shard:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        lm, mesh = model.llm.model, init_device_mesh("cpu", (2,))
        for block in [*lm.encoder.block, *lm.decoder.block] if config["arch"].endswith("t5") else lm.model.decoder.layers:
            fully_shard(block, mesh=mesh)
        assert dist_utils.is_sharded(model.llm)
    with dist_utils.single_process():
        found = told(model, rank)
        if not shard and not rank:
            assert told(model, rank) == found
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("shard", [False, True], ids=["whole", "sharded"])
def test_processes_that_are_done_at_different_times(tmp_path: Path, arch: str, shard: bool) -> None:
    """Nobody waits for ever, and each gets what one process gets alone. Sharded blocks are gathered in every step, so then
    all take the steps of the longest text."""
    if shard and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
        pytest.skip("FSDP of this torch needs CUDA")
    config = tiny.model_config(tmp_path / "model", arch)
    found = run_distributed(captions, config, shard, folder=tmp_path / "returned")
    alone = [told(build(config, hasty=bool(rank)), rank) for rank in range(2)]
    assert [[texts for texts, _ in rank] for rank in found] == [[texts for texts, _ in rank] for rank in alone]
    steps = [[count for _, count in rank] for rank in alone]
    assert steps[1][0] == steps[1][2] == 1 < min(steps[0]) and max(steps[1]) <= max(steps[0]), steps
    assert [[count for _, count in rank] for rank in found] == ([steps[0]] * 2 if shard else steps)
