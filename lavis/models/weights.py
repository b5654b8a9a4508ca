"""Checkpoint layouts: one object owns every renaming of keys.

Layouts, recognised by their keys:
  lavis       ours: `branches.<modality>.query_tokens`, `llm.model.*`, ...
  regionblip  published RegionBLIP: `query_tokens_img_region`, `opt_proj_img`, `stage1_proj_pc`, `lora_A_img`, ...
  blip2       LAVIS' BLIP-2, stage 1 and stage 2: `query_tokens`, `opt_proj`, `vision_proj`, ...

The rename of BLIP-2 names to RegionBLIP's was never published; it follows from the key names (see DERIVED below).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lavis.common.errors import ConfigError
from lavis.models.modality import Modality

# Names that hold no weights of their own: ties and constant buffers that other layouts store beside them.
ALIASES = re.compile(
    r"Qformer(_pc)?\.(cls\.predictions\.decoder\.(weight|bias)|bert\.embeddings\.position_ids)"
    r"|llm\.model\.(lm_head|encoder\.embed_tokens|decoder\.embed_tokens)\.weight"
)


@dataclass
class LoadReport:
    """What became of a checkpoint's keys (our names) and of the model's."""

    layout: str = "lavis"
    loaded: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # name -> why that is no harm
    ignored: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        reasons: dict[str, int] = {}
        for reason in self.missing.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        missing = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none"
        ignored = ", ".join(self.ignored[:5]) + (", ..." if len(self.ignored) > 5 else "")
        return (
            f"{self.layout} layout: {len(self.loaded)} tensors loaded; not in the file: {missing}; "
            f"ignored: {len(self.ignored)}{f' ({ignored})' if ignored else ''}"
        )


class KeyMap:
    """Renames keys of every known layout to ours and back. `llm` is "opt" or "t5" or another prefix of the published names."""

    def __init__(self, rows: Iterable[Modality], llm: str = "opt") -> None:
        self.rows = list(rows)
        self.llm = llm

    def layout(self, keys: Iterable[str]) -> str:
        """Name of the layout that the keys belong to; ValueError when none fits."""
        keys = set(keys)
        if any(key.startswith("branches.") for key in keys):
            return "lavis"
        if any(re.match(r"query_tokens_|stage1_proj_|.*\.lora_[AB]_", key) for key in keys):
            return "regionblip"
        if "query_tokens" in keys or any(key.startswith("Qformer.") for key in keys):
            return "blip2"
        if keys and all(key.startswith(("llm.", "visual_encoder.", "ln_vision.", "text_proj.")) or key == "temp" for key in keys):
            return "lavis"
        some = ", ".join(sorted(keys)[:4]) or "none"
        raise ConfigError(f"the keys belong to no known checkpoint layout (lavis, regionblip, blip2); first keys: {some}")

    def to_lavis(self, key: str, layout: str) -> str:
        """Our name of a key of `layout`; a key without a counterpart keeps its name (and is ignored on load)."""
        if layout == "lavis":
            return key
        key = self._adapters(key, to_lavis=True)
        for theirs, ours in self._rules(layout):
            if key == theirs or key.startswith(theirs + "."):
                return ours + key[len(theirs) :]
        return key

    def from_lavis(self, key: str, layout: str) -> str:
        """The name of our key in `layout`."""
        if layout == "lavis":
            return key
        key = self._adapters(key, to_lavis=False)
        for theirs, ours in self._rules(layout):
            if key == ours or key.startswith(ours + "."):
                return theirs + key[len(ours) :]
        return key

    def _rules(self, layout: str) -> list[tuple[str, str]]:
        """(their prefix, our prefix) of a layout."""
        return self._regionblip_rules() if layout == "regionblip" else self._blip2_rules()

    def _regionblip_rules(self) -> list[tuple[str, str]]:
        rules = [
            ("stage1_proj_text", "text_proj"),
            ("img_itm_head", "itm_head"),
            (f"{self.llm}_model", "llm.model"),
        ]
        for row in self.rows:
            branch = f"branches.{row.name}"
            rules += [
                (f"query_tokens_{row.suffix}", f"{branch}.query_tokens"),
                (f"stage1_proj_{row.suffix}", f"{branch}.itc_proj"),
                (f"{self.llm}_proj_{row.suffix}", f"{branch}.llm_proj"),
                (f"{row.suffix}_posembed", f"{branch}.region.posembed"),
                (f"reg_{row.suffix}", f"{branch}.region.reg"),
            ]
        return rules

    def _blip2_rules(self) -> list[tuple[str, str]]:
        """DERIVED: the image branch is BLIP-2's; everything else keeps its name."""
        branch = f"branches.{self.rows[0].name}"
        return [
            ("query_tokens", f"{branch}.query_tokens"),
            ("vision_proj", f"{branch}.itc_proj"),
            (f"{self.llm}_proj", f"{branch}.llm_proj"),
            (f"{self.llm}_model", "llm.model"),
        ]

    def _adapters(self, key: str, *, to_lavis: bool) -> str:
        """`x.lora_A_img` <-> `x.lora_A.image`."""
        for row in self.rows:
            for part in ("lora_A", "lora_B"):
                theirs, ours = f".{part}_{row.suffix}", f".{part}.{row.name}"
                before, after = (theirs, ours) if to_lavis else (ours, theirs)
                if key.endswith(before):
                    return key[: -len(before)] + after
        return key

    def rename(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """The layout of a state dict, and the state dict under our names."""
        layout = self.layout(state)
        return layout, {self.to_lavis(key, layout): tensor for key, tensor in state.items()}


def load_into(model: nn.Module, state: Mapping[str, Tensor], *, layout: str, loaded_before: Collection[str] = ()) -> LoadReport:
    """Copy a state dict (our names) into `model` and report.

    ValueError names every tensor whose shape differs, with both shapes, and nothing is copied then. Names in `loaded_before`
    that the state lacks are reported as such.
    """
    own = {name: t for name, t in model.state_dict(keep_vars=True).items()}
    wrong = [
        f"{name}: {tuple(tensor.shape)} in the file, {tuple(own[name].shape)} in the model"
        for name, tensor in state.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if wrong:
        shown = "\n  ".join(wrong[:8]) + ("\n  ..." if len(wrong) > 8 else "")
        raise ConfigError(f"the checkpoint has other sizes than the model ({len(wrong)} tensors):\n  {shown}")
    report = LoadReport(layout=layout)
    with torch.no_grad():
        for name, tensor in state.items():
            if name in own:
                own[name].copy_(tensor)
                report.loaded.append(name)
            elif not ALIASES.fullmatch(name):
                report.ignored.append(name)
    loaded = set(report.loaded)
    tied = {id(own[name]) for name in loaded}
    for name, tensor in own.items():
        if name not in loaded and id(tensor) not in tied:
            report.missing[name] = _reason(name, tensor, name in loaded_before)
    return report


def _reason(name: str, tensor: Tensor, loaded_before: bool) -> str:
    """Why it is no harm, or what to look at, that a file lacks a tensor."""
    if loaded_before:
        return "loaded before, from a file of its own"
    if ".lora_A." in name or ".lora_B." in name:
        return "adapters as initialised"
    return "trainable, as initialised" if tensor.requires_grad else "frozen, as initialised"
