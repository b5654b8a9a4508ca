"""Checkpoint layouts: one object owns every renaming of keys.

Layouts, recognised by their keys:
  lavis       ours: `branches.<modality>.query_tokens`, `llm.model.*`, ...
  regionblip  published RegionBLIP: `query_tokens_img_region`, `opt_proj_img`, `stage1_proj_pc`, `lora_A_img`, ...
  blip2       LAVIS' BLIP-2, stage 1 and stage 2: `query_tokens`, `opt_proj`, `vision_proj`, ...
  hf-blip2    Hugging Face's BLIP-2: `qformer.encoder.layer.0.*`, `language_projection`, ... (`hf_blip2.py`)
  eva, clip, point_bert   the files of single encoders; they are read, not written

The rename of BLIP-2 names to RegionBLIP's was never published; it follows from the key names (see DERIVED below).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lavis.common.errors import ConfigError
from lavis.models.encoders import clip_vit
from lavis.models.encoders.point_bert import RELEASED, fit_point_bert_state_dict
from lavis.models.modality import Modality, blip2_entry
from lavis.models.weights import hf_blip2
from lavis.models.weights.aliases import is_alias, with_aliases, without_aliases

LAYOUTS = ("lavis", "regionblip", "blip2", "hf-blip2")  # those that are written
OURS = re.compile(
    r"(branches|llm|Qformer|Qformer_pc|visual_encoder|ln_vision|point_encoder|pc_adapter|text_proj|itm_head)\..*|temp"
)
BLIP2_PARTS = re.compile(r"(llm|Qformer|visual_encoder|ln_vision|text_proj|itm_head)\..*|temp")
VIT = "visual_encoder."


@dataclass
class LoadReport:
    """What became of a checkpoint's keys (our names) and of the model's."""

    layout: str = "lavis"
    loaded: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # name -> why that is no harm
    ignored: list[str] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)  # frozen files that the checkpoint stands on and the model lacks

    def __str__(self) -> str:
        reasons: dict[str, int] = {}
        for reason in self.missing.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        missing = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none"
        ignored = ", ".join(self.ignored[:5]) + (", ..." if len(self.ignored) > 5 else "")
        return (
            f"{self.layout} layout: {len(self.loaded)} tensors loaded; not in the file: {missing}; "
            f"ignored: {len(self.ignored)}{f' ({ignored})' if ignored else ''}" + "".join(f"; {line}" for line in self.needed)
        )


class KeyMap:
    """Renames keys of every known layout to ours and back. `llm` is "opt" or "t5" or another prefix of the published names."""

    def __init__(self, rows: Iterable[Modality], llm: str = "opt") -> None:
        self.rows = list(rows)
        self.blip2 = blip2_entry(self.rows)
        self.llm = llm

    def layout(self, keys: Iterable[str]) -> str:
        """Name of the layout that the keys belong to; ValueError when none fits."""
        keys = set(keys)
        if any(key.startswith("branches.") for key in keys):
            return "lavis"
        if any(re.match(r"query_tokens_|stage1_proj_|.*\.lora_[AB]_", key) for key in keys):
            return "regionblip"
        if hf_blip2.is_hf_blip2(keys):
            return "hf-blip2"
        if "query_tokens" in keys or any(key.startswith("Qformer.") for key in keys):
            return "blip2"
        if keys and all(OURS.fullmatch(key) for key in keys):
            return "lavis"
        if any(RELEASED.fullmatch(key) for key in keys) or {"cls_pos", "cls_token"} <= keys:
            return "point_bert"
        if clip_vit.is_clip(keys):
            return "clip"
        if {"pos_embed", "patch_embed.proj.weight"} <= keys:
            return "eva"
        some = ", ".join(sorted(keys)[:4]) or "none"
        raise ConfigError(
            f"the keys belong to no known checkpoint layout ({', '.join(LAYOUTS)}, or an EVA, CLIP or Point-BERT file); "
            f"first keys: {some}"
        )

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
        """DERIVED: the branch of the entry with `blip2: true` is BLIP-2's; everything else keeps its name."""
        rules = [(f"{self.llm}_model", "llm.model")]
        if self.blip2 is None:
            return rules
        branch = f"branches.{self.blip2}"
        return [
            ("query_tokens", f"{branch}.query_tokens"),
            ("vision_proj", f"{branch}.itc_proj"),
            (f"{self.llm}_proj", f"{branch}.llm_proj"),
            *rules,
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
        """The layout of a state dict, and the state dict under our names, without aliases of what it holds.

        What has no place here keeps its name.
        """
        layout = self.layout(state)
        if layout in ("eva", "clip", "point_bert"):
            return layout, _encoder_file(state, layout)
        names, plain = (layout, dict(state)) if layout != "hf-blip2" else ("blip2", hf_blip2.to_blip2(state, self.llm))
        vit = {key.removeprefix(VIT): tensor for key, tensor in plain.items() if key.startswith(VIT)}
        if clip_vit.is_clip(vit):
            plain = {key: tensor for key, tensor in plain.items() if not key.startswith(VIT)}
            plain |= {f"{VIT}{name}": tensor for name, tensor in clip_vit.from_clip_names(vit)[0].items()}
        return layout, without_aliases({self.to_lavis(key, names): tensor for key, tensor in plain.items()})

    def write(self, state: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], list[str]]:
        """Our state dict in `layout`, with the aliases that published files have, and our names that have no place there.

        ConfigError for a layout that is not written.
        """
        if layout not in LAYOUTS:
            raise ConfigError(f"layout {layout!r} is not written; accepted: {', '.join(LAYOUTS)}")
        placed = {name: tensor for name, tensor in state.items() if self._has_place(name, layout)}
        left_out = [name for name in state if name not in placed]
        if layout == "lavis":
            return placed, left_out
        if layout == "hf-blip2":
            plain = {self.from_lavis(name, "blip2"): tensor for name, tensor in placed.items()}
            written, without_place = hf_blip2.from_blip2(plain, self.llm)
            return written, left_out + without_place
        if f"{VIT}norm_pre.weight" in placed:
            vit = {name.removeprefix(VIT): tensor for name, tensor in placed.items() if name.startswith(VIT)}
            placed = {name: tensor for name, tensor in placed.items() if not name.startswith(VIT)}
            placed |= {f"{VIT}{name}": tensor for name, tensor in clip_vit.to_clip_names(vit).items()}
        return {self.from_lavis(name, layout): tensor for name, tensor in with_aliases(placed).items()}, left_out

    def _has_place(self, name: str, layout: str) -> bool:
        if layout == "lavis":
            return OURS.fullmatch(name) is not None
        if layout == "regionblip":
            branches = tuple(f"branches.{row.name}." for row in self.rows)
            adapter = re.search(r"\.lora_[AB]\.", name)
            known = not adapter or self.from_lavis(name, layout) != name
            return bool(OURS.fullmatch(name)) and known and (not name.startswith("branches.") or name.startswith(branches))
        own = tuple(f"branches.{self.blip2}.{part}" for part in ("query_tokens", "itc_proj", "llm_proj"))
        return (self.blip2 is not None and name.startswith(own)) or (
            BLIP2_PARTS.fullmatch(name) is not None and ".lora_" not in name
        )


def _encoder_file(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The file of one encoder under our names; what is no part of the encoder keeps its name."""
    if layout == "eva":
        return {f"{VIT}{name}": tensor for name, tensor in state.items()}
    prefix, fit = (VIT, clip_vit.from_clip_names) if layout == "clip" else ("point_encoder.", fit_point_bert_state_dict)
    fitted, left_out = fit(state)
    return {f"{prefix}{name}": tensor for name, tensor in fitted.items()} | {name: state[name] for name in left_out}


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
    _refuse_ties(own, state)
    report = LoadReport(layout=layout)
    with torch.no_grad():
        for name, tensor in state.items():
            if name in own:
                own[name].copy_(tensor)
                report.loaded.append(name)
            elif not is_alias(name):
                report.ignored.append(name)
    loaded = set(report.loaded)
    tied = {id(own[name]) for name in loaded}
    for name, tensor in own.items():
        if name not in loaded and id(tensor) not in tied:
            report.missing[name] = _reason(name, tensor, name in loaded_before)
    return report


def _refuse_ties(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """ConfigError when two tensors of a file that differ would go into one tensor of the model."""
    places: dict[int, str] = {}
    for name, tensor in state.items():
        first = places.setdefault(id(own[name]), name) if name in own else name
        if first != name and not torch.equal(state[first], tensor):
            raise ConfigError(f"{first} and {name} are one tensor in the model, but differ in the checkpoint")


def _reason(name: str, tensor: Tensor, loaded_before: bool) -> str:
    """Why it is no harm, or what to look at, that a file lacks a tensor."""
    if loaded_before:
        return "loaded before, from a file of its own"
    if ".lora_A." in name or ".lora_B." in name:
        return "adapters as initialised"
    return "trainable, as initialised" if tensor.requires_grad else "frozen, as initialised"
