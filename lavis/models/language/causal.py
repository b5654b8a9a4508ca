"""Causal language models of Hugging Face behind prompts of text and vectors: OPT as published, and any other family.

input  = [prompt, target]        the loss counts the target and its end; where the prompt has no text behind its vectors,
                                 also the token that opens the target (predicted from the last vector)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from lavis.common.dist_utils import is_sharded
from lavis.models.language import beam, dialects
from lavis.models.language.base import Decoding, LanguageModel, load_hf_model, load_tokenizer, pad_right
from lavis.models.language.dialects import DialectOf, Piece, joined
from lavis.models.language.prompt import Behind, Prompt
from lavis.models.language.scoring import best_of
from lavis.models.language.steps import CausalRows, RowStep, TreeStep
from lavis.models.losses import IGNORE, TokenLoss, token_cross_entropy


class CausalLM(LanguageModel):
    """OPT, Llama and other decoder-only models, unmodified."""

    lora_targets = r"q_proj|v_proj"
    answer_length_penalty = 0.0

    def __init__(
        self, source: str, *, max_txt_len: int, dtype: torch.dtype, prompt: str = "", dialect: DialectOf | None = None
    ) -> None:
        """`dialect`: how the model is written to; by default what `dialects.of_causal` knows of its family."""
        super().__init__()
        self.model, self.is_random = load_hf_model(AutoModelForCausalLM, source, dtype=dtype)
        family = self.model.config.model_type
        tokenizer = load_tokenizer(source, **({"use_fast": False} if family == "opt" else {}))
        self.dialect = (dialect or dialects.of_causal(family))(tokenizer, self.model, max_txt_len)
        self.prompt_length = len(self.dialect.encode(prompt)) if prompt else 0  # leading targets that are masked, the start too
        parameters = inspect.signature(self.model.forward).parameters
        self.places_tokens = "position_ids" in parameters  # whether the model lets a caller say where tokens stand
        self.takes_logits_to_keep = "logits_to_keep" in parameters

    def caption_prompts(self, vectors: Tensor, prompt: str) -> Sequence[Prompt]:
        """Vectors alone: captions are read as they are, a configured prompt is part of them and only masked."""
        return Behind(vectors)

    def _target(self, prompt: Prompt, target: str, opened: list[int]) -> tuple[list[int], list[int]]:
        """Ids of a target behind a prompt, and their labels. `opened`: its ids where it opens itself."""
        if prompt.last_text is not None:
            ids = self.dialect.answer(prompt.last_text, target)
            return ids, ids
        masked = min(len(opened), self.prompt_length)
        return opened, [IGNORE] * masked + opened[masked:]

    def loss(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> TokenLoss:
        """Targets behind vectors open themselves and are cut to max_txt_len; behind a text they go on from it, uncut."""
        own = [text for prompt, text in zip(prompts, targets, strict=True) if prompt.last_text is None]
        opened = iter(self.dialect.targets(own))
        rows: list[list[Piece]] = []
        labels: list[list[int]] = []
        for prompt, pieces, text in zip(prompts, self.dialect.pieces(prompts), targets, strict=True):
            ids, counted = self._target(prompt, text, [] if prompt.last_text is not None else next(opened))
            before = sum(map(len, pieces))
            rows.append(joined([*pieces, ids]))
            labels.append([IGNORE] * before + counted)
        begin = max(1, min(sum(map(len, row[:-1])) for row in rows))  # what stands before is never a target
        embeds, seen = self.assemble(rows, prompts, side="right")
        return token_cross_entropy(self._read(embeds, seen, begin), pad_right(labels, IGNORE, embeds.device)[:, begin:])

    def _read(self, embeds: Tensor, seen: Tensor, begin: int) -> Tensor:
        """Logits [B, L - begin, V] that predict the positions from `begin` on of embeds [B, L, H] under a mask [B, L]."""
        wanted = torch.arange(begin - 1, embeds.shape[1] - 1, device=embeds.device)  # each predicts the next position
        with self.attention():
            if self.takes_logits_to_keep:
                return self.model(inputs_embeds=embeds, attention_mask=seen, use_cache=False, logits_to_keep=wanted).logits
            return self.model(inputs_embeds=embeds, attention_mask=seen, use_cache=False).logits[:, wanted]

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Texts behind the prompts, stripped."""
        rows = self.decode(prompts, decoding).sequences[:, 1:].tolist()
        texts = [self.dialect.text_before_end(row) for row in rows]
        return [text.strip() for text in self.tokenizer.batch_decode(texts, skip_special_tokens=True)]

    def prompt_inputs(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """[padding, prompt] of every entry: embeddings [B, L, H] and their mask.

        Published code pads between vectors and text, which is the same under the mask. Here the last position is always a real
        one, also for an empty text of a tokenizer that opens texts with nothing.
        """
        return self.assemble(self.dialect.pieces(prompts), prompts, side="left")

    @torch.no_grad()
    def decode(self, prompts: Sequence[Prompt], decoding: Decoding) -> beam.Decoded:
        """As `generate`, but token sequences (a start token first) and scores."""
        embeds, seen = self.prompt_inputs(prompts)
        copies = decoding.num_captions if decoding.use_nucleus_sampling else decoding.num_beams
        budget = decoding.max_length if decoding.max_new_tokens is None else decoding.max_new_tokens + 1
        return beam.decode(
            TreeStep(self, embeds, seen, copies, room=budget) if self.places_tokens
            else RowStep(CausalRows(self, embeds, seen, room=budget), copies),
            rows=len(embeds),
            start=self.dialect.start,
            eos=list(self.dialect.ends),
            stops=self.dialect.stops,
            pad=self.dialect.pad,
            max_length=budget,
            decoding=decoding,
            device=embeds.device,
            start_is_text=self.dialect.start_is_text,
            sharded=is_sharded(self.model),
        )  # fmt: skip

    @torch.no_grad()
    def rank(self, prompts: Sequence[Prompt], answers: Sequence[str], candidates: int) -> list[str]:
        """The likeliest of the answers behind each prompt, which is read once, its candidates together."""
        best = []
        for prompt in prompts:
            embeds, _ = self.prompt_inputs([prompt])
            cache = DynamicCache()
            start = self.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True).logits[:, -1]

            def read(ids: Tensor, mask: Tensor, *, start: Tensor = start, cache: DynamicCache = cache) -> Tensor:
                cache.batch_repeat_interleave(len(ids))
                before = mask.new_ones(len(ids), cache.get_seq_length())
                seen = torch.cat([before, mask[:, :-1]], dim=1)
                rest = self.model(input_ids=ids[:, :-1], attention_mask=seen, past_key_values=cache, use_cache=True).logits
                return torch.cat([start.expand(len(ids), -1)[:, None], rest], dim=1)

            choices = self.dialect.choices(prompt.last_text or "", answers)
            best.append(answers[best_of(start[0], choices, candidates, self.dialect.pad, read)])
        return best
