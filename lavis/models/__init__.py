"""Models and LAVIS' ways to load them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lavis.common.claims import claims
from lavis.common.config import ConfigError, merge_model_config, model_defaults
from lavis.common.precision import building_for
from lavis.common.registry import registry
from lavis.common.zoo import Zoo
from lavis.models.base_model import BaseModel
from lavis.models.weights.pretrained import find, pretrained_config
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


def load_model_from_config(
    cfg: Mapping[str, Any] | DictConfig, *, device: str | torch.device = "cpu", autocast: torch.dtype = torch.float32
) -> BaseModel:
    """Build the model that a (possibly partial) model config describes: its defaults are those of its arch and model_type.

    The model is on the CPU; `device` says where it will run: for a GPU, frozen parts are held in the precision that the config
    names. `autocast`: the type of the autocast that it will run under, if any; frozen parts are held in it where that spares
    conversions. ConfigError on unknown keys or names, before anything is built.
    """
    merged = merge_model_config(cfg)
    with building_for(device, autocast=autocast):
        return registry.get_model_class(merged.arch).from_config(merged)


def load_model(
    name: str,
    model_type: str,
    is_eval: bool = False,
    device: str | torch.device = "cpu",
    checkpoint: str | None = None,
    *,
    overrides: Mapping[str, Any] | DictConfig | None = None,
) -> BaseModel:
    """LAVIS' loader: a registered arch and type with the weights that the type names (lavis/models/weights/pretrained.py).

    `checkpoint` is loaded over them; the type's own trained file may then be absent. `overrides`: model keys, paths and sizes
    among them, that go over those of the type. ConfigError names each file that cannot be had and the key that says where it
    is, before anything is built; and parts that no file held weights of, unless overrides set `allow_random_init: true`.
    """
    cfg = pretrained_config(name, model_type, overrides=overrides, checkpoint=checkpoint)
    model = load_model_from_config(cfg, device=device)
    if checkpoint is not None:
        model.load_checkpoint(find(str(checkpoint)) or checkpoint)
    if random := model.random_parts(for_evaluation=is_eval):
        what = f"{name} {model_type}: no file held weights of {', '.join(random)}"
        if not cfg.get("allow_random_init"):
            raise ConfigError(f"{what}; name files that do (overrides, checkpoint), or set allow_random_init: true in overrides")
        logger.warning("%s; they are random", what)
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
    name: str,
    model_type: str,
    is_eval: bool = False,
    device: str | torch.device = "cpu",
    *,
    checkpoint: str | None = None,
    overrides: Mapping[str, Any] | DictConfig | None = None,
) -> tuple[BaseModel, dict[str, Any], dict[str, Any]]:
    """A model of a registered type (see `load_model`) with its visual and text processors, for pictures of the model's size."""
    model = load_model(name, model_type, is_eval, device, checkpoint, overrides=overrides)
    node = OmegaConf.create(model_defaults(name, model_type=model_type).get("preprocess") or {})
    size = OmegaConf.select(getattr(model, "cfg", None) or OmegaConf.create({}), "vit.img_size")
    for spec in (node.get("vis_processor") or {}).values():
        if size is not None and "image_size" in spec:
            spec.image_size = size
    return model, *load_preprocess(node)


model_zoo = Zoo("model", heading="Architectures", types="PRETRAINED_MODEL_CONFIG_DICT", without_types=False, claimed=claims)
