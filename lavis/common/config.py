"""The published YAML layout, checked.

Layers, later wins: default YAML (configs/default.yaml; the model's and each dataset's own) -> the user's YAML
(and what its ``base`` names) -> options. Options are applied before defaults are chosen, so ``--options
model.model_type=X`` selects the YAML that is read. A key that no default holds is refused, with near matches
and the accepted keys. Two defaults are open: an empty mapping accepts any keys below it, ``null`` accepts
anything. A mapping of named entries (``modalities``) carries a template under ``"+"``: further names are
accepted and have the template's keys; an entry set to ``null`` is left out. A template ``null`` (processors) lets
further keys hold anything.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis.common.claims import claiming_arch
from lavis.common.errors import ConfigError, UnknownNameError, did_you_mean, listed, unknown
from lavis.common.paths import in_repository, library_root
from lavis.common.registry import registry
from lavis.common.yaml_files import SECTIONS, default_file, load_user, plain, read_yaml

# omegaconf 2.4 deprecates register_new_resolver for register_resolver, which 2.3 has with another meaning
_newer = "replace" in inspect.signature(OmegaConf.register_resolver).parameters
_register = OmegaConf.register_resolver if _newer else OmegaConf.register_new_resolver
_register("repository", in_repository, replace=True)  # ${repository:assets/x} in any YAML

__all__ = [
    "Config",
    "ConfigError",
    "UnknownNameError",
    "dataset_defaults",
    "merge_dataset_config",
    "merge_model_config",
    "model_defaults",
]

logger = logging.getLogger(__name__)
_noticed: set[str] = set()


class Config:
    """A run's whole configuration. ``args``: anything with ``cfg_path`` and ``options`` (what ``--cfg-path``
    and ``--options`` gave). Raises ConfigError before any long work starts."""

    def __init__(self, args: Any) -> None:
        user = load_user(Path(args.cfg_path))
        _apply_options(user, getattr(args, "options", None) or ())
        given = plain(user)
        if unexpected := [key for key in given if key not in SECTIONS]:
            raise ConfigError(_unknown_key(str(unexpected[0]), str(unexpected[0]), SECTIONS + ("base",)))
        _import_modules(given.get("imports") or ())
        defaults = _default_yaml()
        datasets = _section(given, "datasets")
        self.config: DictConfig = _resolved(
            {
                "env": _checked(_section(given, "env"), defaults["env"], "env", ()),
                "model": _merged_model(_section(given, "model")),
                "datasets": {name: _merged_dataset(name, part) for name, part in datasets.items()},
                "run": _checked(_section(given, "run"), defaults["run"], "run", _without_effect("run")),
                **({"imports": given["imports"]} if given.get("imports") else {}),
            }
        )

    @classmethod
    def from_file(cls, path: str | Path, *, options: Sequence[str] = ()) -> Config:
        """``options``: ``["a.b=c", ...]`` or ``["a.b", "c", ...]``."""
        return cls(_Args(path, options))

    @property
    def model_cfg(self) -> DictConfig:
        return self.config.model

    @property
    def run_cfg(self) -> DictConfig:
        return self.config.run

    @property
    def datasets_cfg(self) -> DictConfig:
        return self.config.datasets

    @property
    def env_cfg(self) -> DictConfig:
        return self.config.env

    model = model_cfg
    run = run_cfg
    datasets = datasets_cfg

    def get_config(self) -> DictConfig:
        return self.config

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, everything resolved."""
        return plain(self.config)

    def pretty_print(self) -> str:
        """Log the whole configuration as YAML, and return it."""
        text = OmegaConf.to_yaml(self.config)
        logger.info("Configuration\n%s", text)
        return text


class _Args:
    def __init__(self, cfg_path: str | Path, options: Sequence[str]) -> None:
        self.cfg_path, self.options = cfg_path, options


# One section each: public, for code that has a mapping and no file


def merge_model_config(cfg: Mapping[str, Any] | DictConfig, *, options: Sequence[str] = ()) -> DictConfig:
    """A partial model mapping (``arch``, perhaps ``model_type`` and overrides) -> the full, checked
    configuration. ``options``: ``["model.a=b", ...]``, over the mapping."""
    config = OmegaConf.create({"model": plain(cfg)})
    _apply_options(config, options)
    if others := sorted(set(plain(config)) - {"model"}):
        raise ConfigError(f"--options: {others[0]} is no section that is read here; accepted: model")
    cfg = config.model
    return _resolved({"env": _default_yaml()["env"], "model": _merged_model(plain(cfg))}).model


def merge_dataset_config(name: str, cfg: Mapping[str, Any] | DictConfig | None = None) -> DictConfig:
    """A dataset's partial mapping -> the full, checked configuration (``type`` selects the default YAML)."""
    merged = _merged_dataset(name, plain(cfg) if cfg is not None else {})
    return _resolved({"env": _default_yaml()["env"], "dataset": merged}).dataset


def model_defaults(arch: str, *, model_type: str | None = None) -> dict[str, Any]:
    """The default YAML of an architecture as plain containers, its ``types`` entry for ``model_type`` merged
    into ``model``; also holds ``preprocess`` where the file does. Without a type: the entry ``default``, else
    the first, and no ``types``. A pair that another architecture claims (see ``claims``) has the YAML of that one."""
    cls = registry.get_model_class(claiming_arch(arch, model_type))
    table = dict(getattr(cls, "PRETRAINED_MODEL_CONFIG_DICT", None) or {})
    if model_type is not None and table and model_type not in table:
        raise ConfigError(unknown(f"model.model_type of {arch}", model_type, table))
    if not table:
        return {"model": {}}
    content = default_file(cls, table[_chosen(table, model_type)])
    types = content.pop("types", None) or {}
    content.pop("also", None)
    model = OmegaConf.merge(content.get("model") or {}, types.get(model_type) or {})
    return {**content, "model": plain(model)}


def dataset_defaults(name: str, *, dataset_type: str | None = None) -> dict[str, Any]:
    """The default configuration of a dataset as plain containers."""
    cls = registry.get_builder_class(name)
    table = dict(getattr(cls, "DATASET_CONFIG_DICT", None) or {})
    if not table:
        return {}
    chosen = _chosen(table, dataset_type)
    if chosen not in table:
        raise ConfigError(unknown(f"datasets.{name}.type", chosen, table))
    blocks = default_file(cls, table[chosen]).get("datasets") or {}
    if name not in blocks and len(blocks) != 1:
        raise ConfigError(f"{table[chosen]} holds no block datasets.{name}, only {listed(blocks)}")
    return dict(blocks.get(name) or next(iter(blocks.values())) or {})


def _chosen(table: Mapping[str, str], wanted: str | None) -> str:
    return wanted if wanted is not None else ("default" if "default" in table else next(iter(table)))


def _merged_model(user: dict[str, Any]) -> dict[str, Any]:
    arch, model_type = user.get("arch"), user.get("model_type")
    if not isinstance(arch, str):
        raise ConfigError(f"model.arch names no model: {arch!r}. Accepted: {listed(registry.list_models())}.")
    arch = claiming_arch(arch, model_type)
    user = {**user, "arch": arch}
    own = model_defaults(arch, model_type=model_type)["model"]
    known = {**own, "arch": arch, "model_type": model_type} if own else {}  # no default YAML: keys unchecked
    return _checked(user, known, "model", _without_effect("model"))


def _merged_dataset(name: str, user: Any) -> dict[str, Any]:
    user = {} if user is None else user
    if not isinstance(user, dict):
        raise ConfigError(f"datasets.{name} must be a mapping, not {user!r}")
    dataset_type = user.get("type")
    defaults = dataset_defaults(name, dataset_type=dataset_type)  # none: the builder checks its own keys
    given = {key: value for key, value in user.items() if key != "type"}
    merged = _checked(given, defaults, f"datasets.{name}", _without_effect("dataset"))
    return {**merged, "type": dataset_type}


# Checking


def _checked(user: dict[str, Any], defaults: dict[str, Any], path: str, ignored: Iterable[str]) -> dict[str, Any]:
    """``defaults`` overridden by ``user``, every key of which must be known (see the module's two open
    defaults)."""
    template = defaults.get("+")
    if "+" in defaults:
        defaults = {key: value for key, value in defaults.items() if key != "+"}
        defaults |= {key: template for key in user if key not in defaults}
    merged = {key: _without_templates(value) for key, value in defaults.items()}
    for key, value in user.items():
        dotted = f"{path}.{key}"
        if key not in defaults and key in ignored:
            _notice(dotted)
        elif key not in defaults and defaults:
            raise ConfigError(_unknown_key(dotted, str(key), defaults))
        elif isinstance(value, dict) and not defaults:
            merged[key] = _checked(value, {}, dotted, ignored)
        elif value is None and template is not None:
            merged[key] = None
        elif isinstance(defaults.get(key), dict):
            if not isinstance(value, dict) and (value is not None or defaults[key]):
                raise ConfigError(f"{dotted} must be a mapping with keys {listed(defaults[key])}, not {value!r}")
            merged[key] = _checked(value or {}, defaults[key], dotted, ignored)
        else:
            merged[key] = _checked_value(value, defaults.get(key), dotted)
    return merged


def _without_templates(value: Any) -> Any:
    """A default as it enters the configuration: without the ``"+"`` entries."""
    if isinstance(value, dict):
        return {key: _without_templates(item) for key, item in value.items() if key != "+"}
    return value


def _checked_value(value: Any, default: Any, dotted: str) -> Any:
    """``value`` where it is of the default's kind; whole floats become ints where the default is an int."""
    if value is None or default is None or (isinstance(value, str) and "${" in value):
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool):
        fits, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, kind = number and float(value).is_integer(), "a whole number"
        value = int(value) if fits else value
    elif isinstance(default, float):
        fits, kind = number, "a number"
    elif isinstance(default, list):
        fits, kind = not isinstance(value, dict), "a list"
        value = value if isinstance(value, list) else [value]
    else:
        fits, kind = not isinstance(value, (dict, list)), "text"
    if not fits:
        raise ConfigError(f"{dotted} must be {kind} (default {default!r}), not {value!r}")
    return value


def _unknown_key(dotted: str, key: str, accepted: Iterable[str]) -> str:
    return f"Unknown key '{dotted}'.{did_you_mean(key, accepted)} Accepted keys here: {listed(accepted)}."


def _without_effect(section: str) -> list[str]:
    return list(_default_yaml()["published_without_effect"][section])


def _notice(dotted: str) -> None:
    if dotted not in _noticed:
        _noticed.add(dotted)
        logger.info("%s is a published key without effect here; it is ignored.", dotted)


# Reading


def load_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file merged over what its ``base`` names, as plain containers; nothing is checked."""
    return plain(load_user(Path(path)))


def _resolved(parts: dict[str, Any]) -> DictConfig:
    config = OmegaConf.create(parts)
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {error.msg or error}") from error
    return config


def _section(given: dict[str, Any], name: str) -> dict[str, Any]:
    part = given.get(name)
    if part is not None and not isinstance(part, dict):
        raise ConfigError(f"{name} must be a mapping, not {part!r}")
    return part or {}


def _default_yaml() -> dict[str, Any]:
    return plain(read_yaml(library_root / "configs" / "default.yaml"))


def _import_modules(modules: Iterable[str]) -> None:
    """Import user code that registers names: module names, or ``.py`` files relative to the YAML that lists
    them."""
    for item in [modules] if isinstance(modules, str) else modules:
        try:
            if not item.endswith(".py"):
                importlib.import_module(item)
                continue
            name = "lavis_user_" + Path(item).stem
            if getattr(sys.modules.get(name), "__file__", None) == item:
                continue
            spec = importlib.util.spec_from_file_location(name, item)
            if spec is None or spec.loader is None or not Path(item).is_file():
                raise ConfigError(f"imports: no file {item}")
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        except ModuleNotFoundError as error:
            raise ConfigError(f"imports: {item} cannot be imported: {error}") from error


# Options


def _apply_options(config: DictConfig, options: Sequence[str]) -> None:
    """``a.b=c d=e`` or ``a.b c d e``, decided by an ``=`` in the first item; values are read as YAML."""
    options = [str(option) for option in options]
    if options and "=" in options[0]:
        pairs = [option.partition("=")[::2] for option in options]
        if wrong := [option for option in options if "=" not in option]:
            raise ConfigError(f"--options: '{wrong[0]}' has no '='; write key=value")
    elif len(options) % 2:
        raise ConfigError(f"--options: '{options[-1]}' has no value; write key=value, or key value pairs")
    else:
        pairs = list(zip(options[::2], options[1::2], strict=True))
    for key, text in pairs:
        try:
            value = plain(OmegaConf.from_dotlist([f"value={text}"]))["value"]
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, IndexError) as error:
            raise ConfigError(f"--options {key}={text}: {error}") from error
