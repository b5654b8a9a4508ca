"""Sizes of the published language models and of BERT, and folders that stand in for theirs: a config and a small tokenizer, no
weights. For sums and tests over models whose files are not here.

Numbers are those of the config.json of facebook/opt-2.7b, facebook/opt-6.7b, google/flan-t5-xl, google/flan-t5-xxl and
bert-base-uncased on Hugging Face.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast

from lavis.common.errors import ConfigError, listed
from lavis.models import parts

OPT: dict[str, Any] = {
    "model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 50272, "max_position_embeddings": 2048,
    "num_hidden_layers": 32, "num_attention_heads": 32, "do_layer_norm_before": True, "bos_token_id": 2, "eos_token_id": 2,
    "pad_token_id": 1, "activation_function": "relu",
}  # fmt: skip
T5: dict[str, Any] = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 32128, "d_kv": 64, "num_layers": 24,
    "num_decoder_layers": 24, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 0, "relative_attention_num_buckets": 32,
}  # fmt: skip
LLMS = {
    "opt-2.7b": {**OPT, "hidden_size": 2560, "word_embed_proj_dim": 2560, "ffn_dim": 10240},
    "opt-6.7b": {**OPT, "hidden_size": 4096, "word_embed_proj_dim": 4096, "ffn_dim": 16384},
    "flan-t5-xl": {**T5, "d_model": 2048, "d_ff": 5120, "num_heads": 32},
    "flan-t5-xxl": {**T5, "d_model": 4096, "d_ff": 10240, "num_heads": 64},
}
BERT: dict[str, Any] = {
    "model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 512, "layer_norm_eps": 1e-12,
}  # fmt: skip
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]  # OPT's first four


def sizes_of(source: str, published: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The config of a folder (or of a name in the local Hugging Face cache), else the published one of that name, and where it
    is from. ConfigError where neither is known."""
    name = Path(source).name
    folder = _folder(source)
    if folder is not None:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        config = config.text_config if config.model_type == "blip-2" else config
        return config.to_dict(), f"config.json of {source}"
    if name in published:
        return published[name], f"public size of {name} ({source} is not here)"
    raise ConfigError(f"no config.json at {source!r}, and no public size of that name; known: {listed(published)}")


def _folder(source: str) -> Path | None:
    try:
        folder = parts.source_folder(source)
    except (OSError, ValueError):  # what Hugging Face says of names that it could not hold
        return None
    return folder if (folder / "config.json").is_file() else None


def llm_stand_in(folder: Path, config: dict[str, Any]) -> str:
    """A folder with a language model's config and a word tokenizer that any of them can work with."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if config["model_type"] == "opt":  # read by the slow tokenizer of GPT-2, as published
        vocab = {token: i for i, token in enumerate([*SPECIALS, "Ċ", "a"])}
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        content = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "pad_token": "<pad>"}
        content |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
        (folder / "tokenizer_config.json").write_text(json.dumps(content))
        return str(folder)
    ids = {token: i for i, token in enumerate([*SPECIALS, "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if config["model_type"] == "t5":  # it closes every text
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", ids["</s>"])])
    names: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return str(folder)


def bert_stand_in(folder: Path, config: dict[str, Any]) -> str:
    """A folder with BERT's config and a vocabulary of its size."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    words = [*pieces, *(f"word{i}" for i in range(config["vocab_size"] - len(pieces)))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    return str(folder)
