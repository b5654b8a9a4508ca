"""YAML files as configurations read them: each on top of what its ``base`` names, and the default file that a class names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis.common.errors import ConfigError, listed
from lavis.common.paths import library_root, resolve

SECTIONS = ("env", "model", "datasets", "run", "imports")


def plain(cfg: Any) -> dict[str, Any]:
    return OmegaConf.to_container(cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg)), resolve=False)  # type: ignore[return-value]


def read_yaml(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path} must hold a mapping with the keys {listed(SECTIONS)}")
    return loaded


def load_user(path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    """A user's YAML on top of what its ``base`` names (one file or a list; relative to the file itself)."""
    path = resolve(path).resolve()
    if path in seen:
        raise ConfigError(f"base: {' -> '.join(str(item) for item in (*seen, path))} goes in a circle")
    loaded = read_yaml(path)
    base = loaded.pop("base", None)
    bases = [base] if isinstance(base, str) else list(base or ())
    if "imports" in loaded:
        modules = [loaded.imports] if isinstance(loaded.imports, str) else list(loaded.imports or ())
        loaded.imports = [str(path.parent / resolve(item)) if item.endswith(".py") else item for item in modules]
    merged = OmegaConf.create({})
    for item in bases:
        merged = _merge(merged, load_user(path.parent / resolve(item), (*seen, path)), path)
    return _merge(merged, loaded, path)


def _merge(under: DictConfig, over: DictConfig, path: Path) -> DictConfig:
    try:
        merged = OmegaConf.merge(under, over)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path} does not fit its base: {error.msg or error}") from error
    assert isinstance(merged, DictConfig)
    return merged


def default_file(cls: type, path: str) -> dict[str, Any]:
    """The default YAML a class names, on top of its ``base``."""
    found = find_default_file(cls, path)
    if found is None:
        raise ConfigError(f"{cls.__name__} names the default file {path}, which is not at {listed(_candidates(cls, path))}")
    return plain(load_user(found))


def find_default_file(cls: type, path: str) -> Path | None:
    return next((candidate for candidate in _candidates(cls, path) if candidate.is_file()), None)


def _candidates(cls: type, path: str) -> list[Path]:
    """Where a class's default file may be: relative to the package, else to the file that defines the class."""
    source = getattr(sys.modules.get(cls.__module__), "__file__", None)
    beside = [Path(source).resolve().parent / resolve(path)] if source else []
    return [library_root / resolve(path), *beside]
