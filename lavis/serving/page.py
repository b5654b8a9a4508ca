"""The page: two tabs of gradio parts around two hand-written views (static/); every button is a request that waits for its turn.

A view sends {n, source, ...} as its value and watches its property `reply`; n tells which request is answered. `source` names
an opened file: {"path", "name"} of an upload, or {"example"}. Whatever can be refused is told in one line, never as a traceback.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from lavis.common.errors import ConfigError
from lavis.serving import payloads
from lavis.serving.desk import Busy, Desk
from lavis.serving.examples import Example
from lavis.serving.uploads import MEGABYTES, check_boxes, check_question, read_picture, read_points, upload_path

logger = logging.getLogger(__name__)
STATIC = Path(__file__).parent / "static"
# Not gradio's queue: its stream of answers may close on a request that is just being made, which then is never answered.
# Requests wait at the desk.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
FAILED = "The server failed on this request; its log says more."
AXES = ("x", "y", "z")
STEPS = 400  # of a slider
KEPT = 8  # decoded files of each kind
NUMBERS = itertools.count(1)  # of what a view is told, so that each is a change


def theme() -> gr.themes.Base:
    """Colours of the quickstart's report; fonts of the system, so that nothing is fetched."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    look = gr.themes.Base(
        primary_hue="blue", neutral_hue="stone", font=system, font_mono=["ui-monospace", "Menlo", "monospace"],
        radius_size="lg", text_size="md",
    )  # fmt: skip
    return look.set(
        body_background_fill="#f7f6f3", body_background_fill_dark="#131519", block_background_fill_dark="#1b1e24",
        button_primary_background_fill="#2c5fd8", button_primary_background_fill_dark="#2c5fd8",
        button_primary_background_fill_hover="#234fb8", button_primary_background_fill_hover_dark="#234fb8",
        button_primary_text_color="#ffffff", button_primary_text_color_dark="#ffffff",
        border_color_primary="#e4e1da", border_color_primary_dark="#343a45", input_background_fill_dark="#242933",
        button_secondary_background_fill_dark="#2d323b", slider_color="#2c5fd8", slider_color_dark="#7fa5ff",
    )  # fmt: skip


def build_page(desk: Desk, examples: Sequence[Example]) -> gr.Blocks:
    """The page on this model, with examples to click."""
    files = Files(examples)
    with gr.Blocks(analytics_enabled=False, title="RegionBLIP: captions of regions", delete_cache=(3600, 3600)) as page:
        gr.HTML(payloads.header(desk.captioner), apply_default_css=False, js_on_load=None)
        with gr.Tabs():
            with gr.Tab("Image"):
                picture_tab(desk, files)
            with gr.Tab("Point cloud"):
                cloud_tab(desk, files)
        gr.HTML(payloads.footer(), apply_default_css=False, js_on_load=None)
    return page


# --- files ---------------------------------------------------------------------------------------------------------------


class Files:
    """Opened files by the source that a view names; a few stay decoded."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = {example.path.name: example for example in examples}
        self.picture = lru_cache(KEPT)(read_picture)
        self.points = lru_cache(KEPT)(read_points)

    def find(self, source: Any) -> tuple[Path, str, Example | None]:
        """Path, name to show, and example of a source. Only uploads and examples have one: a path elsewhere is refused."""
        if source is None:
            raise ConfigError("No file is open yet. Open one, or choose an example.")
        if set(source) == {"example"} and (example := self.examples.get(str(source["example"]))) is not None:
            return example.path, example.path.name, example
        path = upload_path(str(source["path"]) if set(source) == {"path", "name"} else "")
        return path, path.name, None


# --- events --------------------------------------------------------------------------------------------------------------


def replied(handler: Callable[..., Any], *, others: int = 0) -> Callable[..., Any]:
    """For events of a view: the first thing that `handler(value)` returns becomes the view's reply, or an error its message;
    `others` outputs behind it are left as they are where there is an error."""

    @wraps(handler)
    def safe(value: Any) -> Any:
        number = value.get("n") if isinstance(value, dict) else None
        try:
            reply, *more = handler(value)
        except Exception as error:
            reply, more = {"error": message_of(error, handler)}, [gr.skip()] * others
        update = gr.HTML(reply={"n": number, **reply})
        return [update, *more] if others else update  # of one output gradio takes a list for its value

    return safe


def message_of(error: Exception, handler: Callable[..., Any]) -> str:
    """What a person is told; the log gets what is not theirs."""
    if isinstance(error, ValueError | Busy):
        return str(error)
    logger.error("%s failed", handler.__name__, exc_info=error)
    return FAILED


def told(handler: Callable[..., str], *, at_box: bool = False) -> Callable[..., Any]:
    """For events of buttons: behind the text of `handler(view, ...)` comes an update of the view, whose status line tells an
    error; the text before goes then. at_box: the view writes the text at the box that was asked about."""

    @wraps(handler)
    def safe(*values: Any) -> list[Any]:
        try:
            text = handler(*values)
            box = {"box": values[0].get("box"), "text": text} if at_box else {}
            return [text, gr.HTML(told={"n": next(NUMBERS), "error": None, **box})]
        except Exception as error:
            return ["", gr.HTML(told={"n": next(NUMBERS), "error": message_of(error, handler)})]

    return safe


def pressed(name: str) -> str:
    """JavaScript: tells a view that a button beside it was pressed, whose answer it is to wait for."""
    return f"() => {{ document.getElementById('{name}').dispatchEvent(new Event('rb-pressed')) }}"


def view(name: str, scripts: Sequence[str], files: Files) -> gr.HTML:
    """A hand-written view of static/, with the examples for it."""
    shown = [
        payloads.thumbnail(example) for example in files.examples.values() if (example.kind == "image") == (name == "picture")
    ]
    return gr.HTML(
        value={"n": 0, "source": None, "box": None},
        html_template=(STATIC / f"{name}.html").read_text("utf-8"),
        js_on_load="\n".join((STATIC / script).read_text("utf-8") for script in scripts),
        apply_default_css=False, elem_id=name, reply={"n": 0}, told={"n": 0}, setup={"examples": shown, "megabytes": MEGABYTES},
    )  # fmt: skip


def failure(name: str) -> str:
    """JavaScript: tells a view that its request reached no handler."""
    return f"() => document.getElementById('{name}').dispatchEvent(new Event('rb-failed'))"


def emptied(count: int) -> str:
    """JavaScript: empties `count` text boxes at once, before anything asked later can have filled them."""
    return f"() => {[''] * count}"


# --- the image tab -------------------------------------------------------------------------------------------------------


def picture_tab(desk: Desk, files: Files) -> None:
    """Boxes on a picture, a caption of the whole, a question."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            picture = view("picture", ["shared.js", "picture.js"], files)
        with gr.Column(scale=2, min_width=300):
            gr.HTML((STATIC / "list.html").read_text("utf-8"), apply_default_css=False, js_on_load=None)
            caption = gr.Button("Caption the whole image", variant="primary", elem_id="caption-image", interactive=False)
            whole = gr.Textbox(label="Caption of the whole image", interactive=False, elem_id="whole")
            with gr.Row():
                question = gr.Textbox(
                    label="Question", placeholder="What colour is it?", max_lines=2, scale=4, min_width=180, elem_id="question"
                )
                ask = gr.Button("Ask", scale=1, min_width=72, elem_id="ask", interactive=False)
            answer = gr.Textbox(label="Answer", interactive=False, elem_id="answer")
            gr.HTML(payloads.question_note(desk.captioner), apply_default_css=False, js_on_load=None)

    def picture_of(value: Any) -> Image:
        path, name, _ = files.find(value.get("source"))
        return files.picture(path, name)

    def open_picture(value: Any) -> tuple[Any, ...]:
        _, name, example = files.find(value.get("source"))
        boxes = example.boxes if example else []
        shown = payloads.picture(picture_of(value))
        return {"opened": {"name": name, "boxes": boxes, **shown}}, *[gr.Button(interactive=True)] * 2

    def caption_regions(value: Any) -> tuple[Any, ...]:
        boxes, image = check_boxes(value.get("boxes"), numbers=4), picture_of(value)
        with desk.turn() as captioner:
            return ({"captions": captioner.caption_regions(image, boxes)},)

    def caption_image(value: Any) -> str:
        image = picture_of(value)
        with desk.turn() as captioner:
            return captioner.caption_image(image)

    def answer_question(value: Any, text: str) -> str:
        image, words = picture_of(value), check_question(text)
        box = check_boxes([value["box"]], numbers=4)[0] if value.get("box") else None
        with desk.turn() as captioner:
            return captioner.ask(image, words, box)

    picture.open(None, None, [whole, answer], js=emptied(2), **QUIET)
    opened = picture.open(replied(open_picture, others=2), picture, [picture, caption, ask], trigger_mode="multiple", **QUIET)
    opened.failure(None, js=failure("picture"))
    regions = picture.regions(replied(caption_regions), picture, picture, trigger_mode="multiple", **QUIET)
    regions.failure(None, js=failure("picture"))
    shown = {**QUIET, "show_progress": "minimal"}
    gr.on([caption.click, ask.click, question.submit], None, js=pressed("picture"), **QUIET)
    captioned = caption.click(told(caption_image), picture, [whole, picture], **shown)
    answered = gr.on([ask.click, question.submit], told(answer_question), [picture, question], [answer, picture], **shown)
    for event in (captioned, answered):
        event.failure(None, js=failure("picture"))


# --- the cloud tab -------------------------------------------------------------------------------------------------------


def cloud_tab(desk: Desk, files: Files) -> None:
    """A turnable cloud, a box by sliders, captions of both."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            cloud = view("cloud", ["shared.js", "cloud_view.js", "cloud.js"], files)
        with gr.Column(scale=2, min_width=300):
            caption = gr.Button("Caption the cloud", variant="primary", elem_id="caption-cloud", interactive=False)
            whole = gr.Textbox(label="Caption of the whole cloud", interactive=False, elem_id="whole-cloud")
            with gr.Group(elem_classes="rb-sliders"):
                pairs = []
                for axis in AXES:
                    with gr.Row():
                        pairs.append((slider(f"Centre {axis}", f"centre-{axis}"), slider(f"Size {axis}", f"size-{axis}")))
            sliders = [*(centre for centre, _ in pairs), *(size for _, size in pairs)]
            caption_box = gr.Button("Caption the box", variant="primary", elem_id="caption-box", interactive=False)
            region = gr.Textbox(label="Caption of the box", interactive=False, elem_id="region-cloud")

    def points_of(value: Any) -> NDArray[np.float32]:
        path, name, _ = files.find(value.get("source"))
        return files.points(path, name)

    def open_cloud(value: Any) -> tuple[Any, ...]:
        _, name, example = files.find(value.get("source"))
        points = points_of(value)
        shown = payloads.cloud(points, example)
        buttons = [gr.Button(interactive=True)] * 2
        return {"opened": {"name": name, **shown}}, *moved(points, shown["box"]), *buttons

    def pick(value: Any, event: gr.EventData) -> list[Any]:
        try:
            box = check_boxes([(event._data or {}).get("box")], numbers=6)[0]
            return [*moved(points_of(value), box), gr.skip()]
        except Exception as error:
            return [gr.skip()] * 6 + [gr.HTML(told={"n": next(NUMBERS), "error": message_of(error, pick)})]

    def caption_cloud(value: Any) -> str:
        points = points_of(value)
        with desk.turn() as captioner:
            return captioner.caption_cloud(points)

    def caption_region(value: Any) -> str:
        points, boxes = points_of(value), check_boxes([value.get("box")], numbers=6)
        with desk.turn() as captioner:
            return captioner.caption_cloud_regions(points, boxes)[0]

    cloud.open(None, None, [whole, region], js=emptied(2), **QUIET)
    shown_by_opening = [cloud, *sliders, caption, caption_box]
    opened = cloud.open(replied(open_cloud, others=8), cloud, shown_by_opening, trigger_mode="multiple", **QUIET)
    opened.failure(None, js=failure("cloud"))
    draw = "(...box) => document.getElementById('cloud').dispatchEvent(new CustomEvent('rb-box', { detail: box.slice(0, 6) }))"
    for one in sliders:
        one.change(None, sliders, None, js=draw)
        one.input(None, None, [region], js=emptied(1), **QUIET)
    cloud.pick(None, None, [region], js=emptied(1), **QUIET)
    cloud.pick(pick, cloud, [*sliders, cloud], **QUIET)
    shown = {**QUIET, "show_progress": "minimal"}
    gr.on([caption.click, caption_box.click], None, js=pressed("cloud"), **QUIET)
    captioned = caption.click(told(caption_cloud), cloud, [whole, cloud], **shown)
    named = caption_box.click(told(caption_region, at_box=True), cloud, [region, cloud], **shown)
    for event in (captioned, named):
        event.failure(None, js=failure("cloud"))


def slider(label: str, name: str) -> gr.Slider:
    """One of the six of a box; its range comes with a cloud."""
    return gr.Slider(0, 1, 0.5, step=0.01, label=label, elem_id=name, interactive=True, min_width=140, buttons=[])


def moved(points: NDArray[np.float32], box: Sequence[float]) -> list[Any]:
    """Updates of the six sliders: ranges by the cloud's extent, values of the box."""
    low, high = points[:, :3].min(axis=0).astype(float), points[:, :3].max(axis=0).astype(float)
    reach = float((high - low).max())
    step, digits = float(f"{reach / STEPS:.1g}"), 3 - math.floor(math.log10(reach))
    ranges = [(low[axis], max(high[axis], low[axis] + step)) for axis in range(3)]
    ranges += [(step, (high[axis] - low[axis]) * 1.2 + 2 * step) for axis in range(3)]
    return [
        gr.Slider(
            minimum=round(least, digits),
            maximum=round(most, digits),
            step=step,
            value=round(min(max(value, least), most), digits),
        )
        for (least, most), value in zip(ranges, box, strict=True)
    ]
