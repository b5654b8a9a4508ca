"""Beam search as transformers 4.31 does it from embeddings: a dummy start token, the prompt read once per beam, the cache picked
anew for every step.

Shapes: B rows, K beams, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.published.opt import Opt


class Hypotheses:
    """The best closed beams of one row; a score is the sum of log-probabilities over the length."""

    def __init__(self, beams: int) -> None:
        self.beams = beams
        self.kept: list[tuple[float, Tensor]] = []

    def add(self, tokens: Tensor, total: float) -> None:
        self.kept.append((total / len(tokens), tokens))
        self.kept = sorted(self.kept, key=lambda pair: -pair[0])[: self.beams]

    def done(self, best: float, length: int) -> bool:
        return len(self.kept) == self.beams and self.kept[-1][0] >= best / length


def search(
    opt: Opt, prefix: Tensor, *, start: int, eos: int, pad: int, beams: int, max_length: int, min_length: int
) -> list[list[int]]:
    """Token lists, one per row of prefix [B, P, H], the start token left out."""
    rows = len(prefix)
    embeds = prefix.repeat_interleave(beams, dim=0)
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    tokens = torch.full((rows * beams, 1), start)
    scores = torch.zeros(rows, beams)
    scores[:, 1:] = -1e9
    scores = scores.view(-1)
    finished, done = [Hypotheses(beams) for _ in range(rows)], [False] * rows
    cache = None
    while tokens.shape[1] < max_length and not all(done):
        inputs = embeds if cache is None else opt.embed(tokens[:, -1:])
        logits, cache = opt.run(inputs, mask, cache)
        found = F.log_softmax(logits[:, -1, :], dim=-1)
        if tokens.shape[1] < min_length:
            found[:, eos] = -float("inf")
        vocabulary = found.shape[-1]
        found = (found + scores[:, None]).view(rows, beams * vocabulary)
        values, places = torch.topk(found, 2 * beams, dim=1, largest=True, sorted=True)
        origins = torch.div(places, vocabulary, rounding_mode="floor")
        scores, words, picked = close(values, places % vocabulary, origins, tokens, finished, done, eos=eos, pad=pad, beams=beams)
        tokens = torch.cat([tokens[picked], words[:, None]], dim=-1)
        heads = len(cache[0][0]) // (rows * beams)
        lines = (picked[:, None] * heads + torch.arange(heads)).view(-1)
        cache = [(key.index_select(0, lines), value.index_select(0, lines)) for key, value in cache]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
    for row, hypotheses in enumerate(finished):
        if not done[row]:
            for beam in range(row * beams, (row + 1) * beams):
                hypotheses.add(tokens[beam], scores[beam].item())
    return [hypotheses.kept[0][1][1:].tolist() for hypotheses in finished]


def close(
    values: Tensor,
    words: Tensor,
    origins: Tensor,
    tokens: Tensor,
    finished: list[Hypotheses],
    done: list[bool],
    *,
    eos: int,
    pad: int,
    beams: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Close the beams that end; returns scores, tokens and rows in the last step of those that go on, each [B * K]."""
    next_scores = torch.zeros(len(finished), beams)
    next_words = torch.full((len(finished), beams), pad)
    next_rows = torch.zeros(len(finished), beams, dtype=torch.long)
    for row, hypotheses in enumerate(finished):
        if done[row]:
            continue
        going = 0
        for rank, (word, value, origin) in enumerate(zip(words[row], values[row], origins[row], strict=True)):
            place = row * beams + origin.item()
            if word.item() == eos:
                if rank < beams:
                    hypotheses.add(tokens[place].clone(), value.item())
                continue
            next_scores[row, going], next_words[row, going], next_rows[row, going] = value, word, place
            going += 1
            if going == beams:
                break
        done[row] = hypotheses.done(values[row].max().item(), tokens.shape[1] + 1)
    return next_scores.view(-1), next_words.view(-1), next_rows.view(-1)
