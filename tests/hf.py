"""Tiny random BLIP-2 models of transformers, saved by save_pretrained: their writer for our reader."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from tests import tiny

QUERIES = 4
SHARD = "60KB"


def scatter(model: torch.nn.Module, *, seed: int = 0, std: float = 0.3) -> None:
    """Random numbers everywhere, so that no tensor may be left out or swapped unseen; the k part of qkv.bias too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * (std / 4 if name.endswith("bias") else std)
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + noise if norm else noise)


def _config(bert: Path, text: Any, *, vocab: int, image_token: int | None, **extra: Any) -> Blip2Config:
    vision = Blip2VisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    qformer = Blip2QFormerConfig(
        vocab_size=vocab, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, encoder_hidden_size=24, **extra,
    )  # fmt: skip
    return Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_text_hidden_size=16,
        image_token_index=image_token,
    )


def captioner(folder: Path, kind: str, *, activation: str | None = "gelu") -> tuple[Blip2ForConditionalGeneration, str]:
    """A Blip2ForConditionalGeneration over OPT or T5, and the folder that it was saved to in shards, with a tokenizer.

    As in the released folders the vocabulary has one more row than the LLM's own, for the image token.
    """
    source = (tiny.t5_folder if kind == "t5" else tiny.opt_folder)(folder / kind)
    tokenizer = AutoTokenizer.from_pretrained(source, **({} if kind == "t5" else {"use_fast": False}))
    image_token = len(tokenizer)
    text: Any
    if kind == "t5":
        text = T5Config.from_pretrained(source, vocab_size=image_token + 1)
        if activation is not None:
            text.dense_act_fn = activation
        text.bos_token_id = 1
    else:
        text = OPTConfig.from_pretrained(source, vocab_size=image_token + 1)
    model = Blip2ForConditionalGeneration(_config(folder, text, vocab=50, image_token=image_token)).eval()
    if kind == "t5":  # Flan-T5 has an output layer of its own; transformers 5 ties that of a random model
        model.language_model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.language_model.shared.weight))
    scatter(model)
    target = folder / f"hf_{kind}"
    model.save_pretrained(target, max_shard_size=SHARD)
    tokenizer.save_pretrained(target)
    return model, str(target)


def own_head(source: str, target: Path) -> str:
    """A copy of a tiny T5 folder whose output layer is its own, as Flan-T5's is, in any version of transformers."""
    shutil.copytree(source, target)
    model = T5ForConditionalGeneration.from_pretrained(source)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.shared.weight.shape))
    model.config.tie_word_embeddings = False
    model.save_pretrained(target)
    return str(target)


def retriever(folder: Path, vocab: int) -> tuple[Blip2ForImageTextRetrieval, str]:
    """A Blip2ForImageTextRetrieval (stage 1) and its folder."""
    config = _config(folder, OPTConfig(), vocab=vocab, image_token=None, use_qformer_text_input=True)
    model = Blip2ForImageTextRetrieval(config).eval()
    scatter(model)
    target = folder / f"hf_stage1_{vocab}"
    model.save_pretrained(target, max_shard_size=SHARD)
    return model, str(target)
