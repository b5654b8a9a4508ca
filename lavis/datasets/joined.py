"""Several datasets as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from torch.utils.data import Dataset

from lavis.common.seeding import mix
from lavis.datasets.orders import InterleavedOrder, Order, own_order, permutation
from lavis.datasets.samples import BaseDataset, Batch, Sample, collate


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
        shared = all(dataset.share_inputs for dataset in datasets)
        self.collater: Callable[[Sequence[Sample]], Batch] = partial(collate, share_inputs=shared)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in dataset {self.name}")
        dataset, own = self._place(index)
        return dataset[epoch, own]

    def _place(self, index: int) -> tuple[BaseDataset, int]:
        """The dataset of sample `index`, and the index there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.datasets[number], index - (int(self._ends[number - 1]) if number else 0)

    def label_of(self, index: int) -> str:
        """Where the row of sample `index` stands: dataset, file and place."""
        dataset, own = self._place(index)
        return f"{dataset.label_of(own)} of {dataset.name}"

    @property
    def dropped(self) -> list[tuple[str, str]]:
        """(row, reason) of the rows left out when the files were read."""
        return [entry for dataset in self.datasets for entry in dataset.dropped]

    def epoch_order(self, *, seed: int, epoch: int) -> Order | None:
        """An order of the epoch in which each dataset keeps its own, where one of them has one; else None."""
        own = [own_order(dataset, seed=seed, epoch=epoch) for dataset in self.datasets]
        if all(order is None for order in own):
            return None
        parts = [
            permutation(len(dataset), seed=mix(seed, number), epoch=epoch) if order is None else order
            for number, (dataset, order) in enumerate(zip(self.datasets, own, strict=True))
        ]
        return InterleavedOrder(parts, seed=seed, epoch=epoch)

    def set_seed(self, seed: int) -> None:
        """Set the seed of each dataset."""
        for dataset in self.datasets:
            dataset.set_seed(seed)
