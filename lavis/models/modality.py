"""One entry per modality, and the branch that owns what one modality owns.

An entry says which encoder and which Q-Former serve the modality, how a region reaches the queries, what the texts of a sample
are, what the LLM is told and which losses count. Entries stand in configs/models/*.yaml under `modalities:`; a further modality
on an existing encoder is one more entry.

Shapes: B batch, Q queries, D Q-Former width, E similarity width, H LLM width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lavis.common.config import ConfigError
from lavis.common.errors import listed, unknown
from lavis.common.registry import registry
from lavis.models.regions.base import POSITIONS, RegionChain, build_chain

QFORMER = re.compile(r"Qformer\w*")
LOSS_NAMES = ("itc", "itm", "lm", "llm", "reg")
TEXT_ROLES = ("target", "prompt", "qformer")
ROLE_KEYS = ("text_input", "text_input_beside_output", "text_output")


@dataclass(frozen=True)
class Modality:
    """An entry of the modality table."""

    name: str
    suffix: str  # of the published parameter names: query_tokens_<suffix>, lora_A_<suffix>, ...
    encoder: str = "image"  # a registered encoder
    qformer: str = "Qformer"  # "Qformer" (shared), or a further one by a name that begins so
    region: str | tuple[str, ...] | None = None  # region prompts, in order; "box" and "corners" say the position of box_mlp
    prompt: str = ""  # what a T5 encoder reads beside the queries
    blip2: bool = False  # whether BLIP-2's query tokens and projections are those of this entry
    class_template: str = "{}."  # the sentence that zero-shot classification makes of a class name
    losses: Mapping[str, float] = field(default_factory=dict)  # weight per loss; a loss not named is not computed
    # what the texts of a sample are. target: what the model learns to say, in all of the entry's losses; prompt: what the
    # language model reads before its target; qformer: a text that the queries read in their own pass
    text_input: str = "target"
    text_input_beside_output: str = "prompt"  # the role of text_input in samples that have a text_output
    text_output: str = "target"

    def weight(self, loss: str) -> float:
        """Weight of a loss in the total, 0 where it is not computed."""
        return float(self.losses.get(loss) or 0.0)

    @classmethod
    def from_config(cls, name: str, row: Mapping[str, object]) -> Modality:
        """Build an entry from its YAML mapping; ConfigError on an unknown key, loss, encoder, region prompt or role of a text."""
        accepted = [f.name for f in fields(cls) if f.name != "name"]
        for key in row:
            if key not in accepted:
                raise ConfigError(f"modalities.{name}.{key} is unknown; an entry takes {', '.join(accepted)}")
        values = {key: value for key, value in row.items() if value is not None}
        losses = values.get("losses") or {}
        assert isinstance(losses, Mapping)
        for loss in losses:
            if loss not in LOSS_NAMES:
                raise ConfigError(f"modalities.{name}.losses.{loss} is unknown; losses are {', '.join(LOSS_NAMES)}")
        values["losses"] = dict(losses)
        if isinstance(values.get("region"), list):
            values["region"] = tuple(values["region"])  # type: ignore[arg-type]
        values.setdefault("suffix", name)
        entry = cls(name=name, **values)  # type: ignore[arg-type]
        entry._check()
        return entry

    def _check(self) -> None:
        regions = [self.region] if isinstance(self.region, str) else self.region or ()
        for region in regions:
            known = [*POSITIONS, *registry.names("region")]
            if region not in known:
                raise ConfigError(f"modalities.{self.name}.region is {region!r}; accepted: {listed(known)}")
        encoders = registry.names("encoder")
        if self.encoder not in encoders:
            raise ConfigError(f"modalities.{self.name}.encoder is {self.encoder!r}; accepted: {listed(encoders)}")
        if not QFORMER.fullmatch(self.qformer):
            accepted = "Qformer, or a name that begins so (Qformer_pc)"
            raise ConfigError(f"modalities.{self.name}.qformer is {self.qformer!r}; accepted: {accepted}")
        for key in ROLE_KEYS:
            if getattr(self, key) not in TEXT_ROLES:
                raise ConfigError(unknown(f"modalities.{self.name}.{key}", getattr(self, key), TEXT_ROLES))


def blip2_entry(rows: Iterable[Modality]) -> str | None:
    """The name of the entry with `blip2: true`, whose queries and projections are BLIP-2's; None where no entry says so.

    ConfigError where several do.
    """
    names = [row.name for row in rows if row.blip2]
    if len(names) > 1:
        raise ConfigError(f"modalities {' and '.join(names)} both say blip2: true; accepted: one entry, or none")
    return names[0] if names else None


class Branch(nn.Module):
    """What one modality owns: its learned queries, its projections and its region prompts.

    query_tokens [1, Q, D]; itc_proj D -> E; llm_proj D -> H (when an LLM is there).
    """

    region: RegionChain | None

    def __init__(self, entry: Modality, cfg: DictConfig, *, width: int, llm_width: int | None, init_std: float) -> None:
        super().__init__()
        queries = torch.empty(1, cfg.qformer.num_query_token, width)
        self.query_tokens = nn.Parameter(queries.normal_(std=init_std))
        self.itc_proj = nn.Linear(width, cfg.embed_dim)
        self.llm_proj = nn.Linear(width, llm_width) if llm_width else None
        self.region = build_chain(entry, cfg, width=width)

    def to_llm(self, hidden: Tensor) -> Tensor:
        """Query outputs [B, Q, D] -> soft prompts [B, Q, H]. ValueError without a language model."""
        if self.llm_proj is None:
            raise ValueError("this arch has no language model")
        projected: Tensor = self.llm_proj(hidden)
        return projected
