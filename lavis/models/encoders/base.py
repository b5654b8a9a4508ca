"""What every encoder offers: samples in, the tokens that queries look at out.

An encoder has two halves. The frozen half (`features`) depends on its input alone: its result may be cached, and is shared by all
rows of a batch that read one input. The trained half (`tokens`) is a norm or an adapter. A new encoder is a new file with a class
registered by `registry.register_encoder`; an entry of `model.modalities` names it by `encoder:`.

Shapes: I encoded inputs (several rows may share one), B rows, T tokens, C width of the tokens that the Q-Former reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lavis.models.qformer.tokens import Tokens

Samples = Mapping[str, object]


@dataclass(frozen=True)
class Features:
    """What the frozen half gives: embeds [I, T, C'], and where tokens of a cloud lie, centres [I, G, 3] (the last G tokens)."""

    embeds: Tensor
    centres: Tensor | None = None


@dataclass(frozen=True)
class Inputs:
    """What `read` found of a batch: the encoder's own input, or what it gave earlier for the same input, or both.

    raw [M, ...]; known: features computed before; order [I]: where among raw and known, one after the other, each input is;
    index [B]: which input a row reads (None: row i reads i); start [I], groups [I, G, 1 + K]: of clouds; entry: under which names
    features are kept by a cache.
    """

    raw: Tensor | None = None
    known: Features | None = None
    order: Tensor | None = None
    index: Tensor | None = None
    start: Tensor | None = None
    groups: Tensor | None = None
    entry: object = None

    @property
    def size(self) -> int:
        """B, the number of rows."""
        if self.index is not None:
            return len(self.index)
        if self.order is not None:
            return len(self.order)
        return len(self.raw) if self.raw is not None else len(self.known.embeds) if self.known is not None else 0


class Encoder(nn.Module, ABC):
    """One kind of input. Its children stand at the top of the model under their own names (`visual_encoder`, `ln_vision`)."""

    key: ClassVar[str]  # of its input in samples; `<key>_index` says which input a row reads
    block: ClassVar[str]  # of its settings in the model configuration
    tower: ClassVar[str]  # the child that is frozen, which has a file of its own (`model.<block>.pretrained`)
    frozen: bool

    @classmethod
    @abstractmethod
    def from_config(cls, cfg: DictConfig) -> Encoder:
        """Build with random weights from the whole model configuration. ConfigError for settings that do not fit."""

    @abstractmethod
    def read(self, samples: Samples, *, device: torch.device, training: bool) -> Inputs:
        """Its part of the samples, on the device. ValueError where it is missing or of another shape."""

    @abstractmethod
    def features(self, inputs: Inputs) -> Features:
        """The frozen half; without a graph where the tower is frozen."""

    @abstractmethod
    def tokens(self, features: Features, index: Tensor | None) -> Tokens:
        """The trained half."""

    def fit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the tower under its own names, cut to the size of this one."""
        return dict(state)

    @abstractmethod
    def load(self, path: str) -> list[str]:
        """Load the tower from its released file; returns the names that were loaded, below the tower."""

    def autocast_parts(self) -> list[nn.Module]:
        """The parts whose linear layers are called under autocast alone, where there is any."""
        return []

    def example(self, rows: int, *, device: str) -> dict[str, Tensor]:
        """Its part of a batch without meaning, at real size, for estimates of memory."""
        raise NotImplementedError(f"{type(self).__name__} gives no example of its input")

    def encode(self, inputs: Inputs) -> Tokens:
        """Both halves."""
        return self.tokens(self.features(inputs), inputs.index)


def tensor_of(samples: Samples, key: str) -> Tensor | None:
    """A tensor of the samples, None where there is none. ValueError for anything else."""
    value = samples.get(key)
    if value is None or isinstance(value, Tensor):
        return value
    raise ValueError(f"samples[{key!r}] is {type(value).__name__}; accepted: a tensor")


def index_of(samples: Samples, key: str, device: torch.device) -> Tensor | None:
    """`<key>_index` [B] on the device."""
    index = tensor_of(samples, f"{key}_index")
    return None if index is None else index.to(device)


def keys_of(samples: Samples, *names: str) -> Sequence[object] | None:
    """The first of several lists of ids that the samples have."""
    for name in names:
        value = samples.get(name)
        if isinstance(value, list | tuple):
            return value
        if isinstance(value, Tensor):
            return value.tolist()
    return None
