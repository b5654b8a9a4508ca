"""Means over the rows or tokens of all processes, as shares whose average over processes is the mean."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lavis.common import dist_utils
from lavis.models.losses import TokenLoss


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
