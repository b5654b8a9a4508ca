"""The HTTP API's refusals, on a captioner that only says what it was given."""

from __future__ import annotations

import io
import json
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from lavis.serving.api import FORM_BYTES, build_api
from lavis.serving.desk import Busy, Desk
from lavis.serving.uploads import MAX_BOXES, MAX_PIXELS, MEGABYTES


class Echo:
    """In place of a Captioner."""

    checkpoint, description = Path("echo.pth"), "an echo"

    def caption_image(self, image: Image.Image) -> str:
        if image.size == (13, 13):
            raise KeyError("a secret of the server")
        return f"{image.size}"

    def caption_regions(self, image: Image.Image, boxes: list[list[float]]) -> list[str]:
        return [f"{box}" for box in boxes]

    def ask(self, image: Image.Image, question: str, box: list[float] | None = None) -> str:
        return f"{question} {box}"

    def caption_cloud(self, points: Any) -> str:
        return f"{points.shape}"


@pytest.fixture
def desk() -> Desk:
    return Desk(Echo(), places=2)  # type: ignore[arg-type]


@pytest.fixture
def client(desk: Desk) -> Iterator[TestClient]:
    with TestClient(build_api(desk), raise_server_exceptions=False) as client:
        yield client


def png(side: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side)).save(stream, "PNG")
    return stream.getvalue()


def post(client: TestClient, route: str, content: bytes | None = None, name: str = "a.png", **fields: str) -> tuple[int, Any]:
    reply = client.post(f"/api/{route}", files={"file": (name, png() if content is None else content)}, data=fields)
    return reply.status_code, reply.json()


def test_answers(client: TestClient) -> None:
    assert post(client, "caption_image") == (200, {"caption": "(8, 8)"})
    assert post(client, "caption_regions", boxes="[[1, 2, 3, 4]]") == (200, {"captions": ["[1.0, 2.0, 3.0, 4.0]"]})
    assert post(client, "ask", question=" what  now? ") == (200, {"answer": "what now? None"})
    assert post(client, "ask", question="now?", box="[1, 2, 3, 4]") == (200, {"answer": "now? [1.0, 2.0, 3.0, 4.0]"})
    stream = io.BytesIO()
    np.save(stream, np.random.RandomState(0).rand(10, 3))
    assert post(client, "caption_cloud", stream.getvalue(), "c.npy") == (200, {"caption": "(10, 3)"})


@pytest.mark.parametrize(
    ("route", "content", "name", "fields", "told"),
    [
        ("caption_image", b"no picture", "x.png", {}, "x.png: "),
        ("caption_image", png()[:40], "C:\\folder\\x.png", {}, "x.png: "),
        ("caption_image", b"", "x.png", {}, "x.png: the file is empty"),
        ("caption_cloud", b"ply", "x.ply", {}, "x.ply: "),
        ("caption_cloud", png(), "x.png", {}, "accepted: .npy, .npz, .ply, .pcd"),
        ("caption_regions", png(), "x.png", {"boxes": "[[1, 2, 3"}, "boxes are no JSON"),
        ("caption_regions", png(), "x.png", {"boxes": "[]"}, f"accepted: 1 to {MAX_BOXES} lists of 4 numbers"),
        ("caption_regions", png(), "x.png", {"boxes": "[[1, 2, 3]]"}, "box [1, 2, 3]; accepted"),
        ("caption_regions", png(), "x.png", {"boxes": "[[1, 2, NaN, 4]]"}, "box [1, 2, nan, 4]; accepted"),
        ("caption_regions", png(), "x.png", {"boxes": json.dumps([[0, 0, 1, 1]] * 33)}, "accepted: 1 to 32"),
        ("caption_cloud_regions", png(), "x.npy", {"boxes": "[[0, 0, 0, 1, 1, 0]]"}, "has no volume"),
        ("ask", png(), "x.png", {"question": " "}, "the question has 0 words"),
    ],
)
def test_what_cannot_be_used_is_refused(
    client: TestClient, route: str, content: bytes, name: str, fields: dict[str, str], told: str
) -> None:
    status, reply = post(client, route, content, name, **fields)
    assert status == 400 and told in reply["error"] and "folder" not in reply["error"]


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_unpacked(client: TestClient) -> None:
    stream = io.BytesIO()
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(stream, "PNG")
    assert len(stream.getvalue()) < 100_000
    status, reply = post(client, "caption_image", stream.getvalue())
    assert status == 400 and f"{side} x {side} pixels; accepted: at most {MAX_PIXELS}" in reply["error"]


def test_a_size_that_pillow_refuses_itself_is_named(client: TestClient) -> None:
    chunk = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    content = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    content += (1).to_bytes(4, "big") + b"IDAT" + bytes(5)
    status, reply = post(client, "caption_image", content)
    assert status == 400 and "too many pixels; accepted: at most" in reply["error"]


def test_a_missing_field_is_named(client: TestClient) -> None:
    reply = client.post("/api/caption_regions", files={"file": ("a.png", png())})
    assert reply.status_code == 422 and reply.json()["error"].startswith("field boxes")


def test_large_bodies_are_refused_declared_or_not(client: TestClient) -> None:
    most = int(MEGABYTES * 1e6) + FORM_BYTES
    declared = client.post("/api/caption_image", content=b"", headers={"content-length": str(most + 1)})
    assert declared.status_code == 413 and f"{MEGABYTES} MB" in declared.json()["error"]
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        while sent < 4 * most:
            sent += 1_000_000
            yield bytes(1_000_000)

    streamed = client.post("/api/caption_image", content=endless(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert streamed.status_code == 413 and f"{MEGABYTES} MB" in streamed.json()["error"]
    assert client.get("/api/nothing").json() == {"error": "there is no such route; GET /api says what there is"}


def test_a_fault_of_ours_is_not_told_in_detail(client: TestClient) -> None:
    assert post(client, "caption_image", png(13)) == (500, {"error": "the server failed on this request; its log says more"})


def test_a_full_desk_sends_away_and_serves_on(desk: Desk, client: TestClient) -> None:
    entered, leave, answers = threading.Event(), threading.Event(), []

    def wait() -> None:
        with desk.turn():
            entered.set()
            leave.wait(60)

    def second() -> None:
        answers.append(post(client, "caption_image"))

    first = threading.Thread(target=wait)
    first.start()
    assert entered.wait(60)
    waiting = threading.Thread(target=second)
    waiting.start()
    while desk._free._value:  # type: ignore[attr-defined]  # until the second has taken the last place
        waiting.join(0.01)
    reply = client.post("/api/caption_image", files={"file": ("a.png", png())})
    assert reply.status_code == 503 and reply.headers["retry-after"] == "1" and "2 requests are waiting" in reply.json()["error"]
    with pytest.raises(Busy), desk.turn():
        raise AssertionError("a third got a place")
    leave.set()
    first.join(60)
    waiting.join(60)
    assert answers == [(200, {"caption": "(8, 8)"})]
    assert post(client, "caption_image")[0] == 200


def test_the_manual_names_every_route(client: TestClient) -> None:
    manual = client.get("/api").text
    routes = client.get("/openapi.json").json()["paths"]
    assert {"/api/info", "/api/caption_cloud_regions"} <= set(routes)
    assert all(route in manual for route in routes)
    assert client.get("/docs").status_code == 404  # it would load scripts from elsewhere
