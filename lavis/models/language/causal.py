"""Causal language models of Hugging Face behind soft prompts: OPT as published, and any other family.

    input  = [prefix, <bos> text <end>]        the loss counts <bos> (predicted from the last query), text and end

OPT follows BLIP-2: the tokenizer's `</s>` starts every text and a newline ends it. Of other families (Llama, Qwen, SmolLM) the
tokenizer says how texts are written: a text starts with what it puts in front (Llama's <bos>; nothing where it puts nothing) and
ends with its end-of-sequence token; decoding also stops at the other end tokens that generation_config.json names. Special
tokens that a tokenizer lacks, or that it does not put there, are not added.
"""

from __future__ import annotations

import inspect
import itertools

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lavis.common.dist_utils import is_sharded
from lavis.common.errors import ConfigError
from lavis.models.language import beam
from lavis.models.language.base import Decoding, LanguageModel, load_hf_model, load_tokenizer
from lavis.models.language.scoring import CausalAnswers
from lavis.models.language.steps import RowStep, TreeStep
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
        self.max_txt_len = max_txt_len
        self.end_ids = self._find_end_ids(source)
        self.end_text: str = NEWLINE if self.is_opt else self.tokenizer.convert_ids_to_tokens(self.end_ids[0])
        self.pad_id = self._find_pad_id()
        self._appends_end = not self.is_opt and self.tokenizer("a").input_ids[-1:] == self.end_ids[:1]
        self.prompt_length = len(self.encode(prompt)) if prompt else 0  # leading targets that are masked, the start token too
        parameters = inspect.signature(self.model.forward).parameters
        self._known_choices: dict[str, tuple[list[str], list[list[int]]]] = {}  # by how questions end: answers and their ids
        self.places_tokens = "position_ids" in parameters  # whether the model lets a caller say where tokens stand
        self._takes_logits_to_keep = "logits_to_keep" in parameters

    def _find_end_ids(self, source: str) -> list[int]:
        """Ids that end a text, the one that training texts get first; ConfigError where there is none."""
        if self.is_opt:
            return [self.tokenizer(NEWLINE, add_special_tokens=False).input_ids[-1]]
        rows = self.model.get_input_embeddings().num_embeddings
        if self.tokenizer.vocab_size > rows:
            raise ConfigError(
                f"{source}: its tokenizer knows {self.tokenizer.vocab_size} tokens, its model {rows}; they are of two models"
            )
        named = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        found = [self.tokenizer.eos_token_id, *(named if isinstance(named, list | tuple) else [named])]
        ends = list(dict.fromkeys(int(end) for end in found if end is not None and end < rows))
        if not ends:
            raise ConfigError(f"{source}: neither its tokenizer nor generation_config.json names an end-of-sequence token")
        return ends

    def _find_pad_id(self) -> int:
        """The id that fills up rows; the end where the tokenizer has none (or one that the model has no embedding for)."""
        pad = self.tokenizer.pad_token_id
        known = pad is not None and pad < self.model.get_input_embeddings().num_embeddings
        return pad if known else self.end_ids[0]

    def encode(self, text: str) -> list[int]:
        """Ids of a text as the tokenizer opens it, and not closed (some tokenizers add the end themselves)."""
        ids = self.tokenizer(text).input_ids
        return ids[:-1] if self._appends_end else ids

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """`encode` of every text; in one call, and equal texts (prompts) once."""
        different = list(dict.fromkeys(texts))
        found = dict(zip(different, self.tokenizer(different).input_ids, strict=True))
        return [found[text][:-1] if self._appends_end else found[text] for text in texts]

    def tokenize(self, texts: list[str], *, side: str, truncate: bool = True) -> tuple[Tensor, Tensor]:
        """ids and mask [B, L], padded on `side`, cut to max_txt_len from the right."""
        return self._pad(self.encode_all(texts), side=side, truncate=truncate)

    def tokenize_targets(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """ids and mask [B, L] of closed texts, padded on the right; a text that is cut to max_txt_len loses its end."""
        if self.is_opt:  # the newline is part of the text, as published
            return self.tokenize([text + NEWLINE for text in texts], side="right")
        return self._pad([[*ids, self.end_ids[0]] for ids in self.encode_all(texts)], side="right", truncate=True)

    def _pad(self, encoded: list[list[int]], *, side: str, truncate: bool) -> tuple[Tensor, Tensor]:
        if truncate:
            encoded = [ids[: self.max_txt_len] for ids in encoded]
        longest = max(len(ids) for ids in encoded)
        ids = torch.full((len(encoded), longest), self.pad_id)
        mask = torch.zeros(len(encoded), longest, dtype=torch.long)
        for i, row in enumerate(encoded):
            place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
            ids[i, place] = torch.tensor(row, dtype=torch.long)
            mask[i, place] = 1
        device = self.model.device
        return ids.to(device), mask.to(device)

    def loss(self, prefix: Tensor, *, prompts: list[str], targets: list[str]) -> TokenLoss:
        """Targets are read as they are: a configured prompt is part of the text and only masked. `prompts` is not used."""
        ids, mask = self.tokenize_targets(targets)
        labels = ids.masked_fill(mask == 0, IGNORE)
        labels[:, : self.prompt_length] = IGNORE
        return token_cross_entropy(self.read(prefix, ids, mask), labels)

    def read(self, prefix: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, L, V] that predict ids [B, L], padded on the right as mask [B, L] says, behind prefix [B, P, H]."""
        embeds = torch.cat([prefix.to(self.dtype), self.embed(ids)], dim=1)
        seen = torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)
        wanted = torch.arange(prefix.shape[1] - 1, embeds.shape[1] - 1, device=embeds.device)  # each predicts the next position
        with self.attention():
            if self._takes_logits_to_keep:
                return self.model(inputs_embeds=embeds, attention_mask=seen, use_cache=False, logits_to_keep=wanted).logits
            return self.model(inputs_embeds=embeds, attention_mask=seen, use_cache=False).logits[:, wanted]

    def generate(self, prefix: Tensor, *, prompts: list[str], decoding: Decoding) -> list[str]:
        """Texts behind prefix and prompts, stripped."""
        rows = self.decode(prefix, prompts=prompts, decoding=decoding).sequences[:, 1:].tolist()
        texts = [list(itertools.takewhile(lambda token: token not in self.end_ids, row)) for row in rows]
        return [text.strip() for text in self.tokenizer.batch_decode(texts, skip_special_tokens=True)]

    def prompt_inputs(self, prefix: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """[padding, prefix, prompt] of every row: embeddings [B, P + L, H] and their mask.

        Published code pads between prefix and prompt, which is the same under the mask. Here the last position is always a real
        one, also for an empty prompt of a tokenizer that opens texts with nothing.
        """
        ids, mask = self.tokenize(prompts, side="left")
        embeds = torch.cat([prefix.to(self.dtype), self.embed(ids)], dim=1)
        queries, place = prefix.shape[1], torch.arange(embeds.shape[1], device=ids.device)
        behind_padding = place - (mask == 0).sum(dim=1, keepdim=True)  # [B, P + L], negative in the padding
        source = torch.where(behind_padding < 0, place + queries, torch.where(behind_padding < queries, behind_padding, place))
        return embeds.gather(1, source.unsqueeze(2).expand_as(embeds)), (behind_padding >= 0).long()

    @torch.no_grad()
    def decode(self, prefix: Tensor, *, prompts: list[str], decoding: Decoding) -> beam.Decoded:
        """As `generate`, but token sequences (a start token first) and scores."""
        embeds, seen = self.prompt_inputs(prefix, prompts)
        copies = decoding.num_captions if decoding.use_nucleus_sampling else decoding.num_beams
        budget = decoding.max_length if decoding.max_new_tokens is None else decoding.max_new_tokens + 1
        step = TreeStep if self.places_tokens else RowStep
        return beam.decode(
            step(self, embeds, seen, copies, room=budget),
            rows=len(prefix),
            start=self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.end_ids[0],
            eos=self.end_ids,
            pad=self.pad_id,
            max_length=budget,
            decoding=decoding,
            device=prefix.device,
            start_is_text=self.is_opt,
            sharded=is_sharded(self.model),
        )
