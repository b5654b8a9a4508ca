"""Decoding with the published meaning of lengths and scores.

RegionBLIP's captions come from Hugging Face transformers 4.31, in which generation from embeddings starts with a dummy
token that counts in `max_length`, `min_length` and the length normaliser. Later versions dropped it and changed beam
search, so the rules of 4.31 are stated here; only the logits processors come from transformers.

Score of a finished beam: sum of log-probabilities / length ** length_penalty, the start token counted, the end token not.
Each step looks at 2 * num_beams candidates; an end token among the first num_beams closes a beam, at a lower rank it is
dropped. A row is done when its worst kept beam is at least best candidate / (length + 1) ** length_penalty.

Shapes: B rows, K beams, V vocabulary, L tokens so far (start token included).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lavis.common import dist_utils
from lavis.models.language.base import Decoding

START_SCORE = -1e9
KEEP_UP_TO = 0.75  # rows that are done leave the batch when at most this share of it goes on
TOP_K = 50  # sampling draws among the 50 likeliest tokens at most: the default of transformers, which LAVIS leaves as it is

Going = Callable[[bool], bool]  # some row is open here -> another step
Processors = Callable[[Any, Any], Any]  # (tokens [B*K, L], scores [B*K, V]) -> scores

# step(tokens [B*K, L], rows [B*K] into the previous step's rows, or None at the first step) -> next-token logits [B*K, V]
# Beams stay within their row, as long as the number of rows is the same; rows that are done may leave, and the rest keep order.
Step = Callable[[Tensor, Tensor | None], Tensor]


@dataclass
class Decoded:
    """Sequences [N, L'] (start token first, padded) and, for beam search, their scores [N]."""

    sequences: Tensor
    scores: Tensor | None = None


@dataclass
class _Finished:
    """The best closed beams of one row."""

    size: int
    length_penalty: float
    beams: list[tuple[float, Tensor]] = field(default_factory=list)
    is_done: bool = False  # nothing better can come

    def add(self, tokens: Tensor, log_prob: float) -> None:
        self.beams.append((log_prob / len(tokens) ** self.length_penalty, tokens))
        self.beams.sort(key=lambda beam: -beam[0])
        del self.beams[self.size :]

    def done(self, best_candidate: float, length: int) -> bool:
        full = len(self.beams) == self.size
        return full and self.beams[-1][0] >= best_candidate / length**self.length_penalty


class _BehindStart(LogitsProcessor):
    """A processor that does not see the start token."""

    def __init__(self, inner: LogitsProcessor) -> None:
        self.inner = inner

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self.inner(input_ids[:, 1:], scores)


def processors(decoding: Decoding, eos: list[int], device: torch.device, *, start_is_text: bool = True) -> Processors:
    """The logits processors that a decoding asks for; `start_is_text`: the start token counts as a repeated token, as in 4.31."""
    chain = LogitsProcessorList()
    if decoding.repetition_penalty != 1.0:
        penalty = RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty)
        chain.append(penalty if start_is_text else _BehindStart(penalty))
    if decoding.min_length > 0:
        chain.append(MinLengthLogitsProcessor(decoding.min_length, eos, device=str(device)))
    if decoding.use_nucleus_sampling:
        if decoding.temperature != 1.0:
            chain.append(TemperatureLogitsWarper(decoding.temperature))
        chain.append(TopKLogitsWarper(TOP_K))
        if decoding.top_p < 1.0:
            chain.append(TopPLogitsWarper(decoding.top_p))
    return chain


def decode(
    step: Step,
    *,
    rows: int,
    start: int,
    eos: list[int],
    pad: int,
    max_length: int,
    decoding: Decoding,
    device: torch.device,
    sharded: bool = False,
    start_is_text: bool = True,
    stops: Sequence[Sequence[int]] = (),
) -> Decoded:
    """Decode `rows` rows with beams, greedily (one beam) or by nucleus sampling; `max_length` counts the start token.

    `stops`: sequences of tokens that end a row too, where one token after the other is taken; beams read on behind them.
    `start_is_text` False: the start token only counts; a repetition penalty leaves it alone (it may be the end token).

    No step is collective unless the model is `sharded`: then each process goes on until all are done, or one that is done
    early would leave the others waiting for its shards.
    """
    chain = processors(decoding, eos, device, start_is_text=start_is_text)
    going = dist_utils.any_process if sharded else bool
    if decoding.use_nucleus_sampling or decoding.num_beams == 1:
        tokens = torch.full((rows * decoding.num_captions, 1), start, device=device)
        return _sample(step, tokens, eos, stops, pad, max_length, chain, going, greedy=not decoding.use_nucleus_sampling)
    tokens = torch.full((rows * decoding.num_beams, 1), start, device=device)
    return _beam_search(step, tokens, rows, eos, pad, max_length, chain, going, decoding)


def _sample(
    step: Step,
    tokens: Tensor,
    eos: list[int],
    stops: Sequence[Sequence[int]],
    pad: int,
    max_length: int,
    chain: Processors,
    going: Going,
    *,
    greedy: bool,
) -> Decoded:
    ends = torch.tensor(eos, device=tokens.device)
    tails = [torch.tensor(stop, device=tokens.device) for stop in stops]
    open_rows = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    while tokens.shape[1] < max_length and going(bool(open_rows.any())):
        logits = chain(tokens, step(tokens, None).float())
        picked = logits.argmax(-1) if greedy else torch.multinomial(F.softmax(logits, dim=-1), 1).squeeze(1)
        picked = torch.where(open_rows, picked, pad)
        tokens = torch.cat([tokens, picked[:, None]], dim=1)
        open_rows &= ~torch.isin(picked, ends)
        for tail in tails:
            if tokens.shape[1] > len(tail):  # the start token is no text
                open_rows &= ~(tokens[:, -len(tail) :] == tail).all(dim=1)
    return Decoded(tokens)


def _beam_search(
    step: Step,
    tokens: Tensor,
    rows: int,
    eos: list[int],
    pad: int,
    max_length: int,
    chain: Processors,
    going: Going,
    decoding: Decoding,
) -> Decoded:
    beams, device = decoding.num_beams, tokens.device
    all_rows = [_Finished(beams, decoding.length_penalty) for _ in range(rows)]
    open_rows = all_rows  # those that `tokens` has beams of
    scores = torch.full((rows, beams), START_SCORE, device=device)
    scores[:, 0] = 0.0
    origin: Tensor | None = None
    while tokens.shape[1] < max_length and going(not all(row.is_done for row in open_rows)):
        log_probs = chain(tokens, F.log_softmax(step(tokens, origin).float(), dim=-1))
        vocabulary = log_probs.shape[-1]
        candidates = (log_probs + scores.view(-1, 1)).view(len(open_rows), beams * vocabulary)
        top = candidates.topk(max(2, 1 + len(eos)) * beams, dim=1)
        chosen = _advance(top.values.cpu(), top.indices.cpu(), vocabulary, tokens, open_rows, eos, pad, beams)
        scores = torch.tensor(chosen.scores, device=device).view(-1, beams)
        origin = torch.tensor(chosen.origins, device=device)
        tokens = torch.cat([tokens[origin], torch.tensor(chosen.tokens, device=device)[:, None]], dim=1)
        kept = _worth_keeping(open_rows)
        if kept is not None:
            open_rows = [open_rows[row] for row in kept]
            left = torch.tensor(kept, device=device)
            scores, origin, tokens = scores[left], origin.view(-1, beams)[left].flatten(), _rows(tokens, left, beams)
    for row, closed in enumerate(open_rows):
        if not closed.is_done:
            for beam in range(beams):
                closed.add(tokens[row * beams + beam], float(scores[row, beam]))
    best = [beam for closed in all_rows for beam in closed.beams[: decoding.num_captions]]
    return _pack(best, eos[0], pad, max_length, device)


def _worth_keeping(open_rows: list[_Finished]) -> list[int] | None:
    """The rows that go on, where enough others are done for leaving those out to pay; else None."""
    kept = [number for number, row in enumerate(open_rows) if not row.is_done]
    return kept if 0 < len(kept) <= KEEP_UP_TO * len(open_rows) else None


def _rows(tokens: Tensor, rows: Tensor, beams: int) -> Tensor:
    """The beams of some rows: tokens [B * K, L], rows [R] -> [R * K, L]."""
    return tokens.view(-1, beams, tokens.shape[1])[rows].flatten(0, 1)


@dataclass
class _Chosen:
    """The running beams of all rows after a step: flat lists of B * K."""

    scores: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)


def _advance(
    values: Tensor,
    indices: Tensor,
    vocabulary: int,
    tokens: Tensor,
    rows: list[_Finished],
    eos: list[int],
    pad: int,
    beams: int,
) -> _Chosen:
    """Close the beams that end, keep the best K others of every row."""
    chosen = _Chosen()
    for row, (closed, row_values, row_indices) in enumerate(zip(rows, values.tolist(), indices.tolist(), strict=True)):
        if closed.is_done:
            chosen.scores += [0.0] * beams
            chosen.tokens += [pad] * beams
            chosen.origins += [row * beams] * beams
            continue
        running = 0
        for rank, (value, index) in enumerate(zip(row_values, row_indices, strict=True)):
            origin, token = row * beams + index // vocabulary, index % vocabulary
            if token in eos:
                if rank < beams:
                    closed.add(tokens[origin], value)
                continue
            chosen.scores.append(value)
            chosen.tokens.append(token)
            chosen.origins.append(origin)
            running += 1
            if running == beams:
                break
        closed.is_done = closed.done(max(row_values), tokens.shape[1] + 1)
    return chosen


def _pack(best: list[tuple[float, Tensor]], eos: int, pad: int, max_length: int, device: torch.device) -> Decoded:
    """Pad the winners to one length; an end token closes each that is shorter than max_length."""
    longest = min(max(len(tokens) for _, tokens in best) + 1, max_length)
    sequences = torch.full((len(best), longest), pad, device=device)
    for i, (_, tokens) in enumerate(best):
        sequences[i, : len(tokens)] = tokens
        if len(tokens) < longest:
            sequences[i, len(tokens)] = eos
    return Decoded(sequences, torch.tensor([score for score, _ in best], device=device))
