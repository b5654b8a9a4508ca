"""The cache of frozen-encoder features in a run: opened before the first batch, written after each, counted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from lavis.common import dist_utils
from lavis.common.errors import ConfigError
from lavis.common.feature_cache import FeatureCache, FeatureStore
from lavis.common.paths import resolve
from lavis.runners.step import amp_dtype

logger = logging.getLogger(__name__)


def open_feature_cache(
    run_cfg: Any, *, model: Any, datasets: Mapping[str, Mapping[str, Any]], device: torch.device
) -> FeatureCache | None:
    """Let datasets read from, and the model give to, the folder `run.feature_cache`; None where that is null.

    ConfigError for a model whose features may not be kept. Datasets that augment their pictures read them as before, and say so.
    """
    if run_cfg.feature_cache is None:
        return None
    encoder = getattr(model, "encoders", {}).get("image")
    if encoder is None:
        what = f"no modality of this {type(model).__name__} reads images, whose features could be kept"
        raise ConfigError(f"run.feature_cache: {what}; accepted here: null")
    identity = encoder.identity(autocast=amp_dtype(run_cfg, device))
    limit = int(run_cfg.feature_cache_gb * 1e9)
    store = FeatureStore(resolve(run_cfg.feature_cache), identity, shape=encoder.shape(), limit=limit)
    store.open()
    for name, parts in datasets.items():
        for split, dataset in parts.items():
            if hasattr(dataset, "set_feature_cache") and not dataset.set_feature_cache(store):
                logger.info("dataset %s, %s augments its pictures: run.feature_cache keeps no features of them", name, split)
    logger.info("features of the frozen ViT are kept in %s", store.folder)
    cache = FeatureCache(store)
    encoder.sink = cache
    return cache


def finish_batch(cache: FeatureCache | None, samples: Mapping[str, Any]) -> None:
    """Write the features that a step computed, and count those that it found."""
    if cache is not None:
        cache.finish_batch(samples)


def counts_of(cache: FeatureCache | None, what: str) -> dict[str, int]:
    """What the caches of all processes did since the last call, also in the log; {} without one. Collective."""
    if cache is None:
        return {}
    counts = dist_utils.all_gather_objects(cache.take_counts())
    total = {key: sum(part[key] for part in counts) for key in counts[0]}
    if any(total.values()):
        logger.info("%s, feature cache: %s", what, ", ".join(f"{count} {key}" for key, count in total.items()))
    return total
