"""Causal language models of Hugging Face behind soft prompts: OPT as published, and Llama-like models.

    input  = [prefix, <bos> text <end>]        the loss counts <bos> (predicted from the last query), text and end

OPT follows BLIP-2: the tokenizer's `</s>` starts every text and a newline ends it. Other families end with their own
end-of-sequence token; a tokenizer without a start token starts directly with the text.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from lavis.common.dist_utils import is_sharded
from lavis.common.errors import ConfigError
from lavis.models.language import beam
from lavis.models.language.answers import CausalAnswers
from lavis.models.language.base import Decoding, LanguageModel, load_hf_model, load_tokenizer
from lavis.models.losses import IGNORE, TokenLoss, token_cross_entropy

NEWLINE = "\n"


class CausalLM(CausalAnswers, LanguageModel):
    """OPT, Llama and other decoder-only models, unmodified."""

    lora_targets = r"q_proj|v_proj"
    answer_length_penalty = 0.0

    def __init__(self, source: str, *, max_txt_len: int, dtype: torch.dtype, prompt: str = "") -> None:
        super().__init__()
        self.model, self.is_random = load_hf_model(AutoModelForCausalLM, source, dtype=dtype)
        self.is_opt = self.model.config.model_type == "opt"
        self.tokenizer = load_tokenizer(source, **({"use_fast": False} if self.is_opt else {}))
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.max_txt_len = max_txt_len
        self.end_text = NEWLINE if self.is_opt else self.tokenizer.eos_token
        self.end_ids = [self._end_id()]
        self.prompt_length = self._prompt_length(prompt)
        parameters = inspect.signature(self.model.forward).parameters
        self._takes_positions = "position_ids" in parameters and not self.is_opt
        self._takes_logits_to_keep = "logits_to_keep" in parameters

    def _end_id(self) -> int:
        if self.end_text is None:
            raise ConfigError(f"the tokenizer of {self.model.name_or_path!r} has no end-of-sequence token")
        return self.tokenizer(self.end_text, add_special_tokens=False).input_ids[-1]

    def _prompt_length(self, prompt: str) -> int:
        """Leading targets that a configured prompt masks (the start token counts); 0 for an empty prompt."""
        return len(self.tokenizer(prompt).input_ids) if prompt else 0

    def tokenize(self, texts: list[str], *, side: str, truncate: bool = True) -> tuple[Tensor, Tensor]:
        """ids and mask [B, L], padded on `side`, cut to max_txt_len from the right."""
        encoded = [self.tokenizer(text).input_ids for text in texts]
        if truncate:
            encoded = [ids[: self.max_txt_len] for ids in encoded]
        longest = max(len(ids) for ids in encoded)
        ids = torch.full((len(encoded), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(encoded), longest, dtype=torch.long)
        for i, row in enumerate(encoded):
            place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
            ids[i, place] = torch.tensor(row, dtype=torch.long)
            mask[i, place] = 1
        device = self.model.device
        return ids.to(device), mask.to(device)

    def loss(self, prefix: Tensor, *, prompts: list[str], targets: list[str]) -> TokenLoss:
        """Targets are read as they are: a configured prompt is part of the text and only masked. `prompts` is not used."""
        ids, mask = self.tokenize([text + self.end_text for text in targets], side="right")
        labels = ids.masked_fill(mask == 0, IGNORE)
        labels[:, : self.prompt_length] = IGNORE
        return token_cross_entropy(self.read(prefix, ids, mask), labels)

    def read(self, prefix: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, L, V] that predict ids [B, L], padded on the right as mask [B, L] says, behind prefix [B, P, H]."""
        embeds = torch.cat([prefix.to(self.dtype), self.embed(ids)], dim=1)
        seen = torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)
        keep = {"logits_to_keep": ids.shape[1] + 1} if self._takes_logits_to_keep else {}
        logits = self.model(inputs_embeds=embeds, attention_mask=seen, use_cache=False, **keep).logits
        return logits[:, -ids.shape[1] - 1 : -1]

    def generate(self, prefix: Tensor, *, prompts: list[str], decoding: Decoding) -> list[str]:
        """Texts behind prefix and prompts, stripped. Prompts are padded on the left, between prefix and prompt."""
        decoded = self.decode(prefix, prompts=prompts, decoding=decoding)
        return [text.strip() for text in self.tokenizer.batch_decode(decoded.sequences[:, 1:], skip_special_tokens=True)]

    @torch.no_grad()
    def decode(self, prefix: Tensor, *, prompts: list[str], decoding: Decoding) -> beam.Decoded:
        """As `generate`, but token sequences (a start token first) and scores."""
        ids, mask = self.tokenize(prompts, side="left")
        embeds = torch.cat([prefix.to(self.dtype), self.embed(ids)], dim=1)
        seen = torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)
        copies = decoding.num_captions if decoding.use_nucleus_sampling else decoding.num_beams
        budget = decoding.max_length if decoding.max_new_tokens is None else decoding.max_new_tokens + 1
        return beam.decode(
            _CachedStep(self, embeds, seen, copies),
            rows=len(prefix),
            start=self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.end_ids[0],
            eos=self.end_ids,
            pad=self.tokenizer.pad_token_id,
            max_length=budget,
            decoding=decoding,
            device=prefix.device,
            sharded=is_sharded(self.model),
        )


class _CachedStep:
    """One decoding step with a key-value cache: the prompt is read once per row and then repeated for its beams."""

    def __init__(self, lm: CausalLM, embeds: Tensor, mask: Tensor, copies: int) -> None:
        self.lm, self.embeds, self.mask, self.copies = lm, embeds, mask, copies
        self.cache: Any = DynamicCache()

    def __call__(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
        if tokens.shape[1] == 1:
            logits = self._forward(inputs_embeds=self.embeds)
            if self.copies > 1:
                self.cache.batch_repeat_interleave(self.copies)
                self.mask = self.mask.repeat_interleave(self.copies, dim=0)
            return logits.repeat_interleave(self.copies, dim=0)
        if origin is not None:
            self.cache.reorder_cache(origin)  # beams move within their row, so the mask stays
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        return self._forward(input_ids=tokens[:, -1:])

    def _forward(self, **inputs: Tensor) -> Tensor:
        extra: dict[str, Any] = {}
        if self.lm._takes_positions:
            new = next(iter(inputs.values())).shape[1]
            extra["position_ids"] = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -new:]
        if self.lm._takes_logits_to_keep:
            extra["logits_to_keep"] = 1
        out = self.lm.model(**inputs, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **extra)
        return out.logits[:, -1]
