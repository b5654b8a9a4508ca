"""The losses of BLIP-2 and RegionBLIP as pure functions of tensors.

Gathering over processes, weights and their sum are the caller's (`objectives.py`).

Shapes: B rows of the (global) batch, Q queries, E similarity width, S positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis.common import dist_utils
from lavis.common.precision import without_autocast

IGNORE = -100
LABEL_SMOOTHING = 0.1  # of ITC and of the Q-Former's LM, as published


@dataclass
class TokenLoss:
    """A loss over tokens before it is divided: the sum and the number of tokens that it sums; of every entry [B] as well, where
    the loss knows them (without label smoothing)."""

    total: Tensor
    count: Tensor
    rows: Tensor | None = None
    row_counts: Tensor | None = None


def token_cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> TokenLoss:
    """Summed cross entropy of logits [B, S, V] at labels [B, S] (`IGNORE` is left out), in float32."""
    flat, targets = logits.flatten(0, -2).float(), labels.flatten()
    counted = labels != IGNORE
    if label_smoothing:
        total = F.cross_entropy(flat, targets, ignore_index=IGNORE, reduction="sum", label_smoothing=label_smoothing)
        return TokenLoss(total, counted.sum())
    log_probs = F.log_softmax(flat, dim=-1)  # what cross_entropy does, to the bit; taken apart so that the rows cost little
    total = F.nll_loss(log_probs, targets, ignore_index=IGNORE, reduction="sum")
    rows = F.nll_loss(log_probs, targets, ignore_index=IGNORE, reduction="none").view(labels.shape).sum(dim=1)
    return TokenLoss(total, counted.sum(), rows, counted.sum(dim=1))


def query_text_similarity(queries: Tensor, texts: Tensor) -> Tensor:
    """Cosine of every picture's best query with every text: [B, Q, E] and [B', E], both normalised -> [B, B'], in float32."""
    with without_autocast(queries.device):
        return torch.einsum("bqe,te->btq", queries.float(), texts.float()).max(dim=-1).values


def contrastive(
    sim_i2t: Tensor, sim_t2i: Tensor, temperature: Tensor, targets: Tensor | None = None, *, left_out: Tensor | None = None
) -> Tensor:
    """ITC: cross entropy of similarity / temperature in both directions, averaged.

    sim_i2t [B, B] has a row per picture, sim_t2i [B, B] a row per text. `targets` [B, B] are soft targets (rows sum to 1);
    without them each row's own column counts and labels are smoothed by 0.1. Pairs that `left_out` marks, symmetric bool
    [B, B] without the diagonal, are neither: they have no share of the softmax, and labels are smoothed over the others.
    """
    if left_out is not None:
        wanted = own_targets(left_out)
        logits = [(sim / temperature).masked_fill(left_out, -torch.inf) for sim in (sim_i2t, sim_t2i)]
        parts = [-(F.log_softmax(part, dim=1).masked_fill(left_out, 0.0) * wanted).sum(dim=1).mean() for part in logits]
        return (parts[0] + parts[1]) / 2
    if targets is None:
        own = torch.arange(len(sim_i2t), device=sim_i2t.device)
        parts = [F.cross_entropy(sim / temperature, own, label_smoothing=LABEL_SMOOTHING) for sim in (sim_i2t, sim_t2i)]
    else:
        parts = [-(F.log_softmax(sim / temperature, dim=1) * targets).sum(dim=1).mean() for sim in (sim_i2t, sim_t2i)]
    return (parts[0] + parts[1]) / 2


def soft_targets(same: Tensor) -> Tensor:
    """LAVIS' soft targets from which rows are of one image, bool [B, B]: 0.9 spread over those, 0.1 over all."""
    share = same.float() / same.sum(dim=1, keepdim=True)
    return (1 - LABEL_SMOOTHING) * share + LABEL_SMOOTHING / len(same)


def own_targets(left_out: Tensor) -> Tensor:
    """Targets [B, B] of which each row's own column has 0.9, and 0.1 is spread over the columns that are not `left_out`."""
    counted = (~left_out).float()
    share = counted / counted.sum(dim=1, keepdim=True)
    return (1 - LABEL_SMOOTHING) * torch.eye(len(left_out), device=left_out.device) + LABEL_SMOOTHING * share


def negative_weights(logits: Tensor, *, floor: float, positives: Tensor | None = None) -> Tensor:
    """Sampling weights of hard negatives from logits [B, B']: softmax + floor, zero at the positives [B, B'] (the diagonal).

    RegionBLIP's floor is 1e-4; floor 0 masks before the softmax, as LAVIS does.
    """
    if positives is None:
        positives = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    if floor == 0:
        return F.softmax(logits.masked_fill(positives, -10000.0), dim=1)
    return (F.softmax(logits, dim=1) + floor).masked_fill(positives, 0.0)


def draw_negatives(weights: Tensor) -> Tensor:
    """One column per row of weights [B, B'], drawn row by row -> [B]."""
    return torch.cat([torch.multinomial(row, 1) for row in weights])


def matching(logits: Tensor, positives: int) -> Tensor:
    """ITM: two-way cross entropy of logits [3B, 2]; the first `positives` rows match, the others do not."""
    labels = (torch.arange(len(logits), device=logits.device) < positives).long()
    return F.cross_entropy(logits, labels)


class Mean(NamedTuple):
    """This process's share of a mean over all processes, scaled so that averaging over processes gives the mean, and how many
    rows or tokens of all processes the mean is over."""

    value: Tensor
    terms: Tensor | int


def global_mean(loss: TokenLoss) -> Mean:
    """A token loss over the token count of all processes."""
    count = dist_utils.all_reduce_sum(loss.count)
    return Mean(loss.total * dist_utils.get_world_size() / count.clamp(min=1), count)


def global_row_mean(local_mean: Tensor, sizes: list[int]) -> Mean:
    """A mean over this process's rows as its share of the mean over the rows of all, `sizes` on each process."""
    rows = sum(sizes)
    return Mean(local_mean * sizes[dist_utils.get_rank()] * dist_utils.get_world_size() / rows, rows)
