"""One decoding step of a causal model: the logits of the next token of every beam, with the keys and values of what was read.

`TreeStep` reads the beams of a row as tokens that stand side by side at one place of one sequence. Each sees the prompt and, of
what stands behind it, its own ancestors alone. Nothing is moved when beams change places, and all of them share the prompt.
`RowStep` reads every beam as a row of its own, for decoders behind an encoder and for models that do not let a caller say where
a token stands.

Shapes: B rows, K beams of each, P prompt positions, H width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from lavis.models.language.cache import BeamCache

if TYPE_CHECKING:
    from lavis.models.language.causal import CausalLM


class TreeStep:
    """embeds [B, P, H] and mask [B, P] of the prompts; `copies` is K; at most `room` tokens follow."""

    def __init__(self, lm: CausalLM, embeds: Tensor, mask: Tensor, copies: int, *, room: int) -> None:
        self.lm, self.embeds, self.mask, self.copies = lm, embeds, mask, copies
        self.cache = BeamCache(room * copies)
        self.place = mask.sum(dim=1)  # [B] of the coming token
        self.seen = mask.bool()[:, None].expand(-1, copies, -1)  # [B, K, read so far]
        self.beside = torch.eye(copies, dtype=torch.bool, device=mask.device)

    def __call__(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
        if tokens.shape[1] == 1:
            logits = forward(self.lm, self.cache, self.mask, inputs_embeds=self.embeds)[:, -1]
            self.cache.spread(1)
            return logits.repeat_interleave(self.copies, dim=0)
        if origin is not None:
            self._follow(origin.view(-1, self.copies))
        rows = len(self.seen)
        self.seen = torch.cat([self.seen, self.beside.expand(rows, -1, -1)], dim=2)
        hidden = torch.zeros(self.seen.shape, dtype=self.lm.dtype, device=self.seen.device)
        hidden.masked_fill_(~self.seen, torch.finfo(self.lm.dtype).min)
        place = self.place[:, None].expand(-1, self.copies)
        self.place = self.place + 1
        ids = tokens[:, -1].view(rows, self.copies)
        out = self.lm.model(
            input_ids=ids, attention_mask=hidden[:, None], position_ids=place, past_key_values=self.cache, use_cache=True
        )
        return out.logits.flatten(0, 1)

    def _follow(self, origin: Tensor) -> None:
        """Beams [R, K] go on from those that `origin` numbers, of the R rows that are left."""
        if len(origin) < len(self.seen):
            left = origin[:, 0] // self.copies
            self.cache.keep(left)
            self.seen, self.place = self.seen[left], self.place[left]
        parents = (origin % self.copies)[:, :, None].expand(-1, -1, self.seen.shape[2])
        self.seen = self.seen.gather(1, parents)


class Rows(Protocol):
    """What a model has read of every row, which `RowStep` makes it read on."""

    def first(self, tokens: Tensor) -> Tensor:
        """Read the prompts and the start tokens [B, 1] -> logits [B, V]."""
        ...

    def next(self, tokens: Tensor) -> Tensor:
        """Read the last of tokens [B * K, L] -> logits [B * K, V]."""
        ...

    def spread(self, copies: int) -> None:
        """Give every row `copies` beams."""
        ...

    def move(self, origin: Tensor) -> None:
        """Beam i goes on from beam `origin[i]`: of its own row while their number is the same; fewer where rows leave."""
        ...


class RowStep:
    """A step that reads every beam as a row of its own; `copies` is K."""

    def __init__(self, rows: Rows, copies: int) -> None:
        self.rows, self.copies = rows, copies

    def __call__(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
        if tokens.shape[1] == 1:
            logits = self.rows.first(tokens[:: self.copies])
            self.rows.spread(self.copies)
            return logits.repeat_interleave(self.copies, dim=0)
        if origin is not None:
            self.rows.move(origin)
        return self.rows.next(tokens)


class CausalRows:
    """Rows of a causal model: embeds [B, P, H] and mask [B, P] of the prompts; at most `room` tokens follow."""

    def __init__(self, lm: CausalLM, embeds: Tensor, mask: Tensor, *, room: int) -> None:
        self.lm, self.embeds, self.mask = lm, embeds, mask
        self.cache = BeamCache(room)

    def first(self, tokens: Tensor) -> Tensor:
        return forward(self.lm, self.cache, self.mask, inputs_embeds=self.embeds)[:, -1]

    def next(self, tokens: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        return forward(self.lm, self.cache, self.mask, input_ids=tokens[:, -1:])[:, -1]

    def spread(self, copies: int) -> None:
        self.cache.spread(copies)
        self.mask = self.mask.repeat_interleave(copies, dim=0)

    def move(self, origin: Tensor) -> None:
        if len(origin) == len(self.mask):
            self.cache.reorder(origin)  # beams move within their row, so the mask stays
        else:
            self.cache.keep(origin)
            self.mask = self.mask[origin]


def forward(lm: CausalLM, cache: BeamCache, mask: Tensor, **inputs: Tensor) -> Tensor:
    """Logits [B, 1 or more, V] of new tokens, their last at least, under a mask [B, read so far and new]."""
    extra: dict[str, Tensor | int] = {}
    if lm.places_tokens:
        new = next(iter(inputs.values())).shape[1]
        extra["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -new:]
    if lm.takes_logits_to_keep:
        extra["logits_to_keep"] = 1
    logits: Tensor = lm.model(**inputs, attention_mask=mask, past_key_values=cache, use_cache=True, **extra).logits
    return logits
