"""Hugging Face's layout of BLIP-2 (`Blip2ForConditionalGeneration`, `Blip2ForImageTextRetrieval`) beside LAVIS'.

Differences: other names; the ViT's q and v biases stand in one `qkv.bias` with a zero k part; no `temp` and no Q-Former LM head.
`post_layernorm` is `ln_vision` with the ViT's eps 1e-6, where LAVIS has 1e-5: `FolderConfig` says which, so that a model that
reads a folder computes what transformers computes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis.common.errors import ConfigError

# (their prefix, LAVIS' prefix); the first that fits counts, in both directions
PREFIXES = [
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
    ("vision_model.encoder.layers", "visual_encoder.blocks"),
    ("vision_model.post_layernorm", "ln_vision"),
    ("qformer.layernorm", "Qformer.bert.embeddings.LayerNorm"),
    ("qformer.encoder", "Qformer.bert.encoder"),
    ("embeddings", "Qformer.bert.embeddings"),
    ("vision_projection", "vision_proj"),
    ("text_projection", "text_proj"),
    ("itm_head", "itm_head"),
    ("query_tokens", "query_tokens"),
]
INNER = [  # within a name, likewise
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".self_attn.projection.", ".attn.proj."),
    (".self_attn.qkv.", ".attn.qkv."),
    (".attention.attention.", ".attention.self."),
    (".crossattention.attention.", ".crossattention.self."),
]
MARK = re.compile(r"qformer\.|language_projection\.|vision_model\.encoder\.layers\.\d+\.self_attn\.qkv\.")
QKV_BIAS = re.compile(r"(visual_encoder\.blocks\.\d+\.attn)\.qkv\.bias")


def is_hf_blip2(keys: Iterable[str]) -> bool:
    """Whether keys are those of Hugging Face's BLIP-2."""
    return any(MARK.match(key) for key in keys)


def to_blip2(state: Mapping[str, Tensor], llm: str) -> dict[str, Tensor]:
    """A state dict under LAVIS' names; `llm` is the prefix of LAVIS' names of the LLM ("opt" or "t5").

    The k part of `qkv.bias` is left out: it shifts all scores of a query alike, which the softmax does not see.
    """
    renamed = {}
    for key, tensor in state.items():
        name = _renamed(key, _prefixes(llm), INNER)
        if match := QKV_BIAS.fullmatch(name):
            renamed[f"{match[1]}.q_bias"], _, renamed[f"{match[1]}.v_bias"] = tensor.chunk(3)
        else:
            renamed[name] = tensor
    return renamed


def from_blip2(state: Mapping[str, Tensor], llm: str) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict (LAVIS' names) under Hugging Face's, and the names that have no place there."""
    prefixes = [(ours, theirs) for theirs, ours in _prefixes(llm)]
    inner = [(ours, theirs) for theirs, ours in INNER]
    renamed, left_out = {}, []
    for key, tensor in state.items():
        name = _renamed(key, prefixes, inner)
        if key.endswith(".attn.q_bias"):
            bias = torch.cat([tensor, torch.zeros_like(tensor), state[key.removesuffix("q_bias") + "v_bias"]])
            renamed[name.replace(".attn.q_bias", ".self_attn.qkv.bias")] = bias
        elif not any(key == ours or key.startswith(f"{ours}.") for ours, _ in prefixes):
            left_out.append(key)
        elif not key.endswith(".attn.v_bias"):
            renamed[name] = tensor
    return renamed, left_out


def _prefixes(llm: str) -> list[tuple[str, str]]:
    return [("language_projection", f"{llm}_proj"), ("language_model", f"{llm}_model"), *PREFIXES]


def _renamed(key: str, prefixes: list[tuple[str, str]], inner: list[tuple[str, str]]) -> str:
    key = key.removeprefix("qformer.") if key.startswith("qformer.embeddings.") else key  # names of early releases
    for before, after in prefixes:
        if key == before or key.startswith(f"{before}."):
            name = after + key[len(before) :]
            if before.startswith(("language_model", "opt_", "t5_")):  # the LLM's own names are Hugging Face's already
                return name
            for old, new in inner:
                name = name.replace(old, new)
            return name
    return key


@dataclass(frozen=True)
class FolderConfig:
    """What a folder's config.json says that its weights do not."""

    norm_eps: float  # of ln_vision
    text: Mapping[str, Any]  # config of the LLM; empty for a stage-1 folder without one

    @classmethod
    def read(cls, path: str | Path) -> FolderConfig | None:
        """The config of a BLIP-2 folder; None for a file, or for a folder of something else."""
        file = Path(path) / "config.json"
        if not file.is_file():
            return None
        try:
            config = json.loads(file.read_text())
        except ValueError as error:
            raise ConfigError(f"{file} is no JSON: {error}") from error
        if not isinstance(config, dict) or config.get("model_type") != "blip-2":
            return None
        vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
        return cls(norm_eps=float(vision.get("layer_norm_eps", 1e-6)), text=text)
