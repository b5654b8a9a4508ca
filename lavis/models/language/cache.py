"""Keys and values of the tokens that a decoder has read, in memory that is taken once.

The cache of transformers grows by concatenation and moves beams by copying all of it, at every step and in every layer. Here the
prompt is read once per row and stays where it is, as beams move within their row; a new token is written in its place; what
moves with the beams are the new tokens alone.

Shapes: B rows, K beams of each, N heads, P prompt positions, D width of a head.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache


class BeamCache(DynamicCache):
    """A transformers cache with room for `room` tokens behind the prompt.

    `update` is what the model calls; the decoding step calls `spread` once, behind the prompt, then `reorder` or `keep`.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.prompt = 0  # positions that all beams of a row share
        self._length: dict[int, int] = {}  # positions written, per layer
        self._stored: dict[int, list[Tensor]] = {}  # keys and values, per layer [B * K, N, P + room, D]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add keys and values [B * K, N, new, D] of a layer -> all that it has so far."""
        if layer_idx not in self._stored:
            self._stored[layer_idx] = [key_states, value_states]
            self._length[layer_idx] = key_states.shape[2]
            return key_states, value_states
        begin = self._length[layer_idx]
        end = self._length[layer_idx] = begin + key_states.shape[2]
        for stored, new in zip(self._stored[layer_idx], (key_states, value_states), strict=True):
            stored[:, :, begin:end] = new
        keys, values = self._stored[layer_idx]
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Positions that a layer has read."""
        return self._length.get(layer_idx or 0, 0)

    def get_mask_sizes(self, query: int | Tensor, layer_idx: int = 0) -> tuple[int, int]:
        """Positions that the coming step sees, and how many before them were dropped. `query`: the new positions, or their
        number (transformers 5)."""
        new = query if isinstance(query, int) else len(query)
        return self.get_seq_length(layer_idx) + new, 0

    def spread(self, copies: int) -> None:
        """Give every row `copies` beams, and room to go on."""
        self.prompt = self.get_seq_length()
        for layer, both in self._stored.items():
            self._stored[layer] = [self._with_room(prompt, copies) for prompt in both]

    def _with_room(self, prompt: Tensor, copies: int) -> Tensor:
        rows, heads, length, width = prompt.shape
        stored = prompt.new_empty(rows, copies, heads, length + self.room, width)
        stored[:, :, :, :length] = prompt.unsqueeze(1)
        return stored.flatten(0, 1)

    def reorder(self, origin: Tensor) -> None:
        """Beam i goes on from what beam `origin[i]` [B * K], of the same row, has read."""
        for layer, both in self._stored.items():
            for stored in both:
                behind = stored[:, :, self.prompt : self._length[layer]]
                behind.copy_(behind[origin])

    def keep(self, origin: Tensor) -> None:
        """As `reorder`, for beams of any rows, or fewer than there are."""
        for layer, both in self._stored.items():
            self._stored[layer] = [self._moved(stored, origin, self._length[layer]) for stored in both]

    @staticmethod
    def _moved(stored: Tensor, origin: Tensor, end: int) -> Tensor:
        moved = stored.new_empty(len(origin), *stored.shape[1:])
        moved[:, :, :end] = stored[:, :, :end][origin]
        return moved
