"""What of a training checkpoint captions need: the weights, the model's configuration, the frozen files it stands on.

The optimizer, the random states and the progress are left out, and in half precision the weights take half the room.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lavis.common.checkpoint import load_weights, save_weights, unwrap
from lavis.common.errors import ConfigError
from lavis.serving.loading import points_read

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
KEPT_OF_RUN = ("max_len",)


def strip_checkpoint(source: str | Path, target: str | Path, *, dtype: str | None = None, note: str = "") -> Path:
    """Write the weights of `source`, a training checkpoint of ours, to `target`, whole or not at all; returns its path.

    target: .safetensors, .pth, .pt or .bin. dtype: of floating weights (`DTYPES`; None: as they are). note: what made it, in
    words. Beside the weights stand `config` (the model, without what training started from, and what of the run and its data
    captions need), `frozen_bases` and `note`; of a .safetensors file in its metadata. ConfigError for another kind of checkpoint.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; accepted: {', '.join(DTYPES)}")
    content = load_weights(source)
    config = content.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise ConfigError(f"{source} holds no configuration: it is no training checkpoint of ours")
    state = unwrap(content)
    if dtype is not None:
        state = {name: tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    beside = {"config": slim_config(config), "frozen_bases": content.get("frozen_bases") or {}, "note": note}
    return save_weights(state, target, beside=beside)


def slim_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's configuration that describes the trained model; no path but those of its frozen files."""
    started = {"load_pretrained": False, "pretrained": None, "load_finetuned": False, "finetuned": None}
    return {
        "model": {**config["model"], **started, "allow_random_init": False},
        "run": {key: config["run"][key] for key in KEPT_OF_RUN if key in (config.get("run") or {})},
        "points": points_read(config.get("datasets") or {}),
    }
