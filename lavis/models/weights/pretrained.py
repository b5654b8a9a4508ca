"""What a registered type stands for: its configuration with the weight files that it names, found on this machine.

`weights` in a model's default YAML (lavis/configs/models) holds what a type adds to its configuration: files by name. A name is
looked up as a path, below `$WEIGHTS` (default: weights), in the cache folder ($LAVIS_CACHE) and where LAVIS kept its downloads
(torch hub's folder). Nothing is fetched.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lavis.common.config import ConfigError, merge_model_config, model_defaults
from lavis.common.paths import get_cache_root, resolve
from lavis.models import parts

logger = logging.getLogger(__name__)

LAVIS_URL = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/"
SOURCES = {  # what a missing file's name says of where it can be had
    r"(blip2_|eva_vit_g|clip_vit_L).*\.pth": "released with LAVIS: " + LAVIS_URL + "{}",
    r"point_bert_pretrained\.pt": "a Point-BERT of ULIP, github.com/salesforce/ULIP",
    r"regionblip_.*\.pth": "see github.com/mightyzau/RegionBLIP, or train it with run_scripts/train",
}
CHECKPOINTS = ("finetuned", "pretrained", "blip2_pretrain")  # keys that a load_ key switches
TRAINED = ("pretrained", "finetuned")  # the files that a checkpoint given by hand can stand in for


def folders() -> list[Path]:
    """Where weight files are looked for by name, in this order."""
    weights = resolve(os.environ.get("WEIGHTS") or "weights")
    return [Path.cwd(), Path.cwd() / weights, get_cache_root(), Path(torch.hub.get_dir()) / "checkpoints"]


def find(name: str) -> Path | None:
    """The file (or folder of shards) that a path or a bare name stands for; None where there is none."""
    path = resolve(name)
    tried = [path] if path.is_absolute() else [folder / path for folder in folders()]
    return next((candidate for candidate in tried if candidate.exists()), None)


def pretrained_config(
    arch: str, model_type: str, *, overrides: Mapping[str, Any] | DictConfig | None = None, checkpoint: Any = None
) -> DictConfig:
    """The full configuration of a type, its files as paths.

    `overrides`: model keys that go over those of the type; a path set to null is not looked for. `checkpoint`: with one, the
    type's own trained weights may be absent. One ConfigError names every file that cannot be found; where the overrides set
    `allow_random_init: true`, only tokenizers and language models are missed, and what no file is found for stays random.
    """
    weights = model_defaults(arch, model_type=model_type).get("weights") or {}
    named = [weights.get(key) or {} for key in ("+", model_type)]  # "+": of every type
    own = {"arch": arch, "model_type": model_type}
    cfg = merge_model_config(DictConfig(OmegaConf.merge(*named, OmegaConf.create(dict(overrides or {})), own)))
    for key in CHECKPOINTS:
        if cfg.get(f"load_{key}") and not cfg.get(key):
            cfg[f"load_{key}"] = False
    missing = {}
    for key in _file_keys(cfg):
        name = OmegaConf.select(cfg, key)
        found = find(name)
        if found is not None:
            OmegaConf.update(cfg, key, str(found))
        elif cfg.get("allow_random_init") or (checkpoint is not None and key in TRAINED):
            logger.warning("%s %s: model.%s: no file %s; it is left out", arch, model_type, key, name)
            OmegaConf.update(cfg, key, None)
            if f"load_{key}" in cfg:
                cfg[f"load_{key}"] = False
        else:
            missing[key] = f"{name}{_source(name)}"
    for key in ("bert_path", "opt_model", "t5_model"):
        source = cfg.get(key)
        if source and not _is_here(str(resolve(source))):
            missing[key] = f"{source} (a Hugging Face folder, or a name in the local Hugging Face cache)"
    if missing:
        raise ConfigError(_message(arch, model_type, missing))
    return cfg


def _is_here(source: str) -> bool:
    """Whether a Hugging Face folder, or a name in the local cache, has a config.json."""
    try:
        return (parts.source_folder(source) / "config.json").is_file()
    except (OSError, ValueError):  # what Hugging Face says, old and new, of names that it could not hold
        return False


def _file_keys(cfg: DictConfig) -> Iterator[str]:
    """The keys of the weight files that a configuration reads."""
    for key in CHECKPOINTS:
        if cfg.get(f"load_{key}") and not (key == "pretrained" and cfg.get("load_finetuned")):
            yield key
    for part in ("vit", "pointbert"):
        if cfg.get(part) is not None and cfg[part].get("pretrained"):
            yield f"{part}.pretrained"


def _source(name: str) -> str:
    file = Path(name).name
    return next((f" ({text.format(file)})" for pattern, text in SOURCES.items() if re.fullmatch(pattern, file)), "")


def _message(arch: str, model_type: str, missing: Mapping[str, str]) -> str:
    lines = [f"  model.{key}: {what}" for key, what in missing.items()]
    first, _, rest = next(iter(missing)).partition(".")
    example = f"{{'{first}': {{'{rest}': PATH}}}}" if rest else f"{{'{first}': PATH}}"
    return "\n".join(
        [
            f"{arch} {model_type} stands for files that are not here:",
            *lines,
            f"Looked for files in {', '.join(str(folder) for folder in folders())}.",
            f"Put them there, or name them: load_model('{arch}', '{model_type}', overrides={example}); trained weights also by "
            "checkpoint=PATH. A path set to None is left out.",
        ]
    )
