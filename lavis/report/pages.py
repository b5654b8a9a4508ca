"""Pages from the templates beside this file: each one HTML file with its styles and scripts inside, nothing fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).resolve().parent / "templates"


def render(
    template: str,
    *,
    filters: Mapping[str, Callable[..., Any]],
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    **values: Any,
) -> str:
    """The text of a page. What is given is escaped; `css` and `script` are the files of `styles` and `scripts`. A value that a
    template asks for and does not get is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    page = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters.update(filters)
    return page.get_template(template).render(css=_joined(styles), script=_joined(scripts), **values)


def _joined(names: Sequence[str]) -> str:
    return "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names)
