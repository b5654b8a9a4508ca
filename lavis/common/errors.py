"""The errors a user can cause, and the wording they share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration, an annotation or a file that cannot be used as asked; the message says what is
    accepted."""


class UnknownNameError(ConfigError):
    """A name that no registry entry carries."""


def listed(names: Iterable[object], *, limit: int = 60) -> str:
    """Sorted, comma-separated names, cut after ``limit``; ``(none)`` when there are no names."""
    ordered = sorted(str(name) for name in names)
    shown = ", ".join(ordered[:limit])
    return (shown + (f", ... ({len(ordered)} in all)" if len(ordered) > limit else "")) or "(none)"


def did_you_mean(name: str, accepted: Iterable[object]) -> str:
    """``" Did you mean 'x' or 'y'?"``, or an empty string where nothing is near."""
    choices = {str(choice).lower(): str(choice) for choice in accepted}
    near = difflib.get_close_matches(str(name).lower(), choices, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(choices[match]) for match in near)}?" if near else ""


def unknown(kind: str, name: object, accepted: Iterable[object]) -> str:
    """One line for an unknown name: what it is, what is near, what is accepted."""
    names = list(accepted)
    return f"Unknown {kind} '{name}'.{did_you_mean(str(name), names)} Accepted: {listed(names)}."
