"""The page in headless Chromium, on the shipped model: what is drawn, uploaded and asked is answered as the model answers."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx
import numpy as np
import pytest
from PIL import Image

from lavis.serving.captioner import Captioner
from lavis.serving.examples import Example, examples
from lavis.serving.loading import REPOSITORY, SHIPPED, load_captioner
from tests.browser import browser_page
from tests.serving.hands import drag, open_cloud, open_image, rows, value_of
from tests.serving.served import Served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    started = Served(tmp_path_factory.mktemp("served"))
    try:
        yield started
    finally:
        started.end()


@pytest.fixture(scope="module")
def captioner(server: Served) -> Captioner:
    """The same model in this process, loaded while the server starts."""
    return load_captioner(REPOSITORY / SHIPPED)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def address(server: Served, captioner: Captioner) -> str:
    return server.url


@pytest.fixture(scope="module")
def browser_tab(address: str) -> Iterator[tuple[Any, list[str], list[str]]]:
    """A page, the addresses it asked for, and its errors."""
    with browser_page(viewport={"width": 1280, "height": 900}) as page:
        asked: list[str] = []
        wrong: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        yield page, asked, wrong


@pytest.fixture
def page(browser_tab: tuple[Any, list[str], list[str]], address: str) -> Any:
    """The page as it is when it is opened."""
    page = browser_tab[0]
    page.goto(address)
    page.locator("#picture .rb-example").first.wait_for()
    return page


def test_boxes_that_are_drawn_get_the_captions_of_the_model(page: Any, captioner: Captioner, made: list[Example]) -> None:
    image = Image.open(made[0].path)
    open_image(page, made[0].path)
    for number in range(2):
        drag(page, made[0].boxes[number], image.size)
    page.wait_for_function("document.querySelectorAll('.rb-list li').length === 2")
    listed = rows(page)
    for (_, box), wanted in zip(listed, made[0].boxes, strict=False):
        assert np.allclose(box, wanted, atol=0.3)  # as near as the mouse hits
    assert [caption for caption, _ in listed] == captioner.model.describe(image, [box for _, box in listed])
    assert all(name in caption for name, (caption, _) in zip(made[0].names, listed, strict=False))
    assert page.locator(".rb-box .rb-caption").all_inner_texts() == [caption for caption, _ in listed]

    page.keyboard.press("Delete")  # the last box has the focus
    assert len(rows(page)) == 1
    page.mouse.click(*middle(page, made[0].boxes[3], image.size))  # a point
    (_, kept), (caption, box) = rows(page)
    assert np.allclose(kept, listed[0][1]) and np.allclose(box[2] - box[0], 0.3 * min(image.size), atol=0.15)
    assert [caption] == captioner.model.describe(image, [box])
    page.get_by_role("button", name="Clear").click()
    assert rows(page) == []


def middle(page: Any, box: list[float], size: tuple[int, int]) -> tuple[float, float]:
    frame = page.locator("#picture .rb-image").bounding_box()
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return frame["x"] + x * frame["width"] / size[0], frame["y"] + y * frame["height"] / size[1]


def test_the_whole_image_and_a_question_are_answered(page: Any, captioner: Captioner, made: list[Example]) -> None:
    image = Image.open(made[1].path)
    page.locator("#picture .rb-example").nth(1).click()
    page.get_by_role("button", name="Caption the whole image").click()
    assert value_of(page, "whole") == captioner.caption_image(image)
    page.fill("#question textarea", "what is at the top?")
    page.click("#ask")
    assert value_of(page, "answer") == captioner.ask(image, "what is at the top?")
    page.get_by_role("button", name="Draw the 4 boxes of this example").click()
    page.wait_for_function("document.querySelectorAll('.rb-list li').length === 4")
    assert [caption for caption, _ in rows(page)] == captioner.model.describe(image, made[1].boxes)
    page.locator("#picture .rb-example").first.click()  # another picture: what was said of the one before goes
    for name in ("whole", "answer"):
        page.wait_for_function("(name) => document.querySelector(`#${name} textarea, #${name} input`).value === ''", arg=name)
    page.wait_for_function("document.querySelectorAll('.rb-list li').length === 0")


def test_a_cloud_and_a_box_in_it_are_captioned(page: Any, captioner: Captioner, made: list[Example]) -> None:
    room = made[4]
    open_cloud(page, room.path)
    points = np.load(room.path)
    for name, number in zip(("centre-x", "centre-y", "centre-z", "size-x", "size-y", "size-z"), room.boxes[1], strict=True):
        field = page.locator(f"#{name} input[type=number]")
        field.fill(str(number))
        field.press("Enter")
    box = [float(page.locator(f"#{name} input[type=number]").input_value()) for name in box_names()]
    assert np.allclose(box, room.boxes[1], atol=0.01)
    before = drawing(page)
    page.click("#caption-box")
    assert value_of(page, "region-cloud") == captioner.caption_cloud_regions(points, [box])[0]
    page.wait_for_function(
        "(before) => document.querySelector('#cloud canvas').toDataURL() !== before", arg=before
    )  # the caption
    page.click("#caption-cloud")
    assert value_of(page, "whole-cloud") == captioner.caption_cloud(points)

    before = drawing(page)
    page.locator("#cloud canvas").press("ArrowLeft")
    page.wait_for_function("(before) => document.querySelector('#cloud canvas').toDataURL() !== before", arg=before)


def box_names() -> list[str]:
    return [f"{what}-{axis}" for what in ("centre", "size") for axis in "xyz"]


def drawing(page: Any) -> str:
    return page.evaluate("document.querySelector('#cloud canvas').toDataURL()")


def test_an_example_cloud_brings_its_boxes(page: Any, captioner: Captioner, made: list[Example]) -> None:
    page.get_by_role("tab", name="Point cloud").click()
    page.locator("#cloud .rb-example").nth(2).click()
    page.get_by_role("button", name="Box 3").click()
    page.wait_for_function(
        "(x) => document.querySelector('#centre-x input[type=number]').value == x", arg=str(made[4].boxes[2][0])
    )
    page.click("#caption-box")
    assert value_of(page, "region-cloud") == captioner.caption_cloud_regions(np.load(made[4].path), [made[4].boxes[2]])[0]


def test_files_that_cannot_be_used_are_answered_with_a_message(page: Any, tmp_path: Path, made: list[Example]) -> None:
    status = page.locator("#picture .rb-status")
    (tmp_path / "broken.png").write_bytes(made[0].path.read_bytes()[:300])
    page.set_input_files("#picture .rb-file", tmp_path / "broken.png")
    page.wait_for_function("document.querySelector('#picture .rb-status').classList.contains('rb-error')")
    assert status.inner_text().startswith("broken.png: ") and "Traceback" not in page.content()
    (tmp_path / "large.png").write_bytes(bytes(21_000_000))
    page.set_input_files("#picture .rb-file", tmp_path / "large.png")
    page.wait_for_function("document.querySelector('#picture .rb-status').textContent.includes('accepted: up to 20 MB')")
    open_image(page, made[0].path)  # the page goes on
    page.get_by_role("tab", name="Point cloud").click()
    (tmp_path / "text.ply").write_text("no cloud")
    page.set_input_files("#cloud .rb-file", tmp_path / "text.ply")
    page.wait_for_function("document.querySelector('#cloud .rb-status').classList.contains('rb-error')")
    assert page.locator("#cloud .rb-status").inner_text().startswith("text.ply: it is no .ply file")


def test_the_server_refuses_large_uploads_itself(address: str) -> None:
    reply = httpx.post(f"{address}/gradio_api/upload", files={"files": ("large.png", bytes(21_000_000))}, timeout=60)
    assert reply.status_code == 413
    reply = httpx.post(f"{address}/api/caption_image", files={"file": ("large.png", bytes(21_000_000))}, timeout=60)
    assert reply.status_code == 413 and "20 MB" in reply.json()["error"]


def test_the_http_api_answers_as_the_model(address: str, captioner: Captioner, made: list[Example]) -> None:
    image, room, thing = Image.open(made[0].path), np.load(made[4].path), np.load(made[2].path)

    def post(route: str, path: Path, **fields: str) -> Any:
        reply = httpx.post(f"{address}/api/{route}", files={"file": (path.name, path.read_bytes())}, data=fields, timeout=60)
        assert reply.status_code == 200, reply.text
        return reply.json()

    boxes, box = json.dumps(made[0].boxes), json.dumps(made[0].boxes[1])
    assert post("caption_image", made[0].path) == {"caption": captioner.caption_image(image)}
    assert post("caption_regions", made[0].path, boxes=boxes) == {"captions": captioner.model.describe(image, made[0].boxes)}
    answer = captioner.ask(image, "what is it?", made[0].boxes[1])
    assert post("ask", made[0].path, question="what is it?", box=box) == {"answer": answer}
    assert post("caption_cloud", made[2].path) == {"caption": captioner.caption_cloud(thing)}
    captions = captioner.caption_cloud_regions(room, made[4].boxes)
    assert post("caption_cloud_regions", made[4].path, boxes=json.dumps(made[4].boxes)) == {"captions": captions}
    info = httpx.get(f"{address}/api/info", timeout=60).json()
    assert info["checkpoint"].endswith(SHIPPED) and info["limits"]["megabytes"] == 20
    assert {"/api/caption_regions", "/api/ask"} <= set(httpx.get(f"{address}/openapi.json", timeout=60).json()["paths"])


def test_five_users_at_once_get_their_own_answers(page: Any, address: str, captioner: Captioner, made: list[Example]) -> None:
    """Five profiles of a browser draw four boxes each while five programs ask the API, all about pictures of their own."""
    image, boxes = Image.open(made[0].path).convert("RGB"), made[0].boxes
    pictures = [image.rotate(angle) for angle in (0, 90, 180, 270)] + [Image.open(made[1].path).convert("RGB")]
    paths = [made[0].path.parent / f"user{number}.png" for number in range(5)]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)

    def ask(path: Path) -> list[str]:
        fields = {"boxes": json.dumps(boxes)}
        reply = httpx.post(
            f"{address}/api/caption_regions", files={"file": (path.name, path.read_bytes())}, data=fields, timeout=60
        )
        return reply.json()["captions"]

    contexts = [page.context.browser.new_context(viewport={"width": 1000, "height": 900}) for _ in paths]
    try:
        users = [context.new_page() for context in contexts]
        for user, path in zip(users, paths, strict=True):
            user.goto(address)
            user.locator("#picture .rb-example").first.wait_for()
            open_image(user, path)
        with ThreadPoolExecutor(5) as pool:
            answers = pool.map(ask, paths)
            for number in range(len(boxes)):
                for user in users:
                    drag(user, boxes[number], image.size)
            said = [captioner.caption_regions(picture, boxes) for picture in pictures]
            assert list(answers) == said
        for user, picture in zip(users, pictures, strict=True):
            user.wait_for_function("document.querySelectorAll('.rb-list li').length === 4")
            listed = rows(user)
            assert [caption for caption, _ in listed] == captioner.caption_regions(picture, [box for _, box in listed])
    finally:
        for context in contexts:
            context.close()
    assert len({tuple(captions) for captions in said}) >= 4  # the pictures differ, and so do the answers


def test_a_full_queue_is_told_and_the_page_goes_on(page: Any, made: list[Example]) -> None:
    page.locator("#picture .rb-example").first.click()
    page.locator("#picture .rb-image:not([hidden])").wait_for()
    page.route("**/run/predict*", lambda route: route.fulfill(status=503, json={"error": "full"}))
    drag(page, made[0].boxes[0], (84, 84))
    page.wait_for_function("document.querySelector('#picture .rb-status').textContent.includes('busy or gone')")
    assert [caption for caption, _ in rows(page)] == ["no caption"]
    page.unroute("**/run/predict*")
    drag(page, made[0].boxes[1], (84, 84))
    page.wait_for_function("document.querySelectorAll('.rb-list li').length === 2")
    assert made[0].names[1] in rows(page)[1][0]


def test_nothing_is_fetched_from_elsewhere_and_nothing_went_wrong(
    browser_tab: tuple[Any, list[str], list[str]], page: Any
) -> None:
    _, asked, wrong = browser_tab
    assert len(asked) > 20
    hosts = {urlparse(url).hostname for url in asked if not re.match(r"data:|blob:", url)}
    assert hosts == {"127.0.0.1"}
    assert [text for text in wrong if "503" not in text] == []  # 503: the full queue above


def test_a_narrow_window_needs_no_sideways_scrolling(page: Any, made: list[Example]) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    try:
        open_image(page, made[0].path)
        drag(page, made[0].boxes[0], (84, 84))
        assert len(rows(page)) == 1
        widths = [page.evaluate("document.documentElement.scrollWidth")]
        open_cloud(page, made[4].path)
        widths.append(page.evaluate("document.documentElement.scrollWidth"))
        assert max(widths) <= 390
    finally:
        page.set_viewport_size({"width": 1280, "height": 900})


def status_of(page: Any, view: str, part: str) -> str:
    """The status line of a view, once it holds `part`."""
    page.wait_for_function(
        "([view, part]) => document.querySelector(`#${view} .rb-status`).textContent.includes(part)", arg=[view, part]
    )
    return page.locator(f"#{view} .rb-status").inner_text()


def press(page: Any, selector: str) -> None:
    """A click at the middle of a button, whether it is on or off."""
    page.locator(selector).scroll_into_view_if_needed()
    frame = page.locator(selector).bounding_box()
    page.mouse.click(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2)


def test_every_button_says_what_is_missing(page: Any, made: list[Example]) -> None:
    for tab, view, missing, buttons in (
        ("Image", "picture", "No image is open", ("#caption-image", "#ask", "#picture .rb-remove", "#picture .rb-clear")),
        ("Point cloud", "cloud", "No cloud is open", ("#caption-cloud", "#caption-box", "#cloud .rb-up", "#cloud .rb-zoom-in")),
    ):
        page.get_by_role("tab", name=tab).click()
        status_of(page, view, missing)
        for selector in buttons:
            page.evaluate("(view) => (document.querySelector(`#${view} .rb-status`).textContent = '')", view)
            assert page.locator(selector).is_disabled()
            press(page, selector)
            status_of(page, view, missing)
    page.get_by_role("tab", name="Image").click()
    page.locator("#question textarea, #question input").first.press("Enter")
    status_of(page, "picture", "No file is open yet")
    open_image(page, made[0].path)
    for selector in ("#picture .rb-remove", "#picture .rb-clear"):
        press(page, selector)
        status_of(page, "picture", "There is no box yet")
    page.wait_for_function("!document.querySelector('#ask').disabled")
    press(page, "#ask")
    status_of(page, "picture", "the question has 0 words")
    page.locator("#question textarea, #question input").first.fill("word " * 200)
    press(page, "#ask")
    assert "200 words; accepted: 1 to 64" in status_of(page, "picture", "200 words")
    page.locator("#question textarea, #question input").first.fill("what is it?")
    press(page, "#ask")
    status_of(page, "picture", made[0].path.name)  # an answer takes the refusal away
    press(page, "#caption-image")
    assert value_of(page, "whole")


def test_boxes_are_counted_moved_sized_and_kept(page: Any, made: list[Example]) -> None:
    image, box = Image.open(made[0].path), made[0].boxes[0]
    open_image(page, made[0].path)
    for number in range(2):
        drag(page, made[0].boxes[number], image.size)
    page.wait_for_function("document.querySelectorAll('.rb-list li').length === 2")
    rows(page)
    status_of(page, "picture", "2 boxes.")
    page.keyboard.press("Delete")
    status_of(page, "picture", "1 box.")
    page.locator(".rb-box").first.focus()
    before = rows(page)[0][1]
    for key in ("ArrowLeft", "ArrowDown", "Shift+ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    wanted = np.add(before, [-1, 1, 0, 2])
    assert np.allclose(rows(page)[0][1], wanted, atol=0.11)
    drag(page, [wanted[2], wanted[3], wanted[2] - 6, wanted[3] - 6], image.size)  # its lower right corner
    assert np.allclose(rows(page)[0][1], np.subtract(wanted, [0, 0, 6, 6]), atol=0.6)
    x, y = (wanted[0] + wanted[2]) / 2 - 3, (wanted[1] + wanted[3]) / 2 - 3
    drag(page, [x, y, x - 10, y + 10], image.size)  # its inside
    moved = rows(page)
    assert len(moved) == 1 and np.allclose(moved[0][1], np.add(np.subtract(wanted, [0, 0, 6, 6]), [-10, 10, -10, 10]), atol=0.8)
    assert box != moved[0][1]
    page.reload()
    page.wait_for_function("document.querySelectorAll('.rb-list li').length === 1")
    assert rows(page) == moved and not page.locator("#ask").is_disabled()


def test_a_stopped_server_is_told(browser_tab: tuple[Any, list[str], list[str]], tmp_path: Path, made: list[Example]) -> None:
    started = Served(tmp_path)
    context = browser_tab[0].context.browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(started.url)
        page.locator("#picture .rb-example").first.click()
        page.locator("#picture .rb-image:not([hidden])").wait_for()
        page.wait_for_function("!document.querySelector('#ask').disabled")
        started.process.send_signal(signal.SIGSTOP)  # a server that hangs
        drag(page, made[0].boxes[0], (84, 84))
        status_of(page, "picture", "The server does not answer")
        assert [caption for caption, _ in rows(page)] == ["no caption"]
        started.process.send_signal(signal.SIGCONT)
        started.end()
    finally:
        context.close()
        started.process.kill()
