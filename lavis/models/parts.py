"""Builds and loads the parts of a model from the config: Q-Former, LLM; and the files that they are read from."""

from __future__ import annotations

import functools
import hashlib
import logging
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import BertConfig, BertTokenizer
from transformers.utils import cached_file

from lavis.common.checkpoint import file_hash, load_checkpoint_file, weight_files
from lavis.common.config import ConfigError
from lavis.common.paths import resolve
from lavis.common.precision import PRECISIONS, frozen_dtype
from lavis.models.inference.lemmatizer import load_lemmatizer
from lavis.models.language import CausalLM, LanguageModel, Seq2SeqLM
from lavis.models.language.base import has_words
from lavis.models.qformer.qformer import QFormer

logger = logging.getLogger(__name__)


def bert_tokenizer(bert_path: str) -> BertTokenizer:
    """The Q-Former's tokenizer: BERT's, with `[DEC]` added as the token that starts generation."""
    try:
        tokenizer = BertTokenizer.from_pretrained(bert_path, local_files_only=True, truncation_side="right")
        BertConfig.from_pretrained(bert_path, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"model.bert_path {bert_path!r} holds no BERT: give a folder with config.json and vocab.txt, or a name in the local "
            f"Hugging Face cache ({str(error).strip().splitlines()[0]})"
        ) from error
    if not has_words(tokenizer):
        raise ConfigError(f"model.bert_path {bert_path!r} holds no vocab.txt")
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def build_qformer(cfg: DictConfig, tokenizer: BertTokenizer) -> QFormer:
    """A Q-Former of the size in bert_path's config, its vocabulary counting `[DEC]`."""
    config = BertConfig.from_pretrained(cfg.bert_path, local_files_only=True)
    config.vocab_size = len(tokenizer)
    return QFormer(config, encoder_width=cfg.qformer.input_dim, cross_attention_freq=cfg.qformer.cross_attention_freq)


def load_bert(qformer: QFormer, bert_path: str) -> list[str]:
    """Start the Q-Former from BERT's weights where bert_path has some; returns the names that were loaded.

    Embedding and bias rows beyond the file's vocabulary (`[DEC]`) keep their initial values; the query feed-forwards start from
    the text feed-forwards.
    """
    folder = source_folder(bert_path)
    file = next((f for name in ("model.safetensors", "pytorch_model.bin") if (f := folder / name).exists()), None)
    if file is None:
        return []
    own = qformer.state_dict(keep_vars=True)
    loaded: list[str] = []
    with torch.no_grad():
        for key, tensor in load_checkpoint_file(file).items():
            name = key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            name = name if name.startswith(("bert.", "cls.")) else f"bert.{name}"
            if name in own and _fits(own[name], tensor):
                own[name][: len(tensor)].copy_(tensor)
                loaded.append(name)
    if not loaded:
        raise ConfigError(f"{file} holds no weights that fit the Q-Former of {bert_path}")
    qformer.queries_from_text_ffn()
    return loaded


def _fits(own: Tensor, tensor: Tensor) -> bool:
    return own.shape[1:] == tensor.shape[1:] and len(own) >= len(tensor) and (len(own) - len(tensor) <= 1)


def llm_source(cfg: DictConfig, kind: str | None) -> str:
    """The folder or name of the LLM; ConfigError when the config names none."""
    source = cfg.get(f"{kind}_model")
    if not source:
        raise ConfigError(f"model.{kind}_model is empty: name a Hugging Face folder")
    return source


def build_llm(cfg: DictConfig, kind: str) -> LanguageModel:
    """The language model of kind "opt" (any causal model) or "t5"."""
    source = llm_source(cfg, kind)
    if kind == "t5":
        precision = cfg.get("t5_precision") or cfg.llm_precision
        if PRECISIONS.get(precision) == torch.float16:
            raise ConfigError(f"model.t5_precision is {precision}: T5 overflows in float16; accepted: bfloat16, float32")
        return Seq2SeqLM(source, max_txt_len=cfg.max_txt_len, dtype=frozen_dtype(precision, "model.t5_precision"))
    dtype = frozen_dtype(cfg.llm_precision, "model.llm_precision")
    return CausalLM(source, max_txt_len=cfg.max_txt_len, dtype=dtype, prompt=cfg.prompt or "")


PATH_KEYS = ("bert_path", "opt_model", "t5_model", "pretrained", "finetuned", "blip2_pretrain")


def expand_paths(cfg: DictConfig) -> None:
    """Expand ~ and environment variables in every path of a model config, in place."""
    for node, keys in ((cfg, PATH_KEYS), (cfg.get("vit"), ("pretrained",)), (cfg.get("pointbert"), ("pretrained",))):
        for key in keys:
            if node is not None and node.get(key):
                node[key] = str(resolve(node[key]))


def check_files(cfg: DictConfig) -> None:
    """ConfigError for the first file or Hugging Face folder that a model config names and that is not there, and for a
    lemmatizer without spaCy."""
    if cfg.get("apply_lemmatizer"):
        load_lemmatizer()
    named = {f"model.{kind}": cfg.get(kind) for kind in ("finetuned", "pretrained") if cfg.get(f"load_{kind}")}
    if cfg.get("load_blip2_pretrain"):
        named["model.blip2_pretrain"] = cfg.blip2_pretrain
    for part in ("vit", "pointbert"):
        if cfg.get(part) is not None and cfg[part].pretrained:
            named[f"model.{part}.pretrained"] = cfg[part].pretrained
    for key, path in named.items():
        if not path:
            raise ConfigError(f"{key} names no file, but its load flag is true")
        if resolve(path).is_dir():
            weight_files(resolve(path))
        elif not resolve(path).is_file():
            raise ConfigError(f"{key}: no file {path}")
    for kind in ("finetuned", "pretrained", "blip2_pretrain"):
        if cfg.get(kind) and not cfg.get(f"load_{kind}"):
            logger.warning("model.%s names %s, but model.load_%s is false: the file is not read", kind, cfg[kind], kind)
    if cfg.get("regions_from_image") and not cfg.get("load_blip2_pretrain"):
        raise ConfigError("model.regions_from_image needs model.load_blip2_pretrain: true")


def source_folder(source: str) -> Path:
    """The folder of a Hugging Face source: itself, or the snapshot in the local cache that a name stands for."""
    if Path(source).is_dir():
        return Path(source)
    config = cached_file(source, "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False)
    return Path(config).parent if config else Path(source)


def source_hash(source: str) -> str:
    """sha256 of a file, or of the hashes of a folder's weight files; empty when there are none."""
    path = Path(source) if Path(source).is_file() else source_folder(source)
    if path.is_file():
        return _file_hash(path, path.stat().st_mtime_ns, path.stat().st_size)
    files = sorted(f for pattern in ("*.safetensors", "pytorch_model*.bin") for f in path.glob(pattern))
    lines = [f"{file.name}:{_file_hash(file, file.stat().st_mtime_ns, file.stat().st_size)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if files else ""


@functools.lru_cache(maxsize=256)
def _file_hash(path: Path, modified: int, size: int) -> str:
    """sha256 of a file, computed once as long as it stays as it is."""
    return file_hash(path)
