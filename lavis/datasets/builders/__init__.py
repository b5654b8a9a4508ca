"""LAVIS' name for the module of `load_dataset`, `load_dataset_config` and `dataset_zoo`."""

from lavis.datasets.builders.base_dataset_builder import dataset_zoo, load_dataset, load_dataset_config

__all__ = ["dataset_zoo", "load_dataset", "load_dataset_config"]
