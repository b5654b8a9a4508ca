"""Attacks on the running server over HTTP: no file of this machine leaves it, and no page of another origin is answered."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import gradio as gr
import httpx
import pytest
from fastapi import FastAPI

from lavis.serving.application import build_application
from lavis.serving.captioner import Captioner
from lavis.serving.examples import Example
from tests.serving.served import Served

SECRET = "a-secret-of-this-machine"
CALL = "/gradio_api/run/predict"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    started = Served(tmp_path_factory.mktemp("guarded"))
    try:
        yield started
    finally:
        started.end()


@pytest.fixture(scope="module")
def secret(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "private.png"
    path.write_text(SECRET)
    return path


@pytest.fixture(scope="module")
def routes(captioner: Captioner, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Method and path of every route of the application, gradio's among them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        app = build_application(captioner, [], address=("127.0.0.1", 1), host="127.0.0.1", token=None)
    found: list[tuple[str, str]] = []

    def walk(owner: Any, prefix: str) -> None:
        for route in getattr(owner, "routes", []):
            path = prefix + getattr(route, "path", "")
            found.extend((method, path) for method in getattr(route, "methods", None) or ())
            inner = getattr(route, "app", None) or getattr(route, "original_router", None)
            if inner is not None:
                context = getattr(route, "include_context", None)
                walk(inner, path + getattr(context, "prefix", ""))

    walk(app, "")
    return sorted(set(found))


def meta(path: str, **more: object) -> dict[str, object]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def spellings(path: Path, folder: Path) -> list[str]:
    """Names of one file: absolute, relative, encoded, through a symbolic link and out of the folder of uploads."""
    link = folder / "link.png"
    if not link.is_symlink():
        link.symlink_to(path)
    uploads = next(folder.glob("regionblip-page-*")) / "uploads"
    uploads.mkdir(exist_ok=True)
    planted = uploads / "planted.png"
    if not planted.is_symlink():
        planted.symlink_to(path)
    up = os.path.relpath(path, folder)
    return [str(path), up, quote(str(path)), quote(str(path), safe=""), f"file://{path}", str(link), str(planted),
            f"{uploads}/../../../{path.parent.name}/{path.name}", f"{uploads}/{os.path.relpath(path, uploads)}",
            f"//{path}", f"/proc/self/root{path}", str(path) + "\0.png"]  # fmt: skip


def shapes(path: str) -> list[object]:
    """Values of a view that name a file, as gradio or our handlers could take them."""
    file = meta(path)
    return [
        file, [file], {"source": file}, {"a": {"b": [{"c": file}]}}, {"n": file}, {"n": 1, "source": None, "box": file},
        {"source": {"path": path, "name": "x"}}, {"source": {"path": path}}, {"source": {"example": path}},
        {"source": [path]}, {"source": path}, {"source": {"path": [path], "name": "x"}}, {"boxes": [file]},
        {"source": meta(path, name="x")}, {"source": {**meta(path), "url": f"file://{path}", "orig_name": path}},
    ]  # fmt: skip


def harmless(reply: httpx.Response, path: Path) -> None:
    told, status = reply.text, reply.status_code
    assert not [part for part in (SECRET, str(path), path.name, "uploads/") if part in told], (reply.request.url, told)
    assert status != 500 or json.loads(told).get("error"), told


def bodies(path: str) -> list[dict[str, object]]:
    base: dict[str, object] = {"fn_index": 1, "trigger_id": 6, "session_hash": "a1"}
    made = [{**base, "data": [shape]} for shape in shapes(path)]
    view = {"n": 1, "source": {"example": "scene_1.png"}}
    made += [{**base, "data": [view], "event_data": meta(path)}, {**base, "data": [view], "event_data": {"box": meta(path)}}]
    made += [{**base, "data": [view], "session_hash": meta(path)}, {**base, "data": [view], "state": {"1": meta(path)}}]
    return [*made, {**base, "data": {"0": meta(path)}}, {**base, "data": [view], "batched": True, "event_id": meta(path)}]


def test_no_call_reads_a_file_of_the_machine(server: Served, secret: Path) -> None:
    tried = 0
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for spelling in spellings(secret, server.folder):
            for body in bodies(spelling):
                reply = client.post(CALL, json=body)
                tried += 1
                harmless(reply, secret)
                assert 400 <= reply.status_code < 500 or "error" in reply.text, (body, reply.text)
        for function in range(40):  # each function of the page
            for value in shapes(str(secret)):
                harmless(client.post(CALL, json={"data": [value, "a text"], "fn_index": function, "session_hash": "a1"}), secret)
    assert tried > 200
    copies = [path for path in server.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in copies if SECRET.encode() in path.read_bytes()]


def test_no_route_gives_a_file_of_the_machine(server: Served, secret: Path, routes: list[tuple[str, str]]) -> None:
    assert {"/api/ask", "/gradio_api/run/{api_name}", "/gradio_api/upload"} <= {path for _, path in routes}, routes
    names = spellings(secret, server.folder)[:8]
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for method, path in routes:
            for name in names:
                filled = quote("".join(name if part.endswith("}") else part for part in _parts(path)), safe="/%:").replace(
                    "\0", ""
                )
                body = {"data": [meta(name)], "fn_index": 1, "session_hash": "a1", "event_data": meta(name)}
                kwargs: dict[str, Any] = {"json": body} if method == "POST" else {}
                harmless(client.request(method, filled, **kwargs), secret)
        for name in names:
            for route in (
                "/gradio_api/file=",
                "/file=",
                "/gradio_api/proxy=",
                "/static/",
                "/assets/",
                "/static/..%2f..%2f",
                "/svelte/",
            ):
                reply = client.get(route + quote(name))
                harmless(reply, secret)
                assert reply.status_code >= 400


def _parts(path: str) -> list[str]:
    return path.replace("{", "\n{").replace("}", "}\n").split("\n")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:7860", "", "localhost.", "10.0.0.1"])
def test_a_foreign_host_is_refused(server: Served, host: str) -> None:
    for path in ("/", "/config", "/api", "/api/info", "/openapi.json"):
        assert httpx.get(server.url + path, headers={"host": host}, timeout=60).status_code == 421
    assert httpx.post(server.url + CALL, headers={"host": host}, json={}, timeout=60).status_code == 421


def test_the_names_of_this_machine_are_answered(server: Served) -> None:
    port = urlsplit(server.url).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert httpx.get(f"{server.url}/api/info", headers={"host": host}, timeout=60).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:1"}, {"sec-fetch-site": "cross-site"},
     {"sec-fetch-site": "same-site"}],
)  # fmt: skip
def test_posts_of_other_origins_are_refused(server: Served, routes: list[tuple[str, str]], headers: dict[str, str]) -> None:
    for path in {path for method, path in routes if method == "POST"} | {"/api/nothing", CALL}:
        assert httpx.post(server.url + path, headers=headers, content=b"", timeout=60).status_code == 403


def test_deep_and_long_json_is_refused_in_words(server: Served) -> None:
    long = "1" * 400
    calls = [b"[" * 90_000, b'{"data": ' * 9000, f'{{"data": [{long}]}}'.encode(), b"\xff", b"", b'{"data": [NaN]}']
    for body in calls:
        reply = httpx.post(server.url + CALL, content=body, headers={"content-type": "application/json"}, timeout=60)
        assert reply.status_code == 400 and "request of the page" in reply.json()["error"]
    for boxes in ("[" * 90_000, f"[[{long}, 1, 2, 3]]", f"[[{'1' * 5000}, 1, 2, 3]]"):
        reply = httpx.post(f"{server.url}/api/caption_regions", data={"boxes": boxes}, files={"file": b"x"}, timeout=60)
        assert reply.status_code == 400 and reply.json()["error"].startswith("box")


def test_unknown_routes_answer_in_words(server: Served) -> None:
    for path in ("/api/nothing", "/api/", "/gradio_api/info", "/gradio_api/file=/etc/hostname", "/nothing"):
        reply = httpx.get(server.url + path, timeout=60)
        assert reply.status_code == 404 and set(reply.json()) == {"error"}
    info = httpx.get(f"{server.url}/api/info", timeout=60).text
    assert str(Path.cwd()) not in info and '"/' not in info


def test_gradio_checks_files_too(
    captioner: Captioner, made: list[Example], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    pages: list[gr.Blocks] = []
    mount = gr.mount_gradio_app
    monkeypatch.setattr(gr, "mount_gradio_app", lambda app, page, **kw: pages.append(page) or mount(app, page, **kw))
    app = build_application(captioner, made, address=("127.0.0.1", 1), host="127.0.0.1", token=None)
    assert isinstance(app, FastAPI) and pages[0].has_launched


def test_a_token_is_asked_for(captioner: Captioner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    app = build_application(captioner, [], address=("0.0.0.0", 1), host="0.0.0.0", token="right")
    with TestClient(app, base_url="http://10.1.2.3") as client:
        assert client.get("/api/info").status_code == 401
        assert client.get("/api/info", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/api/info", headers={"Authorization": "Bearer right"}).status_code == 200
        assert client.get("/config").status_code == 401
        call = {"data": [{"n": 1, "source": None}], "fn_index": 1, "session_hash": "a"}
        assert client.post(CALL, json=call).status_code == 401
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 401
        assert client.post("/login", data={"username": "a", "password": "wrong"}).status_code == 400
        assert client.post("/login", data={"username": "a", "password": "right"}).status_code == 200
        assert client.get("/config").status_code == 200
        assert client.post(CALL, json=call).status_code == 200
        assert client.get("/api/info", headers={"host": "evil.example"}).status_code == 421


def test_a_body_that_does_not_end_is_answered(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=60) as slow:
        head = f"POST {CALL} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{json.dumps({})[:1]}"
        slow.sendall(head.encode())
        begin = time.monotonic()
        assert b" 408 " in slow.recv(4096)
        assert time.monotonic() - begin < 40
