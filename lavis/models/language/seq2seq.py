"""T5 and Flan-T5 behind soft prompts.

    encoder input = [prefix, prompt </s>]        decoder target = text </s>

As published, the feed-forward activation is the exact GELU instead of the tanh form that the config names; the gate stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput

from lavis.common.dist_utils import is_sharded
from lavis.models.language import beam
from lavis.models.language.base import Decoding, LanguageModel, load_hf_model, load_tokenizer
from lavis.models.language.cache import BeamCache
from lavis.models.language.scoring import Seq2SeqAnswers
from lavis.models.losses import IGNORE, TokenLoss, token_cross_entropy


class Seq2SeqLM(Seq2SeqAnswers, LanguageModel):
    """T5 models, unmodified but for the activation named in their config."""

    lora_targets = r"q|v"
    answer_length_penalty = -1.0

    def __init__(self, source: str, *, max_txt_len: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.is_random = load_hf_model(AutoModelForSeq2SeqLM, source, dtype=dtype, overrides={"dense_act_fn": "gelu"})
        if self.is_random:
            self._untie()
        self.tokenizer = load_tokenizer(source)
        self.max_txt_len = max_txt_len

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

    def tokenize(self, texts: list[str], *, truncate: bool = True) -> tuple[Tensor, Tensor]:
        """ids and mask [B, L], padded on the right; `</s>` is kept when a text is cut to max_txt_len."""
        limits = {"truncation": True, "max_length": self.max_txt_len} if truncate else {}
        out = self.tokenizer(texts, padding="longest", return_tensors="pt", **limits).to(self.model.device)
        return out.input_ids, out.attention_mask

    def _encoder_input(self, prefix: Tensor, prompts: list[str], *, truncate: bool) -> tuple[Tensor, Tensor]:
        ids, mask = self.tokenize(prompts, truncate=truncate)
        embeds = torch.cat([prefix.to(self.dtype), self.embed(ids)], dim=1)
        return embeds, torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)

    def prompt_inputs(self, prefix: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """[prefix, prompt </s>, padding] of every row for the encoder: embeddings [B, P + L, H] and their mask."""
        return self._encoder_input(prefix, prompts, truncate=False)

    def loss(self, prefix: Tensor, *, prompts: list[str], targets: list[str], truncate: bool = True) -> TokenLoss:
        embeds, seen = self._encoder_input(prefix, prompts, truncate=truncate)
        ids, mask = self.tokenize(targets)
        labels = ids.masked_fill(mask == 0, IGNORE)
        start = torch.full_like(ids[:, :1], self.model.config.decoder_start_token_id)
        with self.attention():
            logits = self.model(
                inputs_embeds=embeds,
                attention_mask=seen,
                decoder_input_ids=torch.cat([start, ids[:, :-1]], dim=1),
                decoder_attention_mask=mask,
                use_cache=False,
            ).logits
        return token_cross_entropy(logits, labels)

    def generate(self, prefix: Tensor, *, prompts: list[str], decoding: Decoding) -> list[str]:
        """Texts behind prefix and prompts; not stripped, as published."""
        decoded = self.decode(prefix, prompts=prompts, decoding=decoding)
        return self.tokenizer.batch_decode(decoded.sequences[:, 1:], skip_special_tokens=True)

    @torch.no_grad()
    def decode(self, prefix: Tensor, *, prompts: list[str], decoding: Decoding) -> beam.Decoded:
        """As `generate`, but token sequences (the decoder's start token first) and scores."""
        embeds, seen = self._encoder_input(prefix, prompts, truncate=False)
        copies = decoding.num_captions if decoding.use_nucleus_sampling else decoding.num_beams
        new_tokens = decoding.max_length if decoding.max_new_tokens is None else decoding.max_new_tokens
        return beam.decode(
            _CachedStep(self, embeds, seen, copies, room=new_tokens),
            rows=len(prefix),
            start=self.model.config.decoder_start_token_id,
            eos=[self.model.config.eos_token_id],
            pad=self.tokenizer.pad_token_id,
            max_length=new_tokens + 1,
            decoding=decoding,
            device=prefix.device,
            sharded=is_sharded(self.model),
        )


class _CachedStep:
    """One decoder step with self- and cross-attention caches; the encoder runs once per row."""

    def __init__(self, lm: Seq2SeqLM, embeds: Tensor, mask: Tensor, copies: int, *, room: int) -> None:
        self.lm, self.mask, self.copies = lm, mask, copies
        self.hidden = lm.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        self.read: Any = DynamicCache()
        self.written = BeamCache(room)
        self.cache = EncoderDecoderCache(self.written, self.read)

    def __call__(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
        if tokens.shape[1] == 1:
            logits = self._forward(tokens[:: self.copies])
            self.written.spread(self.copies)
            self._spread_encoder(torch.arange(len(self.mask), device=tokens.device).repeat_interleave(self.copies))
            return logits.repeat_interleave(self.copies, dim=0)
        if origin is not None and len(origin) == len(self.mask):
            self.written.reorder(origin)  # beams move within their row, so what was read stays
        elif origin is not None:
            self.written.keep(origin)
            self._spread_encoder(origin)
        return self._forward(tokens[:, -1:])

    def _spread_encoder(self, rows: Tensor) -> None:
        """What the decoder reads of the encoder, for `rows` of those that it was."""
        self.read.reorder_cache(rows)
        self.mask, self.hidden = self.mask[rows], self.hidden[rows]

    def _forward(self, tokens: Tensor) -> Tensor:
        out = self.lm.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.hidden),
            attention_mask=self.mask,
            decoder_input_ids=tokens,
            past_key_values=self.cache,
            use_cache=True,
        )
        return out.logits[:, -1]
