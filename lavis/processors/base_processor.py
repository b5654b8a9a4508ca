"""The processor interface; the base itself is the identity."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from omegaconf import DictConfig, OmegaConf

from lavis.common.errors import ConfigError
from lavis.common.registry import registry

P = TypeVar("P", bound="BaseProcessor")


@registry.register_processor("identity")
class BaseProcessor:
    """Returns an item as it is; subclasses override `__call__` and state their options in `__init__`.

    The signature of `__init__` is the processor's configuration: its parameters are the keys that a YAML may
    give, its default values those of the published processor of that name.
    """

    deterministic: bool = True  # the same item in, the same out: the result may be cached
    keeps_frame: bool = True  # no crop and no flip: a box normalised by the picture's size stays true

    def __call__(self, item: Any, *, rng: np.random.RandomState | None = None) -> Any:
        """Process one item. Every random draw comes from `rng`; without one, from the global generators."""
        return item

    def fingerprint(self) -> str | None:
        """A text that is another where the processor makes something else of an item; None where that is not known, or where the
        same item may give another result."""
        return None

    @classmethod
    def from_config(cls: type[P], cfg: Mapping[str, Any] | None = None) -> P:
        """Build from a mapping, null being the default. ConfigError names an unknown key and the accepted."""
        accepted = [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]
        given = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg or {})
        assert isinstance(given, dict)
        options = {str(key): value for key, value in given.items() if key != "name" and value is not None}
        unknown = sorted(set(options) - set(accepted))
        if unknown:
            keys = ", ".join(["name", *accepted])
            raise ConfigError(f"processor {cls.__name__} has no option {', '.join(unknown)}; accepted: {keys}")
        return cls(**options)

    def build(self: P, **options: Any) -> P:
        """Another processor of this class, from keywords."""
        return type(self).from_config(options)
