"""Names that hold no weights of their own: ties and constant buffers that published files store beside their source.

Policy. Reading drops an alias whose source is in the same file and says the same. A published training checkpoint leaves frozen
sources out but keeps their aliases: such an alias stays under its name in a converted file, and loads as its source. Writing a
published layout puts every alias beside its source again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

# (alias, source), our names
TIES = [
    (r"(Qformer(?:_pc)?)\.cls\.predictions\.decoder\.weight", r"\1.bert.embeddings.word_embeddings.weight"),
    (r"(Qformer(?:_pc)?)\.cls\.predictions\.decoder\.bias", r"\1.cls.predictions.bias"),
    (r"llm\.model\.lm_head\.weight", "llm.model.model.decoder.embed_tokens.weight"),
    (r"llm\.model\.(?:encoder|decoder)\.embed_tokens\.weight", "llm.model.shared.weight"),
]
WRITTEN = [  # (source, its aliases)
    (r"(Qformer(?:_pc)?)\.bert\.embeddings\.word_embeddings\.weight", [r"\1.cls.predictions.decoder.weight"]),
    (r"(Qformer(?:_pc)?)\.cls\.predictions\.bias", [r"\1.cls.predictions.decoder.bias"]),
    (r"llm\.model\.model\.decoder\.embed_tokens\.weight", ["llm.model.lm_head.weight"]),
    (r"llm\.model\.shared\.weight", ["llm.model.encoder.embed_tokens.weight", "llm.model.decoder.embed_tokens.weight"]),
]
POSITION_IDS = re.compile(r"(Qformer(?:_pc)?\.bert\.embeddings)\.position_ids")


def source_of(name: str) -> str | None:
    """The name whose values an alias repeats; None for a name of its own."""
    for alias, source in TIES:
        if match := re.fullmatch(alias, name):
            return match.expand(source)
    return None


def is_alias(name: str) -> bool:
    """Whether a name may repeat another or is a constant."""
    return source_of(name) is not None or POSITION_IDS.fullmatch(name) is not None


def without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the aliases that its other entries give; one that differs from its source stays."""
    return {name: tensor for name, tensor in state.items() if not _repeats(name, tensor, state)}


def _repeats(name: str, tensor: Tensor, state: Mapping[str, Tensor]) -> bool:
    if match := POSITION_IDS.fullmatch(name):
        table = state.get(f"{match[1]}.position_embeddings.weight")
        return table is not None and torch.equal(tensor, _position_ids(table))
    original = state.get(source_of(name) or "")
    if original is None or original.shape != tensor.shape or original.dtype != tensor.dtype:
        return False
    return original.data_ptr() == tensor.data_ptr() or torch.equal(original, tensor)


def with_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the aliases of its entries, as published files have them."""
    written = dict(state)
    for name, tensor in state.items():
        for pattern, found in WRITTEN:
            if match := re.fullmatch(pattern, name):
                for alias in found:
                    written.setdefault(match.expand(alias), tensor)
        if name.endswith("bert.embeddings.position_embeddings.weight"):
            written.setdefault(name.replace("position_embeddings.weight", "position_ids"), _position_ids(tensor))
    return written


def sources_from_aliases(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """A state dict in which an alias that is neither in `own` nor beside its source is named as its source."""
    return {
        (source if name not in own and (source := source_of(name)) and source not in state else name): t
        for name, t in state.items()
    }


def _position_ids(table: Tensor) -> Tensor:
    return torch.arange(len(table), device=table.device).expand(1, -1)
