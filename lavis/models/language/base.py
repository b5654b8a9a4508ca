"""The language interface: prompts of text and vectors in, a loss or texts out.

`LanguageModel.loss(prompts, targets)`, `.generate(prompts, decoding)` and `.rank(prompts, answers, candidates)` are all that the
rest of the package knows; padding, label masking and decoding are private to the two implementations, tokens to the `Dialect`.

Shapes: B entries, a `Prompt` each; L positions, H model width.
"""

from __future__ import annotations

import contextlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from lavis.common.checkpoint import load_weights
from lavis.common.errors import ConfigError
from lavis.models.language.dialects import Dialect, Piece
from lavis.models.language.prompt import Behind, Prompt
from lavis.models.losses import TokenLoss
from lavis.models.qformer.attention import attention_of_libraries
from lavis.models.qformer.lora import CheckpointContexts
from lavis.models.qformer.recompute import recompute_layers

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
        for name, low, high in (("top_p", 0.0, 1.0), ("temperature", 1e-6, math.inf), ("repetition_penalty", 1e-6, math.inf)):
            if not low <= getattr(self, name) <= high:
                accepted = "from 0 to 1" if name == "top_p" else "above 0"
                raise ValueError(f"{name} must be {accepted}, got {getattr(self, name)}")
        if not self.use_nucleus_sampling and self.num_captions > self.num_beams:
            raise ValueError(f"num_captions {self.num_captions} needs as many beams; num_beams is {self.num_beams}")


class LanguageModel(nn.Module, ABC):
    """A frozen Hugging Face language model behind soft prompts."""

    lora_targets: str  # pattern of the linear layers that get adapters
    answer_length_penalty: float  # of short answers, as published
    is_random: bool  # the weights came from nowhere
    recomputes = False  # activations are computed again in backward
    _told_of_cut = False
    dialect: Dialect
    model: Any

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that the dialect writes with."""
        return self.dialect.tokenizer

    @property
    def width(self) -> int:
        """Width H of the input embeddings."""
        return self.model.get_input_embeddings().embedding_dim

    @property
    def dtype(self) -> torch.dtype:
        """Type of the input embeddings, to which the vectors of prompts are cast."""
        return self.model.get_input_embeddings().weight.dtype

    @abstractmethod
    def caption_prompts(self, vectors: Tensor, prompt: str) -> Sequence[Prompt]:
        """What stands in front of a caption in training: vectors [B, n, H], and the prompt where captions do not carry it."""

    @abstractmethod
    def loss(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> TokenLoss:
        """Cross entropy of the targets alone, each behind its prompt, not yet divided by the token count."""

    @abstractmethod
    def rank(self, prompts: Sequence[Prompt], answers: Sequence[str], candidates: int) -> list[str]:
        """The likeliest of the answers behind each prompt; `candidates` of them, by their first token, are read whole."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """B * num_captions texts."""

    @abstractmethod
    def prompt_inputs(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """What the model reads before it writes: embeddings [B, L, H] and their mask [B, L] of 0 and 1."""

    def check_questions(self, questions: Sequence[str]) -> None:
        """Warn once of questions that max_txt_len cuts: as published, it is their end that is lost, "Short answer:" first."""
        limit = self.dialect.max_tokens
        if not self.dialect.cuts_prompts or self._told_of_cut:
            return
        longest = max(map(len, self.dialect.encode_all(questions)), default=0)
        if longest > limit:
            self._told_of_cut = True
            cut = f"a question has {longest} tokens and loses its end, model.max_txt_len being {limit}"
            logger.warning("%s, as published; a larger max_txt_len keeps it", cut)

    def assemble(self, rows: Sequence[Sequence[Piece]], prompts: Sequence[Prompt], *, side: str) -> tuple[Tensor, Tensor]:
        """Rows of ids and vectors, made of the prompts, as embeddings [B, L, H], padded on `side` ("left", "right"), and their
        mask [B, L]."""
        device = self.model.device
        ids = [piece for row in rows for piece in row if isinstance(piece, list)]
        first = rows[0][0]
        usual = isinstance(first, Tensor) and all(
            len(row) == 2 and isinstance(row[0], Tensor) and isinstance(row[1], list) and len(row[0]) == len(first)
            for row in rows
        )
        if usual and (side == "right" or len(set(map(len, ids))) == 1):  # equal vectors and a text: two blocks side by side
            padded, seen = pad_right(ids, self.dialect.pad, device), pad_right([[1] * len(row) for row in ids], 0, device)
            single = [row[0] for row in rows if isinstance(row[0], Tensor)]
            vectors = prompts.vectors if isinstance(prompts, Behind) else torch.stack(single)
            embeds = torch.cat([vectors.to(self.dtype), self.embed(padded)], dim=1)
            return embeds, torch.cat([seen.new_ones(vectors.shape[:2]), seen], dim=1)
        flat = torch.tensor([token for piece in ids for token in piece] + [self.dialect.pad], device=device)
        words = iter(self.embed(flat).split([*map(len, ids), 1]))
        whole = [torch.cat([next(words) if isinstance(piece, list) else piece.to(self.dtype) for piece in row]) for row in rows]
        masks = [torch.ones(len(row), dtype=torch.long, device=device) for row in whole]
        mask = pad_sequence(masks, batch_first=True, padding_side=side)
        embeds = pad_sequence(whole, batch_first=True, padding_side=side)
        return torch.where(mask.unsqueeze(2) == 1, embeds, next(words)), mask

    def enable_checkpointing(self, context_fn: CheckpointContexts) -> None:
        """Recompute activations in backward, under the adapters of the forward pass."""
        self.recomputes = True
        recompute_layers(self.model, context_fn)

    def attention(self) -> AbstractContextManager[Any]:
        """The context of a training pass. A layer that is computed again would not be in it, and must attend as before."""
        return contextlib.nullcontext() if self.recomputes else attention_of_libraries(self.model.device, self.dtype)

    def embed(self, ids: Tensor) -> Tensor:
        """ids [B, L] -> input embeddings [B, L, H]."""
        return self.model.get_input_embeddings()(ids)


def pad_right(rows: Sequence[list[int]], pad: int, device: torch.device) -> Tensor:
    """Lists of ids as one tensor [B, longest]."""
    longest = max(map(len, rows))
    return torch.tensor([row + [pad] * (longest - len(row)) for row in rows], dtype=torch.long, device=device)


def load_tokenizer(source: str, **kwargs: Any) -> Any:
    """A tokenizer from a folder (or the local Hugging Face cache); ValueError that says what the folder lacks."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, **kwargs)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"no tokenizer could be read from {source!r}: {_first_line(error)}") from error
    if not has_words(tokenizer):
        raise ConfigError(
            f"no tokenizer could be read from {source!r}: it has no vocabulary (tokenizer.json, vocab.json and merges.txt, or a "
            f"sentencepiece model)"
        )
    return tokenizer


def has_words(tokenizer: Any) -> bool:
    """Whether a tokenizer knows anything beside special tokens: transformers 5 makes one of a folder without its files."""
    return len(tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()) > 1


def load_hf_model(
    auto_class: Any, source: str, *, dtype: torch.dtype, overrides: dict[str, Any] | None = None
) -> tuple[nn.Module, bool]:
    """A model from a folder or the local cache, and whether its weights are random (a folder with a config and no weights).

    `source` may be a Hugging Face BLIP-2: then its language model is read, with the settings of its own config.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no language model at {source!r}: give a folder with config.json of a model that transformers "
            f"{transformers.__version__} knows, or a name in the local Hugging Face cache ({_first_line(error)})"
        ) from error
    is_blip2 = config.model_type == "blip-2"
    config = config.text_config if is_blip2 else config
    if type(config) not in auto_class._model_mapping:
        wanted = "an encoder-decoder (T5)" if auto_class is AutoModelForSeq2SeqLM else "a causal language model (OPT, Llama, ...)"
        raise ConfigError(f"{source!r} holds a {config.model_type}; {wanted} is expected here")
    if is_blip2:
        return _all_in(dtype, _llm_of_blip2(auto_class._model_mapping[type(config)], source, config, dtype)), False
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
    return _all_in(dtype, model), False


def _all_in(dtype: torch.dtype, model: nn.Module) -> nn.Module:
    """The model with every parameter in one type: transformers before 5 keeps the widest layers of a bfloat16 T5 in float32.
    Buffers (rotary frequencies) stay as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _llm_of_blip2(model_class: Any, source: str, config: PretrainedConfig, dtype: torch.dtype) -> nn.Module:
    """The language model of a Hugging Face BLIP-2, from the `language_model.*` tensors of its shards."""
    file = cached_file(source, "config.json", local_files_only=True)
    state = load_weights(Path(str(file)).parent, prefix="language_model.")
    state = {name.removeprefix("language_model."): tensor for name, tensor in state.items()}
    if not state:
        raise ConfigError(f"{source!r} is a BLIP-2 without a language model (stage 1); name the language model's own folder")
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True, **{DTYPE_KEY: dtype}
    )
    if info["missing_keys"]:
        raise ConfigError(f"{source!r} lacks language_model.{sorted(info['missing_keys'])[0]} of its {config.model_type}")
    return model


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
