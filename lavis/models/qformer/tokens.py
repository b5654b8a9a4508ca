"""What queries look at, and what the Q-Former is given.

Shapes: B rows, Q queries, D Q-Former width, I encoded inputs, T tokens, C their width, L text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """embeds [I, T, C], and for every row which of the I inputs it reads: index [B] (None: row i reads i).

    unplaced: how many tokens in front lie nowhere (class tokens). positions [I, T - unplaced, 3]: where the others lie in a
    cloud; None for an image, whose tokens are a grid, row by row. visible [B, T] bool: the tokens that a row's queries may look
    at (None: all).
    """

    embeds: Tensor
    index: Tensor | None = None
    positions: Tensor | None = None
    visible: Tensor | None = None
    unplaced: int = 1

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return len(self.embeds) if self.index is None else len(self.index)

    def select(self, rows: Tensor) -> Tokens:
        """The same tokens for other rows: row j of the result reads, and sees, what row `rows[j]` did."""
        visible = None if self.visible is None else self.visible[rows]
        return replace(self, index=rows if self.index is None else self.index[rows], visible=visible)

    def per_row(self, projected: Tensor) -> Tensor:
        """Spread a tensor over inputs [I, ...] to rows [B, ...]."""
        return projected if self.index is None else projected[self.index]


@dataclass(frozen=True)
class QFormerInput:
    """queries [B, Q', D], of whose outputs the first `kept` count; the tokens that they look at; a text in the same pass, ids and
    mask [B, L], where a region prompt or a question is one."""

    queries: Tensor
    kept: int
    tokens: Tokens
    ids: Tensor | None = None
    mask: Tensor | None = None
