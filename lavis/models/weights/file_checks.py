"""The files that a model configuration names, looked at before anything is built: is each there, and is it what it should be.

Only headers of weights are read, so that a folder of 40 GB is checked in a second. Whether names and sizes fit the model shows
when it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import DictConfig
from transformers import AutoConfig

from lavis.common.checkpoint import check_header, weight_files
from lavis.common.errors import ConfigError
from lavis.common.paths import resolve
from lavis.common.registry import registry
from lavis.models import parts
from lavis.models.language.base import WEIGHT_FILES, load_tokenizer
from lavis.models.weights.pretrained import CHECKPOINTS

Check = tuple[str, str, str]  # key, path, what is wrong (empty: nothing)


def check_model_files(cfg: DictConfig) -> list[Check]:
    """Every file and folder that the model would read."""
    checks = [(key, path, _why(lambda path=path: _weights(path))) for key, path in _weight_keys(cfg)]  # type: ignore[misc]
    for key in CHECKPOINTS:
        if cfg.get(f"load_{key}") and not cfg.get(key):
            checks.append((f"model.{key}", "", f"names no file, but model.load_{key} is true"))
    random = bool(cfg.get("allow_random_init", False))
    if cfg.get("bert_path"):
        checks.append(("model.bert_path", cfg.bert_path, _why(lambda: _bert(str(resolve(cfg.bert_path))))))
    model_class = registry.get_model_class(cfg.arch)
    kind: str | None = getattr(model_class, "llm_kind", None)
    if kind:
        source = cfg.get(f"{kind}_model") or ""
        checks.append((f"model.{kind}_model", source, _why(lambda: _llm(cfg, kind, allow_random_init=random))))
    check_config = getattr(model_class, "check_config", None)
    if check_config is not None and not any(problem for _, _, problem in checks):
        problem = _why(lambda: check_config(cfg))
        checks += [("model", "", problem)] if problem else []
    return checks


def _weight_keys(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    for key in CHECKPOINTS:
        if cfg.get(f"load_{key}") and cfg.get(key):
            yield f"model.{key}", str(cfg[key])
    for part in ("vit", "pointbert"):
        node = cfg.get(part)
        if node is not None and node.get("pretrained"):
            yield f"model.{part}.pretrained", str(node.pretrained)


def _why(check: Callable[[], object]) -> str:
    """What a check objects to, in one line."""
    try:
        check()
    except (ConfigError, OSError, ValueError) as error:
        return str(error).strip().split("\n", 1)[0]
    return ""


def _weights(path: str) -> None:
    source = resolve(path)
    if not source.exists():
        raise ConfigError(f"no file {path}")
    for file in weight_files(source) if source.is_dir() else [source]:
        check_header(file)


def _bert(path: str) -> None:
    parts.bert_tokenizer(path)
    folder = parts.source_folder(path)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            check_header(folder / name)


def _llm(cfg: DictConfig, kind: str, *, allow_random_init: bool) -> None:
    source = str(resolve(parts.llm_source(cfg, kind)))
    load_tokenizer(source)
    AutoConfig.from_pretrained(source, local_files_only=True)
    folder = Path(parts.source_folder(source))
    if any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
        for file in weight_files(folder):
            check_header(file)
    elif not allow_random_init:
        raise ConfigError(f"{source} holds no weights of a language model, and model.allow_random_init is false")
