"""Processors: what turns a picture or a caption as it lies on disk into what a model reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lavis.common.registry import registry
from lavis.processors.base_processor import BaseProcessor

__all__ = ["BaseProcessor", "load_processor"]


def load_processor(name: str, cfg: Mapping[str, Any] | None = None) -> BaseProcessor:
    """Return the processor registered under `name`, built from `cfg` (its keys, without `name`).

    UnknownNameError names the registered processors, ConfigError the keys that this one takes.
    """
    processor: BaseProcessor = registry.get_processor_class(name).from_config(cfg)
    return processor
