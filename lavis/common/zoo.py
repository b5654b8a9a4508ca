"""LAVIS' listings of what is registered: print them, iterate over them."""

from __future__ import annotations

from collections.abc import Iterator

from lavis.common.registry import registry

RULE = "=" * 50


class Zoo:
    """The registered names of a kind and their types: iterates as (name, [types]), prints as a table, len() counts types.

    `types`: the class attribute whose keys are the types. `without_types`: whether names that have none are listed.
    """

    def __init__(self, kind: str, *, heading: str, types: str, without_types: bool) -> None:
        self._kind, self._heading, self._types, self._without_types = kind, heading, types, without_types

    def _table(self) -> dict[str, list[str]]:
        table = {name: list(getattr(registry.get_class(self._kind, name), self._types, ())) for name in self.get_names()}
        return {name: types for name, types in table.items() if types or self._without_types}

    def get_names(self) -> list[str]:
        """Every registered name, sorted."""
        return registry.names(self._kind)

    def __contains__(self, name: object) -> bool:
        return name in self.get_names()

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return iter(self._table().items())

    def __len__(self) -> int:
        return sum(len(types) for _, types in self)

    def __str__(self) -> str:
        rows = [f"{name:<30} {', '.join(types)}" for name, types in self]
        return "\n".join([RULE, f"{self._heading:<30} Types", RULE, *rows])
