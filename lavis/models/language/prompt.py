"""What a language model is given to read: text and vectors, in any order.

A `Prompt` is one entry of a batch. How its texts become tokens is the matter of a `Dialect`; a prompt names no token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from torch import Tensor

Segment = str | Tensor  # text, or input embeddings [n, H] (n from 0)


@dataclass(frozen=True)
class Prompt:
    """Segments of one entry. A prompt without any text is not the same as one with an empty text: the empty text is opened
    (OPT's `</s>`) as part of the prompt, while without text the target opens itself and its first token may be learned."""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        for segment in self.segments:
            if not isinstance(segment, str) and segment.dim() != 2:
                raise ValueError(f"a segment of a prompt has shape {tuple(segment.shape)}; accepted: text, or embeddings [n, H]")

    @property
    def last_text(self) -> str | None:
        """The text in which the prompt ends; None where it ends in vectors."""
        last = self.segments[-1] if self.segments else None
        return last if isinstance(last, str) else None


class Behind(Sequence[Prompt]):
    """The usual prompts of B entries: vectors [B, n, H], and behind them a text each (None: no text).

    A model reads the vectors as the one block that they are: it is faster, and their gradient keeps the layout of the block.

    ValueError where the number of texts is not B.
    """

    def __init__(self, vectors: Tensor, texts: Sequence[str] | None = None) -> None:
        if texts is not None and len(texts) != len(vectors):
            raise ValueError(f"{len(texts)} texts for {len(vectors)} rows of vectors")
        self.vectors = vectors
        rows = vectors.unbind(0)
        pairs = [(row,) for row in rows] if texts is None else list(zip(rows, texts, strict=True))
        self._prompts = [Prompt(pair) for pair in pairs]

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, place: int) -> Prompt: ...
    @overload
    def __getitem__(self, place: slice) -> list[Prompt]: ...
    def __getitem__(self, place: int | slice) -> Prompt | list[Prompt]:
        return self._prompts[place]
