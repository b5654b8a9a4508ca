"""Tiny random causal language models of current families, with the files that their Hugging Face repositories have:
tokenizer.json (byte-level BPE), tokenizer_config.json with the family's special tokens and class, both configs, weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, GenerationConfig

from tests import tiny

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
WORDS_AND_MARKS = r"'s|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Family:
    """What tells a family apart: its config class, its tokenizer class and special tokens, and which of them it uses."""

    config: str
    tokenizer: str
    specials: tuple[str, ...]
    eos: str
    bos: str | None = None
    pad: str | None = None
    starts: bool = False  # the tokenizer puts bos in front of a text
    ends: tuple[str, ...] = ()  # generation_config.json's eos_token_id, a list where there are several
    settings: dict[str, Any] = field(default_factory=dict)
    unused_rows: int = 0  # embeddings beyond the tokenizer's size


CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
FAMILIES = {
    "qwen2": Family(
        "Qwen2Config", "Qwen2Tokenizer", CHAT, eos="<|endoftext|>", pad="<|endoftext|>", ends=("<|endoftext|>",),
        settings={"tie_word_embeddings": True},
    ),
    "qwen3": Family(
        "Qwen3Config", "Qwen2Tokenizer", CHAT, eos="<|im_end|>", pad="<|endoftext|>", ends=("<|im_end|>", "<|endoftext|>"),
        settings={"tie_word_embeddings": True, "head_dim": 12}, unused_rows=9,
    ),
    "qwen3_untied": Family(
        "Qwen3Config", "Qwen2Tokenizer", CHAT, eos="<|im_end|>", pad="<|endoftext|>", ends=("<|im_end|>", "<|endoftext|>"),
        settings={"tie_word_embeddings": False, "head_dim": 8},
    ),
    "llama3": Family(
        "LlamaConfig", "PreTrainedTokenizerFast", LLAMA3, eos="<|eot_id|>", bos="<|begin_of_text|>", starts=True, ends=LLAMA3[1:],
        settings={"tie_word_embeddings": False, "rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE},
    ),
    "smollm2": Family(
        "LlamaConfig", "GPT2Tokenizer", CHAT, eos="<|endoftext|>", bos="<|endoftext|>", ends=("<|endoftext|>",),
        settings={"tie_word_embeddings": True, "rope_theta": 100000.0},
    ),
    "smollm3": Family(
        "SmolLM3Config", "PreTrainedTokenizerFast", LLAMA3 + CHAT[1:], eos="<|im_end|>", pad="<|im_end|>", ends=("<|im_end|>",),
        settings={"tie_word_embeddings": True, "no_rope_layers": [1, 0]},
    ),
}  # fmt: skip


def require(name: str) -> None:
    """Skip the calling test where the installed transformers does not know the family."""
    if not hasattr(transformers, FAMILIES[name].config):
        pytest.skip(f"transformers {transformers.__version__} has no {FAMILIES[name].config}")


def folder(path: Path, name: str, *, change: Callable[[Path], None] | None = None) -> str:
    """The folder of a family with random weights; `change` may rewrite its files at the end."""
    require(name)
    family = FAMILIES[name]
    path.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(path, family)
    ends = [ids[token] for token in family.ends]
    config = getattr(transformers, family.config)(
        **{
            **SMALL,
            **family.settings,
            "vocab_size": max(ids.values()) + 1 + family.unused_rows,
            "bos_token_id": ids[family.bos] if family.bos else None,
            "eos_token_id": ends[0],
            "pad_token_id": ids[family.pad] if family.pad else None,
        }
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(eos_token_id=ends if len(ends) > 1 else ends[0])
    model.save_pretrained(path)
    if change is not None:
        change(path)
    return str(path)


def _write_tokenizer(path: Path, family: Family) -> dict[str, int]:
    """tokenizer.json, vocab.json, merges.txt and tokenizer_config.json; returns the vocabulary."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family.tokenizer == "GPT2Tokenizer")
    first: Any = pre_tokenizers.Split(Regex(WORDS_AND_MARKS), "isolated")
    if family.tokenizer == "GPT2Tokenizer":
        first = pre_tokenizers.Digits(individual_digits=True)
    tokenizer = Tokenizer(models.BPE())
    if family.tokenizer == "Qwen2Tokenizer":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(tiny.TEXTS, trainer)
    tokenizer.model.save(str(path))  # vocab.json and merges.txt
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in family.specials])
    ids = tokenizer.get_vocab()
    if family.starts:
        assert family.bos is not None
        template = processors.TemplateProcessing(single=f"{family.bos} $A", special_tokens=[(family.bos, ids[family.bos])])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tokenizer.save(str(path / "tokenizer.json"))
    added = {str(ids[token]): {"content": token, "special": True, "normalized": False} for token in family.specials}
    for row in added.values():
        row.update({"lstrip": False, "rstrip": False, "single_word": False})
    content = {
        "tokenizer_class": family.tokenizer, "added_tokens_decoder": added, "bos_token": family.bos, "eos_token": family.eos,
        "pad_token": family.pad, "unk_token": None, "clean_up_tokenization_spaces": False, "model_max_length": 128,
    }  # fmt: skip
    (path / "tokenizer_config.json").write_text(json.dumps(content, indent=1))
    return ids
