"""Models and LAVIS' ways to load them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lavis.common.config import merge_model_config, model_defaults
from lavis.common.precision import building_for
from lavis.common.registry import registry
from lavis.models.base_model import BaseModel
from lavis.processors import load_processor

logger = logging.getLogger(__name__)

__all__ = [
    "BaseModel",
    "load_model",
    "load_model_and_preprocess",
    "load_model_from_config",
    "load_preprocess",
    "model_zoo",
]


def load_model_from_config(cfg: Mapping[str, Any] | DictConfig, *, device: str | torch.device = "cpu") -> BaseModel:
    """Build the model that a (possibly partial) model config describes: its defaults are those of its arch and model_type.

    The model is on the CPU; `device` says where it will run: for a GPU, frozen parts are held in the precision that the config
    names. ConfigError on unknown keys or names, before anything is built.
    """
    merged = merge_model_config(cfg)
    with building_for(device):
        return registry.get_model_class(merged.arch).from_config(merged)


def load_model(
    name: str,
    model_type: str,
    is_eval: bool = False,
    device: str | torch.device = "cpu",
    checkpoint: str | None = None,
) -> BaseModel:
    """LAVIS' loader: a registered arch and type; `checkpoint` is loaded over the weights that the type names."""
    model = load_model_from_config({"arch": name, "model_type": model_type}, device=device)
    if checkpoint is not None:
        model.load_checkpoint(checkpoint)
    if random := model.random_parts(for_evaluation=is_eval):
        logger.warning("%s %s: these parts hold random weights, no file was named for them: %s", name, model_type, random)
    model = model.to(device)
    return model.eval() if is_eval else model


def load_preprocess(config: Mapping[str, Any] | DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """(visual, text) processors of a `preprocess` node, each a dict with "train" and "eval"; identity where one is missing."""
    node = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))

    def build(kind: str, split: str) -> Any:
        spec = OmegaConf.select(node, f"{kind}.{split}")
        return load_processor("identity") if spec is None else load_processor(spec.name, spec)

    visual, text = ({split: build(kind, split) for split in ("train", "eval")} for kind in ("vis_processor", "text_processor"))
    return visual, text


def load_model_and_preprocess(
    name: str, model_type: str, is_eval: bool = False, device: str | torch.device = "cpu"
) -> tuple[BaseModel, dict[str, Any], dict[str, Any]]:
    """A model of a registered type with its visual and text processors."""
    model = load_model(name, model_type, is_eval=is_eval, device=device)
    return model, *load_preprocess(model_defaults(name, model_type=model_type).get("preprocess") or {})


class ModelZoo:
    """The registered archs and their types: iterates as (arch, [types]), prints as a table, len() counts types."""

    def _table(self) -> dict[str, list[str]]:
        archs = {
            name: list(getattr(registry.get_model_class(name), "PRETRAINED_MODEL_CONFIG_DICT", ()))
            for name in registry.list_models()
        }
        return {name: types for name, types in sorted(archs.items()) if types}

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return iter(self._table().items())

    def __len__(self) -> int:
        return sum(len(types) for types in self._table().values())

    def __str__(self) -> str:
        rows = [("Architectures", "Types"), ("=" * 28, "=" * 28), *((a, ", ".join(t)) for a, t in self)]
        return "\n".join(f"{arch:<30} {types}" for arch, types in rows)


model_zoo = ModelZoo()
