"""What a person does on the page, by playwright: open a file, drag a box, read the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SETTLED = "[...document.querySelectorAll('.rb-list .rb-caption')].every((node) => node.textContent !== '…')"


def open_image(page: Any, path: Path) -> None:
    page.set_input_files("#picture .rb-file", path)
    page.wait_for_function("(name) => document.querySelector('#picture .rb-status').textContent.startsWith(name)", arg=path.name)


def open_cloud(page: Any, path: Path) -> None:
    page.get_by_role("tab", name="Point cloud").click()
    page.set_input_files("#cloud .rb-file", path)
    page.wait_for_function("(name) => document.querySelector('#cloud .rb-status').textContent.startsWith(name)", arg=path.name)


def drag(page: Any, box: list[float], size: tuple[int, int]) -> None:
    """Draw a box, given in pixels of a picture of `size`, by the mouse."""
    frame = page.locator("#picture .rb-image").bounding_box()
    corners = [
        (x * frame["width"] / size[0] + frame["x"], y * frame["height"] / size[1] + frame["y"]) for x, y in (box[:2], box[2:])
    ]
    page.mouse.move(*corners[0])
    page.mouse.down()
    page.mouse.move(*corners[1], steps=4)
    page.mouse.up()


def rows(page: Any) -> list[tuple[str, list[float]]]:
    """Captions and pixel boxes of the list, when all captions are there."""
    page.wait_for_function(SETTLED)
    captions = page.locator(".rb-list .rb-caption").all_inner_texts()
    boxes = [[float(part) for part in text.split(",")] for text in page.locator(".rb-list small").all_inner_texts()]
    return list(zip(captions, boxes, strict=True))


def value_of(page: Any, name: str) -> str:
    """The text in a text box, once there is one."""
    page.wait_for_function("(name) => document.querySelector(`#${name} textarea, #${name} input`).value !== ''", arg=name)
    return page.locator(f"#{name} textarea, #{name} input").first.input_value()
