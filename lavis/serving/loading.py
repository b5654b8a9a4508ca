"""A `Captioner` from a checkpoint: of a training here, of the quickstart, the one that is shipped, or a published file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from lavis.common.checkpoint import find_latest, load_weights
from lavis.common.config import Config, ConfigError, dataset_defaults, merge_model_config
from lavis.common.errors import listed
from lavis.common.modalities import modality_of
from lavis.common.paths import library_root, resolve
from lavis.models import load_model_from_config
from lavis.models.parts import PATH_KEYS
from lavis.serving.captioner import Captioner

logger = logging.getLogger(__name__)

REPOSITORY = library_root.parent
TRAINED = ("output/quickstart/clouds", "output/quickstart/region")  # what `make quickstart` leaves, the further one first
SHIPPED = "assets/quickstart/regionblip.safetensors"
BESIDE = ("config", "frozen_bases")  # what stands beside the weights
CLOUD_DATASETS = ("pointcloud_caption", "scannet_refer")  # whose defaults say how many points are read


def load_captioner(
    checkpoint: str | Path | None = None,
    *,
    cfg_path: str | Path | None = None,
    options: Sequence[str] = (),
    device: str | torch.device = "cpu",
) -> Captioner:
    """The model of a checkpoint, ready to caption.

    checkpoint None: the one that `cfg_path` names, else the newest of the quickstart, else the shipped one. The configuration is
    that of `cfg_path`, else the one inside the checkpoint; `options` (`model.a=b`) go over it. Paths in it that are not found
    from the working directory are tried from the repository. ConfigError names what is missing, and parts that no file held
    weights of.
    """
    config = Config.from_file(cfg_path, options=options) if cfg_path is not None else None
    path = _found(checkpoint) if checkpoint is not None else (config and _named(config.model)) or default_checkpoint()
    content = _read(path)
    if config is not None:
        model_cfg, parts = config.model.copy(), config.to_dict()
    elif isinstance(inside := content.get("config"), dict) and isinstance(inside.get("model"), dict):
        model_cfg, parts = merge_model_config({**inside["model"], "allow_random_init": False}, options=options), inside
    else:
        raise ConfigError(f"{path} holds no configuration, as published checkpoints do not; name one with cfg_path (--cfg-path)")
    model = _built(model_cfg, path, content, device=device)
    max_length = (parts.get("run") or {}).get("max_len")
    return Captioner(
        model.to(device),
        checkpoint=path,
        points=parts.get("points") or points_read(parts.get("datasets") or {}),
        decoding={"max_length": max_length} if max_length else {},
    )


def default_checkpoint() -> Path:
    """The newest checkpoint of the quickstart, else the shipped one. ConfigError where there is none."""
    for folder in TRAINED:
        if (found := find_latest(REPOSITORY / folder)) is not None:
            return found
    if (shipped := REPOSITORY / SHIPPED).is_file():
        return shipped
    raise ConfigError(f"no checkpoint: neither of {listed(TRAINED)} nor {SHIPPED} is in {REPOSITORY}; name one (--checkpoint)")


def _named(cfg: DictConfig) -> Path | None:
    """The trained weights that a model configuration loads."""
    for kind in ("finetuned", "pretrained"):
        if cfg.get(f"load_{kind}") and cfg.get(kind):
            return _found(cfg[kind])
    return None


def _found(path: str | Path) -> Path:
    """A path as it is, or in the repository where it is not found from the working directory."""
    here = resolve(path)
    return here if here.exists() or here.is_absolute() or not (REPOSITORY / here).exists() else REPOSITORY / here


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file; `config` and `frozen_bases` of a .safetensors file stand in its metadata as JSON. Of a
    folder: nothing, its files are read by the model."""
    if path.is_dir():
        return {}
    content = load_weights(path)
    if path.suffix != ".safetensors":
        return content
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return {"model": content, **{key: json.loads(metadata[key]) for key in BESIDE if key in metadata}}


def _built(cfg: DictConfig, path: Path, content: dict[str, Any], *, device: str | torch.device) -> Any:
    """The model with the checkpoint's weights over those of its frozen files.

    What a training started from (`pretrained`) is read only where something would be missing otherwise.
    """
    start = _named(cfg)
    for kind in ("finetuned", "pretrained"):
        cfg[f"load_{kind}"], cfg[kind] = False, None
    for node, key in (*((cfg, key) for key in PATH_KEYS), (cfg.get("vit"), "pretrained"), (cfg.get("pointbert"), "pretrained")):
        if node is not None and node.get(key):
            node[key] = str(_found(node[key]))
    model: Any = load_model_from_config(cfg, device=device)

    def load() -> list[str]:
        try:
            model.load_checkpoint(content or path)
        except ConfigError as error:  # of a content it does not know the name
            raise ConfigError(f"{path}: {str(error).removeprefix('the state: ').removeprefix(f'{path}: ')}") from error
        return model.random_parts(for_evaluation=True)

    random = load()
    if random and start is not None and start != path and start.exists():
        model.load_checkpoint(start)
        random = load()
    if random and not cfg.allow_random_init:
        raise ConfigError(
            f"{path}: these parts of the model were loaded from nowhere and hold random weights: {listed(random)}. Name their "
            "files in the configuration (--cfg-path, --options), or set model.allow_random_init=true"
        )
    return model


def points_read(datasets: Mapping[str, Any]) -> dict[str, int]:
    """How many points a sample of each cloud modality has, by a run's datasets; those without one by the published default."""
    points: dict[str, int] = {}
    for block in [*datasets.values(), *(dataset_defaults(name) for name in CLOUD_DATASETS)]:
        splits = list((block.get("annotations") or {}).values())
        used = [split for split in splits if split.get("scanner_file") or split.get("storage")]  # the others hold defaults
        for part in (block, *(block.get("build_info") or {}).values(), *(used or splits)):
            if isinstance(part, Mapping) and part.get("num_points"):
                points.setdefault(modality_of(str(block.get("task_name"))), int(part["num_points"]))
    return points
