"""T5 and Flan-T5 behind prompts of text and vectors.

    encoder input = [prompt, </s>]        decoder target = text </s>

As published, the feed-forward activation is the exact GELU instead of the tanh form that the config names; the gate stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput

from lavis.common.dist_utils import is_sharded
from lavis.models.language import beam, dialects
from lavis.models.language.base import Decoding, LanguageModel, load_hf_model, load_tokenizer, pad_right
from lavis.models.language.cache import BeamCache
from lavis.models.language.prompt import Behind, Prompt
from lavis.models.language.scoring import best_of
from lavis.models.language.steps import RowStep
from lavis.models.losses import IGNORE, TokenLoss, token_cross_entropy


class Seq2SeqLM(LanguageModel):
    """T5 models, unmodified but for the activation named in their config."""

    lora_targets = r"q|v"
    answer_length_penalty = -1.0

    def __init__(self, source: str, *, max_txt_len: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.is_random = load_hf_model(AutoModelForSeq2SeqLM, source, dtype=dtype, overrides={"dense_act_fn": "gelu"})
        if self.is_random:
            self._untie()
        self.dialect = dialects.t5(load_tokenizer(source), self.model, max_txt_len)

    def _untie(self) -> None:
        """Give a random model the output layer of its own that T5 1.1 and Flan-T5 have; transformers 5 ties it in any case."""
        head, shared = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        if head.weight is shared.weight and getattr(self.model.config, "scale_decoder_outputs", True) is False:
            head.weight = nn.Parameter(torch.empty_like(shared.weight).normal_(std=self.model.config.d_model**-0.5))
            self.model.config.tie_word_embeddings = False

    def use_activation(self, name: str) -> None:
        """Give the feed-forwards another activation, by transformers' name of it ("gelu", "gelu_new", ...)."""
        self.model.config.dense_act_fn = name
        for module in self.model.modules():
            if hasattr(module, "wo") and hasattr(module, "act"):
                module.act = ACT2FN[name]

    def caption_prompts(self, vectors: Tensor, prompt: str) -> Sequence[Prompt]:
        """Vectors and the prompt, which as published is cut to max_txt_len, its end token counted, in training alone."""
        ids = self.dialect.encode(prompt)
        room = self.dialect.max_tokens - 1
        if len(ids) <= room:
            return Behind(vectors, [prompt] * len(vectors))
        words = self.embed(torch.tensor(ids[:room], device=vectors.device)).to(vectors.dtype)
        return [Prompt((*one.segments, words)) for one in Behind(vectors)]

    def prompt_inputs(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """[prompt </s>, padding] of every entry for the encoder: embeddings [B, L, H] and their mask."""
        return self.assemble(self.dialect.pieces(prompts), prompts, side="right")

    def loss(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> TokenLoss:
        """Targets are cut to max_txt_len and keep their end token; prompts are read whole."""
        embeds, seen = self.prompt_inputs(prompts)
        texts = self.dialect.targets(targets)
        ids = pad_right(texts, self.dialect.pad, embeds.device)
        mask = pad_right([[1] * len(row) for row in texts], 0, embeds.device)
        with self.attention():
            logits = self.model(
                inputs_embeds=embeds,
                attention_mask=seen,
                decoder_input_ids=self._shifted(ids),
                decoder_attention_mask=mask,
                use_cache=False,
            ).logits
        return token_cross_entropy(logits, ids.masked_fill(mask == 0, IGNORE))

    def _shifted(self, ids: Tensor) -> Tensor:
        """What the decoder reads to predict ids [B, L]: the start token and all but the last."""
        return torch.cat([torch.full_like(ids[:, :1], self.dialect.start), ids[:, :-1]], dim=1)

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Texts behind the prompts; not stripped, as published."""
        return self.tokenizer.batch_decode(self.decode(prompts, decoding).sequences[:, 1:], skip_special_tokens=True)

    @torch.no_grad()
    def decode(self, prompts: Sequence[Prompt], decoding: Decoding) -> beam.Decoded:
        """As `generate`, but token sequences (the decoder's start token first) and scores."""
        embeds, seen = self.prompt_inputs(prompts)
        copies = decoding.num_captions if decoding.use_nucleus_sampling else decoding.num_beams
        new_tokens = decoding.max_length if decoding.max_new_tokens is None else decoding.max_new_tokens
        return beam.decode(
            RowStep(DecoderRows(self, embeds, seen, room=new_tokens), copies),
            rows=len(embeds),
            start=self.dialect.start,
            eos=list(self.dialect.ends),
            pad=self.dialect.pad,
            max_length=new_tokens + 1,
            decoding=decoding,
            device=embeds.device,
            sharded=is_sharded(self.model),
        )

    @torch.no_grad()
    def rank(self, prompts: Sequence[Prompt], answers: Sequence[str], candidates: int) -> list[str]:
        """The likeliest of the answers behind each prompt. The encoder reads a prompt once; answers are not cut."""
        embeds, seen = self.prompt_inputs(prompts)
        hidden = self.model.get_encoder()(inputs_embeds=embeds, attention_mask=seen).last_hidden_state
        choices = [[*ids, self.dialect.ends[0]] for ids in self.dialect.encode_all(answers)]
        best = []
        for place in range(len(prompts)):

            def read(ids: Tensor, mask: Tensor | None = None, *, row: slice = slice(place, place + 1)) -> Tensor:
                logits: Tensor = self.model(
                    encoder_outputs=BaseModelOutput(last_hidden_state=hidden[row].expand(len(ids), -1, -1)),
                    attention_mask=seen[row].expand(len(ids), -1),
                    decoder_input_ids=self._shifted(ids),
                    use_cache=False,
                ).logits
                return logits

            start = read(seen.new_zeros(1, 1))[0, -1]
            best.append(answers[best_of(start, choices, candidates, self.dialect.pad, read)])
        return best


class DecoderRows:
    """Rows that a decoder writes, with self- and cross-attention caches; the encoder runs once per entry."""

    def __init__(self, lm: Seq2SeqLM, embeds: Tensor, mask: Tensor, *, room: int) -> None:
        self.lm, self.mask = lm, mask
        self.hidden = lm.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        self.read = DynamicCache()
        self.written = BeamCache(room)
        self.cache = EncoderDecoderCache(self.written, self.read)

    def first(self, tokens: Tensor) -> Tensor:
        return self.next(tokens)

    def next(self, tokens: Tensor) -> Tensor:
        out = self.lm.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.hidden),
            attention_mask=self.mask,
            decoder_input_ids=tokens[:, -1:],
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = out.logits[:, -1]
        return logits

    def spread(self, copies: int) -> None:
        self.written.spread(copies)
        self._move_encoder(torch.arange(len(self.mask), device=self.mask.device).repeat_interleave(copies))

    def move(self, origin: Tensor) -> None:
        if len(origin) == len(self.mask):
            self.written.reorder(origin)  # beams move within their row, so what was read stays
        else:
            self.written.keep(origin)
            self._move_encoder(origin)

    def _move_encoder(self, rows: Tensor) -> None:
        """What the decoder reads of the encoder, for `rows` of those that it was."""
        self.read.reorder_cache(cast(torch.LongTensor, rows))
        self.mask, self.hidden = self.mask[rows], self.hidden[rows]
