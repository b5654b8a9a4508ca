"""Small result types of the models.

Shapes: B rows, Q queries, D Q-Former width, L text tokens, E similarity width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lavis.models.qformer.qformer import KeyValue
from lavis.models.qformer.tokens import Tokens


@dataclass
class BlipOutputFeatures:
    """LAVIS' feature output; only the fields of the mode that was asked for are set.

    image_embeds [B, Q, D], image_embeds_proj [B, Q, E] normalised, text_embeds [B, L, D], text_embeds_proj [B, L, E] normalised
    (index 0 is the sentence), multimodal_embeds [B, Q, D].  "image" means the visual side, whatever the modality.
    """

    image_embeds: Tensor | None = None
    image_embeds_proj: Tensor | None = None
    text_embeds: Tensor | None = None
    text_embeds_proj: Tensor | None = None
    multimodal_embeds: Tensor | None = None


class Looked(NamedTuple):
    """What the query pass gives: outputs [B, Q, D], the encoder tokens, the query embeddings [B, Q, D], keys and values."""

    hidden: Tensor
    tokens: Tokens
    queries: Tensor
    cache: list[KeyValue]
