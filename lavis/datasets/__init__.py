"""Datasets: annotation files to samples, samples to batches, batches to a training or evaluation run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lavis.datasets.builders.base_dataset_builder import dataset_zoo, load_dataset, load_dataset_config

__all__ = ["dataset_zoo", "load_dataset", "load_dataset_config"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from lavis.datasets.builders import base_dataset_builder as builder

        return getattr(builder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
