"""The language interface: soft prompts in, a loss or texts out.

`LanguageModel.loss(prefix, prompts, targets)` and `.generate(prefix, prompts, decoding)` are all that the rest of the package
knows; tokenizer, padding side, end token, label masking and decoding are private to the two implementations.

Shapes: B rows, P prefix positions (the projected queries), H model width.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from lavis.common.errors import ConfigError
from lavis.models.losses import TokenLoss
from lavis.models.modality_lora import CheckpointContexts

logger = logging.getLogger(__name__)

DTYPE_KEY = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
WEIGHT_FILES = (
    "*.safetensors",
    "pytorch_model*.bin",
    "*.safetensors.index.json",
    "pytorch_model*.bin.index.json",
)


@dataclass(frozen=True)
class Decoding:
    """How to decode. Lengths count the start token, as the published system does: `max_length` 30 is 29 new tokens for a causal
    model; for T5 `max_length` new tokens. `max_new_tokens`, when given, is taken as it is by both."""

    num_beams: int = 5
    max_length: int = 30
    min_length: int = 1
    max_new_tokens: int | None = None
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    use_nucleus_sampling: bool = False
    top_p: float = 0.9
    temperature: float = 1.0
    num_captions: int = 1

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_length", "num_captions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.use_nucleus_sampling and self.num_captions > self.num_beams:
            raise ValueError(f"num_captions {self.num_captions} needs as many beams; num_beams is {self.num_beams}")


class LanguageModel(nn.Module, ABC):
    """A frozen Hugging Face language model behind soft prompts."""

    lora_targets: str  # pattern of the linear layers that get adapters
    answer_length_penalty: float  # of short answers, as published
    is_random: bool  # the weights came from nowhere
    model: Any
    tokenizer: Any

    @property
    def width(self) -> int:
        """Width H of the input embeddings."""
        return self.model.get_input_embeddings().embedding_dim

    @property
    def dtype(self) -> torch.dtype:
        """Type of the input embeddings, to which prefixes are cast."""
        return self.model.get_input_embeddings().weight.dtype

    @abstractmethod
    def loss(self, prefix: Tensor, *, prompts: list[str], targets: list[str]) -> TokenLoss:
        """Cross entropy of the target texts behind prefix [B, P, H] and the prompts, not yet divided by the token count."""

    @abstractmethod
    def generate(self, prefix: Tensor, *, prompts: list[str], decoding: Decoding) -> list[str]:
        """B * num_captions texts for prefix [B, P, H]."""

    def enable_checkpointing(self, context_fn: CheckpointContexts) -> None:
        """Recompute activations in backward, under the adapters of the forward pass."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": context_fn})

    def embed(self, ids: Tensor) -> Tensor:
        """ids [B, L] -> input embeddings [B, L, H]."""
        return self.model.get_input_embeddings()(ids)


def load_tokenizer(source: str, **kwargs: Any) -> Any:
    """A tokenizer from a folder (or the local Hugging Face cache); ValueError that says what the folder lacks."""
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True, **kwargs)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"no tokenizer could be read from {source!r}: {_first_line(error)}") from error


def load_hf_model(
    auto_class: Any, source: str, *, dtype: torch.dtype, overrides: dict[str, Any] | None = None
) -> tuple[nn.Module, bool]:
    """A model from a folder or the local cache, and whether its weights are random (a folder with a config and no weights)."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no language model at {source!r}: give a folder with config.json of a model that transformers "
            f"{transformers.__version__} knows, or a name in the local Hugging Face cache ({_first_line(error)})"
        ) from error
    for key, value in (overrides or {}).items():
        setattr(config, key, value)
    folder = Path(source)
    if folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
        logger.warning("%s holds no weights: the language model starts from random numbers", source)
        return auto_class.from_config(config, **{DTYPE_KEY: dtype}), True
    try:
        model = auto_class.from_pretrained(source, config=config, local_files_only=True, **{DTYPE_KEY: dtype})
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"{source!r} ({config.model_type}) cannot be loaded as {auto_class.__name__}: {_first_line(error)}"
        ) from error
    return model, False


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
