"""One row per modality, and the branch that owns what one modality owns.

A row says which encoder and which Q-Former serve the modality, how a region reaches the queries, what the LLM is told and which
losses count. Rows stand in configs/models/*.yaml under `modalities:`; a further modality on an existing encoder is one more row.

Shapes: B batch, Q queries, D Q-Former width, E similarity width, H LLM width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from lavis.common.config import ConfigError
from lavis.models.regions.box_mlp import REGION_KINDS, RegionPosition

ENCODERS = ("image", "pointcloud")
QFORMERS = ("Qformer", "Qformer_pc")
LOSS_NAMES = ("itc", "itm", "lm", "llm", "reg")


@dataclass(frozen=True)
class Modality:
    """A row of the modality table."""

    name: str
    suffix: str  # of the published parameter names: query_tokens_<suffix>, lora_A_<suffix>, ...
    encoder: str = "image"  # "image" or "pointcloud"
    qformer: str = "Qformer"  # "Qformer" (shared) or "Qformer_pc"
    region: str | None = None  # None, "box" or "corners": what the region MLP reads
    prompt: str = ""  # what a T5 encoder reads beside the queries
    blip2: bool = False  # whether BLIP-2's query tokens and projections are those of this entry
    class_template: str = "{}."  # the sentence that zero-shot classification makes of a class name
    losses: Mapping[str, float] = field(default_factory=dict)  # weight per loss; a loss not named is not computed

    def weight(self, loss: str) -> float:
        """Weight of a loss in the total, 0 where it is not computed."""
        return float(self.losses.get(loss) or 0.0)

    @classmethod
    def from_config(cls, name: str, row: Mapping[str, Any]) -> Modality:
        """Build a row from its YAML mapping; ConfigError on an unknown key, loss or region kind."""
        accepted = [f.name for f in fields(cls) if f.name != "name"]
        for key in row:
            if key not in accepted:
                raise ConfigError(f"modalities.{name}.{key} is unknown; a row takes {', '.join(accepted)}")
        for loss in row.get("losses") or {}:
            if loss not in LOSS_NAMES:
                raise ConfigError(f"modalities.{name}.losses.{loss} is unknown; losses are {', '.join(LOSS_NAMES)}")
        if row.get("region") is not None and row["region"] not in REGION_KINDS:
            raise ConfigError(f"modalities.{name}.region is {row['region']!r}; accepted: {', '.join(REGION_KINDS)}")
        for key, accepted_names in (("encoder", ENCODERS), ("qformer", QFORMERS)):
            if row.get(key) is not None and row[key] not in accepted_names:
                raise ConfigError(f"modalities.{name}.{key} is {row[key]!r}; accepted: {', '.join(accepted_names)}")
        values = {key: value for key, value in row.items() if value is not None}
        values["losses"] = dict(row.get("losses") or {})
        values.setdefault("suffix", name)
        return cls(name=name, **values)


def blip2_entry(rows: Iterable[Modality]) -> str | None:
    """The name of the entry with `blip2: true`, whose queries and projections are BLIP-2's; None where no entry says so.

    ConfigError where several do.
    """
    names = [row.name for row in rows if row.blip2]
    if len(names) > 1:
        raise ConfigError(f"modalities {' and '.join(names)} both say blip2: true; accepted: one entry, or none")
    return names[0] if names else None


class Branch(nn.Module):
    """What one modality owns: its learned queries, its projections and, for regions, its position MLP and box head.

    query_tokens [1, Q, D]; itc_proj D -> E; llm_proj D -> H (when an LLM is there); region: see `RegionPosition`.
    """

    def __init__(
        self,
        row: Modality,
        *,
        num_query: int,
        width: int,
        embed_dim: int,
        llm_width: int | None,
        init_std: float,
    ) -> None:
        super().__init__()
        self.row = row
        self.query_tokens = nn.Parameter(torch.empty(1, num_query, width).normal_(std=init_std))
        self.itc_proj = nn.Linear(width, embed_dim)
        self.llm_proj = nn.Linear(width, llm_width) if llm_width else None
        self.region = RegionPosition(row.region, width) if row.region else None

    def queries(self, batch: int, position: Tensor | None, *, use_position: bool = True) -> Tensor:
        """The queries of a batch [B, Q, D]: learned tokens, plus the region's position where the row has one."""
        tokens = self.query_tokens.expand(batch, -1, -1)
        if self.region is None or position is None or not use_position:
            return tokens
        return tokens + self.region.embed(position).unsqueeze(1)
