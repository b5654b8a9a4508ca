"""LAVIS' listings of what is registered: print them, iterate over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lavis.common.registry import registry

RULE = "=" * 50


class Zoo:
    """The registered names of a kind and their types: iterates as (name, [types]), prints as a table, len() counts types.

    `types`: the class attribute whose keys are the types. `without_types`: whether names that have none are listed. `claimed`:
    gives further (name, type) pairs, of names that may be registered or not.
    """

    def __init__(
        self,
        kind: str,
        *,
        heading: str,
        types: str,
        without_types: bool,
        claimed: Callable[[], Iterable[tuple[str, str]]] = tuple,
    ) -> None:
        self._claimed = claimed
        self._kind, self._heading, self._types, self._without_types = kind, heading, types, without_types

    def _table(self) -> dict[str, list[str]]:
        table = {
            name: list(getattr(registry.get_class(self._kind, name), self._types, ())) for name in registry.names(self._kind)
        }
        for name, further in self._claimed():
            table.setdefault(name, [])
            table[name] += [further] if further not in table[name] else []
        table = dict(sorted(table.items()))
        return {name: types for name, types in table.items() if types or self._without_types}

    def get_names(self) -> list[str]:
        """Every registered or claimed name, sorted."""
        return sorted({*registry.names(self._kind), *(name for name, _ in self._claimed())})

    def __contains__(self, name: object) -> bool:
        return name in self.get_names()

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return iter(self._table().items())

    def __len__(self) -> int:
        return sum(len(types) for _, types in self)

    def __str__(self) -> str:
        rows = [f"{name:<30} {', '.join(types)}" for name, types in self]
        return "\n".join([RULE, f"{self._heading:<30} Types", RULE, *rows])
