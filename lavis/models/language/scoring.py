"""Scores of texts: which of given answers a model would say.

Ranking follows LAVIS' BLIP (salesforce/LAVIS, lavis/models/blip_models/blip_vqa.py): the answers whose first token is
likeliest are read whole, and the one with the largest sum of log-probabilities wins.

Shapes: A candidates, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis.models.language.base import pad_right

ReadAnswers = Callable[[Tensor, Tensor], Tensor]  # (ids [A, L], mask [A, L]) -> logits [A, L, V] that predict them


def likeliest_starts(log_probs: Tensor, first: Tensor, candidates: int) -> Tensor:
    """Places, in order, of the answers whose first tokens [N] are likeliest by log_probs [V]; equals keep their order."""
    order = log_probs[first].argsort(descending=True, stable=True)
    return order[:candidates].sort().values


def sequence_scores(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Sum of the log-probabilities of ids [A, L] where mask [A, L] is 1, by logits [A, L, V] -> [A]."""
    log_probs = F.log_softmax(logits.float(), dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return (log_probs * mask).sum(dim=-1)


def best_of(start: Tensor, choices: Sequence[list[int]], candidates: int, pad: int, read: ReadAnswers) -> int:
    """The place of the likeliest of `choices`, token ids of answers, by the logits [V] of their first token and `read`."""
    device = start.device
    first = torch.tensor([choice[0] for choice in choices], device=device)
    kept = likeliest_starts(start.float(), first, candidates).tolist()
    ids = pad_right([choices[place] for place in kept], pad, device)
    mask = pad_right([[1] * len(choices[place]) for place in kept], 0, device)
    return int(kept[int(sequence_scores(read(ids, mask), ids, mask).argmax())])
