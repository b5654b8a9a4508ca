"""Captions of a batch, by the language model or, in stage 1, by the Q-Former itself; with the pass that training uses.

Shapes: B rows, Q queries, H LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lavis.common.dist_utils import is_sharded
from lavis.models.language import Behind, Decoding, Prompt
from lavis.models.language.beam import decode

if TYPE_CHECKING:
    from lavis.models.batch import Batch
    from lavis.models.encoders.base import Samples
    from lavis.models.query_model import QueryModel


@torch.no_grad()
def generate(
    model: QueryModel,
    samples: Samples,
    use_nucleus_sampling: bool = False,
    num_beams: int = 5,
    max_length: int = 30,
    min_length: int = 1,
    top_p: float = 0.9,
    repetition_penalty: float = 1.0,
    length_penalty: float = 1.0,
    num_captions: int = 1,
    temperature: float = 1.0,
) -> list[str]:
    """Captions of a batch: B * num_captions texts.

    samples: what the modality needs (image and, for regions, box; `image_index` when regions share images), optionally
    `prompt`, one string or one per row. Lengths have the published meaning: the start token counts, so 30 is 29 new tokens
    of a causal LLM (and 30 of T5).
    """
    decoding = Decoding(
        num_beams=num_beams, max_length=max_length, min_length=min_length, length_penalty=length_penalty,
        repetition_penalty=repetition_penalty, use_nucleus_sampling=use_nucleus_sampling, top_p=top_p,
        temperature=temperature, num_captions=num_captions,
    )  # fmt: skip
    batch = model.read(samples)
    with model.router.route(batch.spec.name):
        if model.llm is None:
            return _by_qformer(model, batch, decoding)
        return model.llm.generate(prompts_of(model, batch), decoding)


def prompts_of(model: QueryModel, batch: Batch) -> Sequence[Prompt]:
    """What the language model is given of a batch: soft prompts [Q, H] and a text behind them. Inside a route only."""
    vectors = model.branch(batch.spec.name).to_llm(model.look(batch).hidden)
    return Behind(vectors, prompt_texts(model, batch))


def prompt_texts(model: QueryModel, batch: Batch) -> list[str]:
    """The text of every prompt: from the samples, else from the config, else the entry's own."""
    given = None if model.ignores_prompts else batch.prompt
    prompt = model.default_prompt(batch.spec) if given is None else given
    return [prompt] * batch.size if isinstance(prompt, str) else prompt


def _by_qformer(model: QueryModel, batch: Batch, decoding: Decoding) -> list[str]:
    """Stage 1 has no LLM: the Q-Former writes the caption itself, from `[DEC]` to `[SEP]`."""
    qformer, tokenizer = model.qformers[batch.spec.qformer], model.tokenizer
    looked = model.look(batch)
    copies = decoding.num_captions if decoding.use_nucleus_sampling else decoding.num_beams
    past = [type(kv)(*(t.repeat_interleave(copies, dim=0) for t in kv)) for kv in looked.cache]

    def step(ids: Tensor, origin: Tensor | None) -> Tensor:
        nonlocal past
        if origin is not None and len(origin) < len(past[0].key):
            past = [type(kv)(*(t[origin] for t in kv)) for kv in past]
        return qformer.lm_logits(qformer.lm_pass(ids, torch.ones_like(ids), past)[:, -1])

    decoded = decode(
        step, rows=batch.size, start=tokenizer.bos_token_id, eos=[tokenizer.sep_token_id], pad=tokenizer.pad_token_id,
        max_length=decoding.max_length, decoding=decoding, device=model.device,
        sharded=is_sharded(qformer),
    )  # fmt: skip
    return list(tokenizer.batch_decode(decoded.sequences, skip_special_tokens=True))
