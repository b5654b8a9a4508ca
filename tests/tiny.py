"""Tiny random models for tests: Hugging Face folders made on the spot, and model configs of the published layout over
them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

TEXTS = [
    "a red square on the left",
    "a blue circle on the right side of the table",
    "two green triangles and a small lamp",
    "a white cube",
    "question: what color is the square? short answer:",
    "a photo of",
]
WORDS = sorted({word for text in TEXTS for word in text.replace("?", " ?").replace(":", " :").split()})


def once(make: Callable[..., str]) -> Callable[..., str]:
    """A folder that is there is not written again: the processes of one test read it at the same time.

    It is made before they start: one would read what the other has half written, and on rank 1 transformers saves nothing.
    """

    @functools.wraps(make)
    def made(path: Path, **options: Any) -> str:
        done = path / ".made"
        if not done.exists():
            assert not torch.distributed.is_initialized(), f"{path} must be made before the processes of a test start"
            make(path, **options)
            done.write_text(f"{options}")
        assert done.read_text() == f"{options}", f"{path} was made with {done.read_text()}"
        return str(path)

    return made


@once
def bert_folder(path: Path) -> str:
    """A BERT folder without weights: config.json and vocab.txt."""
    path.mkdir(parents=True, exist_ok=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz"]
    vocab = list(dict.fromkeys([*pieces, *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]))
    (path / "vocab.txt").write_text("\n".join(vocab) + "\n")
    (path / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    BertConfig(
        vocab_size=len(vocab), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    ).save_pretrained(path)  # fmt: skip
    return str(path)


@once
def opt_folder(path: Path, *, dropout: float = 0.1, width: int = 32) -> str:
    """An OPT folder with random weights and a GPT-2 style tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    bpe.save_model(str(path))
    tokenizer = GPT2Tokenizer.from_pretrained(
        path, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>", add_bos_token=True
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    OPTForCausalLM(
        OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=width,
            max_position_embeddings=128,
            dropout=dropout,
            init_std=0.2,
            bos_token_id=2,
            eos_token_id=2,
            pad_token_id=1,
        )  # fmt: skip
    ).save_pretrained(path)
    return str(path)


def _word_tokenizer(path: Path, *, bos: str | None) -> int:
    """A word-level tokenizer that closes texts with </s> (T5) or opens them with <s> (Llama); returns its size."""
    vocab = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", "<s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    template, special = ("<s> $A", [("<s>", 3)]) if bos else ("$A </s>", [("</s>", 1)])
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token=bos
    ).save_pretrained(path)
    return len(vocab)


@once
def t5_folder(path: Path, *, width: int = 32) -> str:
    """A T5 folder with random weights and a word tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    size = _word_tokenizer(path, bos=None)
    torch.manual_seed(0)
    T5ForConditionalGeneration(
        T5Config(
            vocab_size=size,
            d_model=width,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            initializer_factor=1.0,
        )  # fmt: skip
    ).save_pretrained(path)
    return str(path)


@once
def llama_folder(path: Path) -> str:
    """A Llama folder with random weights and a word tokenizer that opens texts with <s>."""
    path.mkdir(parents=True, exist_ok=True)
    size = _word_tokenizer(path, bos="<s>")
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            bos_token_id=3,
            eos_token_id=1,
            pad_token_id=0,
            initializer_range=0.2,
        )  # fmt: skip
    ).save_pretrained(path)
    return str(path)


def model_config(folder: Path, arch: str, **changes: Any) -> dict[str, Any]:
    """A small model config of `arch`; its Hugging Face folders are made below `folder`."""
    kind = "t5" if arch.endswith("t5") else "opt"
    config: dict[str, Any] = {
        "arch": arch,
        "bert_path": bert_folder(folder / "bert"),
        "embed_dim": 16,
        "max_txt_len": 16,
        "qformer": {"input_dim": 24, "num_query_token": 4},
        "vit": {
            "img_size": 28,
            "patch_size": 14,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 2.0,
            "vit_precision": "fp32",
        },  # fmt: skip
        "allow_random_init": True,
    }
    if arch != "blip2":
        config[f"{kind}_model"] = (t5_folder if kind == "t5" else opt_folder)(folder / kind)
    if arch.startswith("regionblip"):
        config["pointbert"] = {
            "trans_dim": 16, "depth": 1, "num_heads": 2, "group_size": 4, "num_group": 8, "encoder_dims": 16,
            "drop_path_rate": 0.0,
        }  # fmt: skip
    torch.manual_seed(0)  # the same draws follow, whether the folders were there or not
    return {**config, **changes}


def cloud_batch(modality: str = "pointcloud", rows: int = 4, seed: int = 0) -> dict[str, Any]:
    """A batch of random clouds with texts (and corners for pointcloud_region)."""
    generator = torch.Generator().manual_seed(seed)
    batch: dict[str, Any] = {
        "modality": modality,
        "pointcloud": torch.randn(rows, 40, 3, generator=generator),
        "text_input": [TEXTS[i % 4] for i in range(rows)],
        "image_id": [str(i) for i in range(rows)],
    }
    if modality == "pointcloud_region":
        batch["box_corners"] = torch.randn(rows, 8, 3, generator=generator)
    return batch


def batch_of(modality: str, rows: int = 4) -> dict[str, Any]:
    """A batch of any of the four modalities."""
    return (cloud_batch if modality.startswith("pointcloud") else image_batch)(modality, rows)


def image_batch(modality: str = "image", rows: int = 4, seed: int = 0) -> dict[str, Any]:
    """A batch of random pictures with texts (and boxes for image_region)."""
    generator = torch.Generator().manual_seed(seed)
    batch: dict[str, Any] = {
        "modality": modality,
        "image": torch.randn(rows, 3, 28, 28, generator=generator),
        "text_input": [TEXTS[i % 4] for i in range(rows)],
        "image_id": [str(i) for i in range(rows)],
    }
    if modality == "image_region":
        corners = torch.rand(rows, 2, 2, generator=generator).sort(dim=1).values
        batch["box"] = corners.flatten(1)
    return batch
