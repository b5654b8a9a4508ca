"""Names to classes. A kind's home package is imported when one of its names is first missed, so a new model,
dataset or task is one new file; nothing has to be listed in an ``__init__``."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar

from lavis.common.errors import UnknownNameError, unknown

__all__ = ["HOMES", "Registry", "UnknownNameError", "registry"]

logger = logging.getLogger(__name__)
T = TypeVar("T", bound=type)

HOMES = {
    "model": "lavis.models",
    "task": "lavis.tasks",
    "runner": "lavis.runners",
    "processor": "lavis.processors",
    "builder": "lavis.datasets",
    "lr_scheduler": "lavis.common.optims",
    "encoder": "lavis.models.encoders",
    "region": "lavis.models.regions",
}


def _modules_under(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    yield name
    for info in sorted(pkgutil.iter_modules(getattr(module, "__path__", []), name + "."), key=lambda info: info.name):
        if info.ispkg:
            yield from _modules_under(info.name)
        else:
            yield info.name


class Registry:
    """One table per kind, and one of free dotted names."""

    def __init__(self) -> None:
        self._classes: dict[str, dict[str, type]] = {kind: {} for kind in HOMES}
        self._objects: dict[str, Any] = {}
        self._searched: set[str] = set()
        self._searching = threading.RLock()
        self._failed: dict[str, dict[str, str]] = {kind: {} for kind in HOMES}

    # Classes, by kind

    def register_model(self, name: str) -> Callable[[T], T]:
        return self._decorator("model", name)

    def register_task(self, name: str) -> Callable[[T], T]:
        return self._decorator("task", name)

    def register_runner(self, name: str) -> Callable[[T], T]:
        return self._decorator("runner", name)

    def register_processor(self, name: str) -> Callable[[T], T]:
        return self._decorator("processor", name)

    def register_builder(self, name: str) -> Callable[[T], T]:
        return self._decorator("builder", name)

    def register_lr_scheduler(self, name: str) -> Callable[[T], T]:
        return self._decorator("lr_scheduler", name)

    def register_encoder(self, name: str) -> Callable[[T], T]:
        return self._decorator("encoder", name)

    def register_region(self, name: str) -> Callable[[T], T]:
        return self._decorator("region", name)

    def get_model_class(self, name: str) -> Any:
        return self.get_class("model", name)

    def get_task_class(self, name: str) -> Any:
        return self.get_class("task", name)

    def get_runner_class(self, name: str) -> Any:
        return self.get_class("runner", name)

    def get_processor_class(self, name: str) -> Any:
        return self.get_class("processor", name)

    def get_builder_class(self, name: str) -> Any:
        return self.get_class("builder", name)

    def get_lr_scheduler_class(self, name: str) -> Any:
        return self.get_class("lr_scheduler", name)

    def get_encoder_class(self, name: str) -> type:
        found: type = self.get_class("encoder", name)
        return found

    def get_region_class(self, name: str) -> type:
        found: type = self.get_class("region", name)
        return found

    def list_models(self) -> list[str]:
        return self.names("model")

    def list_tasks(self) -> list[str]:
        return self.names("task")

    def list_runners(self) -> list[str]:
        return self.names("runner")

    def list_processors(self) -> list[str]:
        return self.names("processor")

    def list_builders(self) -> list[str]:
        return self.names("builder")

    def list_lr_schedulers(self) -> list[str]:
        return self.names("lr_scheduler")

    def list_encoders(self) -> list[str]:
        return self.names("encoder")

    def list_regions(self) -> list[str]:
        return self.names("region")

    def get_class(self, kind: str, name: str) -> Any:
        """The class registered as ``name``; UnknownNameError names the near matches and all accepted
        names."""
        table = self._classes[kind]
        if name not in table:
            self._search(kind)
        if name not in table:
            failed = "".join(f" ({module} was not searched: {why})" for module, why in self._failed[kind].items())
            raise UnknownNameError(unknown(kind, name, table) + failed)
        return table[name]

    def names(self, kind: str) -> list[str]:
        """Every registered name of a kind, sorted."""
        self._search(kind)
        return sorted(self._classes[kind])

    # Free names

    def register(self, name: str, obj: Any) -> None:
        """Keep any object under a dotted name; a later call replaces it."""
        self._objects[name] = obj

    def get(self, name: str, default: Any = None) -> Any:
        return self._objects.get(name, default)

    def unregister(self, name: str) -> Any:
        """Forget a free name and return what it held (None if it held nothing)."""
        return self._objects.pop(name, None)

    def _decorator(self, kind: str, name: str) -> Callable[[T], T]:
        def wrap(cls: T) -> T:
            if not inspect.isclass(cls):
                raise TypeError(f"register_{kind}({name!r}) decorates a class, not {cls!r}")
            held = self._classes[kind].get(name)
            same = held is not None and (held.__module__, held.__qualname__) == (
                cls.__module__,
                cls.__qualname__,
            )
            if held is not None and not same:
                raise KeyError(f"Name '{name}' already registered for {held}.")
            self._classes[kind][name] = cls
            return cls

        return wrap

    def _search(self, kind: str) -> None:
        """Import every module of the kind's home package, once; other threads wait until that is done. A module whose
        optional third-party dependency is missing is passed over and named in the error of a name that is then not found."""
        with self._searching:
            if kind in self._searched:
                return
            self._searched.add(kind)
            for module in _modules_under(HOMES[kind]):
                self._import(kind, module)

    def _import(self, kind: str, module: str) -> ModuleType | None:
        try:
            return importlib.import_module(module)
        except ImportError as error:
            if (error.name or "").partition(".")[0] in ("", "lavis"):
                raise
            self._failed[kind][module] = str(error)
            logger.debug("%s not imported: %s", module, error)
            return None


registry = Registry()
