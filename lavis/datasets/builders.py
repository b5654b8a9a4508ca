"""LAVIS' name for the module of `load_dataset` and `dataset_zoo`."""

from lavis.datasets.builder import dataset_zoo, load_dataset

__all__ = ["dataset_zoo", "load_dataset"]
