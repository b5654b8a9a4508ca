"""Several datasets as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from lavis.common.errors import ConfigError
from lavis.common.seeding import mix
from lavis.datasets.batches import Batch, Sample, collate, rename_inputs
from lavis.datasets.datasets.base_dataset import BaseDataset
from lavis.datasets.orders import Indices, InterleavedOrder, Order, grouped_permutation, own_order, permutation


class JoinedDataset(Dataset[Sample]):
    """Several datasets of one modality in a row, for a task that trains on all of them."""

    def __init__(self, datasets: Sequence[BaseDataset]) -> None:
        modalities = sorted({dataset.modality for dataset in datasets})
        if len(modalities) != 1:
            raise ValueError(f"joined datasets share one modality, these have {modalities}")
        self.datasets = list(datasets)
        self.name = "+".join(dataset.name for dataset in datasets)
        self.split, self.modality = datasets[0].split, modalities[0]
        self._ends = np.cumsum([len(dataset) for dataset in datasets])
        self.share_inputs = all(dataset.share_inputs for dataset in datasets)
        self.grouped = False

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in dataset {self.name}")
        number, own = self._place(index)
        sample = self.datasets[number][epoch, own]
        if self.share_inputs:  # two datasets may have different pictures of one name
            rename_inputs(sample, str(number))
        if self.grouped:
            sample["positive_key"] = f"{number} {sample['positive_key']}"
        return sample

    def _place(self, index: int) -> tuple[int, int]:
        """The number of the dataset of sample `index`, and the index there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)

    def collater(self, samples: Sequence[Sample]) -> Batch:
        """One batch of these samples."""
        return collate(samples, share_inputs=self.share_inputs)

    def label_of(self, index: int) -> str:
        """Where the row of sample `index` stands: dataset, file and place."""
        number, own = self._place(index)
        dataset = self.datasets[number]
        return f"{dataset.label_of(own)} of {dataset.name}"

    @property
    def dropped(self) -> list[tuple[str, str]]:
        """(row, reason) of the rows left out when the files were read."""
        return [entry for dataset in self.datasets for entry in dataset.dropped]

    def epoch_order(self, *, seed: int, epoch: int) -> Order | None:
        """An order of the epoch in which each dataset keeps its own, where one of them has one; else None."""
        if self.grouped:
            return grouped_permutation(self._groups, seed=seed, epoch=epoch)
        own = [own_order(dataset, seed=seed, epoch=epoch) for dataset in self.datasets]
        if all(order is None for order in own):
            return None
        parts = [
            permutation(len(dataset), seed=mix(seed, number), epoch=epoch) if order is None else order
            for number, (dataset, order) in enumerate(zip(self.datasets, own, strict=True))
        ]
        return InterleavedOrder(parts, seed=seed, epoch=epoch)

    def group_rows(self) -> None:
        """As a dataset's own; rows of one picture in two datasets are two groups. ConfigError where one is read in an order of
        its own, which is not made of groups."""
        parts: list[Indices] = []
        for dataset in self.datasets:
            dataset.group_rows()
            groups = dataset.groups()
            if groups is None:
                raise ConfigError(
                    f"run.group_by_image: dataset {dataset.name} is read in the order of its shards, which cannot be joined with "
                    f"others ({self.name} are of modality {self.modality}) and keep pictures together; accepted here: false"
                )
            parts.append(groups + (parts[-1].max() + 1 if parts else 0))
        self._groups = np.concatenate(parts)
        self.grouped = self.share_inputs = True

    def set_seed(self, seed: int) -> None:
        """Set the seed of each dataset."""
        for dataset in self.datasets:
            dataset.set_seed(seed)


def join(datasets: Sequence[Any], *, grouped: bool = False) -> Any:
    """One dataset of several of one modality, or the only one; `grouped`: rows of one picture, or cloud, next to each other.

    ConfigError where that cannot be.
    """
    dataset = datasets[0] if len(datasets) == 1 else JoinedDataset(datasets)
    if grouped:
        for part in datasets:
            if not hasattr(part, "group_rows"):
                name = getattr(part, "name", type(part).__name__)
                raise ConfigError(
                    f"run.group_by_image: dataset {name} cannot tell which rows are of one picture; accepted: false"
                )
        dataset.group_rows()
    return dataset
