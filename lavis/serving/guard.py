"""Who may ask for what: the middleware that stands before the page and the API.

A browser on this machine can be made to talk to the port by any web page that it shows, and gradio copies every file that a
request names as one of its own. So the host that a request names is checked (a foreign name that resolves to this machine is
refused), requests that change something come from the page itself or from a program, only the routes that the page needs are
open, and of gradio's calls only the bodies that the page sends. Those are written anew, so that gradio reads what was checked.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import math
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lavis.common.errors import ConfigError
from lavis.serving.uploads import upload_path

CALL, UPLOAD = "/gradio_api/run/predict", "/gradio_api/upload"
PAGE = re.compile(r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/logout|/openapi\.json|/(assets|static)/.+")
POSTED = (CALL, UPLOAD, "/login", "/login/")
API = re.compile(r"/api(/.*)?")
OPEN_API = ("/api", "/openapi.json")  # how to call it is told without a token
CALL_BYTES = 100_000
CALL_SECONDS = 20.0
LOCAL = ("127.0.0.1", "localhost", "::1")
ALL_ADDRESSES = ("0.0.0.0", "::")
KEYS = {"data", "event_data", "fn_index", "trigger_id", "session_hash"}
VIEW_KEYS = {"n", "source", "box", "boxes"}


class Refused(Exception):
    """What a request is answered instead: a status and words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """ASGI middleware.

    calls: how many values each function of the page takes. host: what `--host` says. token: what /api asks for in
    `Authorization: Bearer`; None: nothing.
    """

    def __init__(self, app: ASGIApp, *, calls: Mapping[int, int], host: str, token: str | None) -> None:
        self.app, self.calls, self.host, self.token = app, calls, host.lower(), token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        try:
            self.check(scope)
            if scope["path"] == CALL:
                receive = await checked_call(receive, self.calls)
        except Refused as refused:
            headers = {"Connection": "close"} | ({"WWW-Authenticate": "Bearer"} if refused.status == 401 else {})
            return await JSONResponse({"error": str(refused)}, refused.status, headers)(scope, receive, send)
        await self.app(scope, receive, send)

    def check(self, scope: Scope) -> None:
        """Refused for a request that is not answered, whatever its body is."""
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.known(hosts[0]):
            raise Refused(421, "this host is not served here; accepted: 127.0.0.1, localhost, [::1] and the --host of app.py")
        if method not in ("GET", "HEAD", "POST"):
            raise Refused(405, "accepted: GET, HEAD and POST")
        if method == "POST" and not same_origin(headers, hosts[0]):
            raise Refused(403, "requests from pages of another origin are not answered")
        if not API.fullmatch(path) and not (path in POSTED if method == "POST" else PAGE.fullmatch(path)):
            raise Refused(404, "there is nothing here; GET /api says what there is")
        given = headers.get("authorization", "").encode()
        asked = self.token is not None and API.fullmatch(path) and path not in OPEN_API
        if asked and not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            raise Refused(401, "accepted: the header Authorization: Bearer <token>, with the token that app.py printed")

    def known(self, host: str) -> bool:
        """Whether a Host header names this machine. On all addresses any address is a name of it: rebinding needs a name."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in LOCAL or name == self.host:
            return True
        return self.host in ALL_ADDRESSES and (name == socket.gethostname().lower() or is_address(name))


def is_address(name: str) -> bool:
    """Whether a name is a number of IPv4 or IPv6."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def same_origin(headers: Headers, host: str) -> bool:
    """Whether a request comes from a page of this host, or from a program, which sends neither header."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    return all(urlsplit(origin).netloc == host for origin in headers.getlist("origin"))


# --- calls of the page's functions -----------------------------------------------------------------------------------------


async def checked_call(receive: Receive, calls: Mapping[int, int]) -> Receive:
    """What gives the body of a call anew, written from what was checked; Refused for one that the page would not send."""
    try:
        body = await asyncio.wait_for(whole_body(receive), CALL_SECONDS)
        content = json.dumps(page_call(json.loads(body), calls)).encode()
    except asyncio.TimeoutError as error:
        raise Refused(408, f"the request took longer than {CALL_SECONDS:.0f} s") from error
    except (ValueError, RecursionError, OverflowError) as error:  # never what was sent: it may name a file
        raise Refused(400, "this is no request of the page; accepted: what the page sends, see GET /api for programs") from error
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": content, "more_body": False}

    return again


async def whole_body(receive: Receive) -> bytes:
    """The body of a request; Refused for a large one."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > CALL_BYTES:
            raise Refused(413, f"the request is too large; accepted: up to {CALL_BYTES} bytes")
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return body


def page_call(call: object, calls: Mapping[int, int]) -> dict[str, object]:
    """A call of a function of the page, with nothing in it but what the page sends. ValueError for any other."""
    if not isinstance(call, dict) or not set(call) <= KEYS or not isinstance(call.get("data"), list):
        raise ValueError("no call")
    function, trigger = call.get("fn_index"), call.get("trigger_id")
    if type(function) is not int or calls.get(function) != len(call["data"]) or not isinstance(trigger, int | None):
        raise ValueError("no function")
    session = call.get("session_hash")
    if session is not None and not (isinstance(session, str) and re.fullmatch(r"\w{1,64}", session, re.ASCII)):
        raise ValueError("session_hash")
    event = call.get("event_data")
    if event is not None and not (isinstance(event, dict) and set(event) <= {"box"}):
        raise ValueError("event_data")
    kept = {key: call[key] for key in ("fn_index", "trigger_id", "session_hash") if key in call}
    checked = {"box": numbers(event["box"])} if event else {}
    return {**kept, "data": [page_value(value) for value in call["data"]], "event_data": checked}


def page_value(value: object) -> object:
    """The value of one part of the page: a text, a number, or what a view holds."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return number(value)
    if not set(value) <= VIEW_KEYS or not isinstance(value.get("boxes", []), list):
        raise ValueError("no view")
    kept: dict[str, object] = {"n": number(value.get("n", 0)), "source": page_source(value.get("source"))}
    if "box" in value:
        kept["box"] = None if value["box"] is None else numbers(value["box"])
    if "boxes" in value:
        kept["boxes"] = [numbers(box) for box in value["boxes"]]
    return kept


def page_source(source: object) -> dict[str, str] | None:
    """What names an opened file: nothing, {path, name} of an upload, or {example}. A file elsewhere stays without a copy."""
    if source is None:
        return None
    if not isinstance(source, dict) or not all(isinstance(text, str) for text in source.values()):
        raise ValueError("no source")
    if set(source) == {"example"}:
        return source
    if set(source) != {"path", "name"}:
        raise ValueError("no source")
    try:
        return {"path": str(upload_path(source["path"])), "name": source["name"]}
    except ConfigError as error:  # such a file may have been removed after an hour, which is no attack
        raise Refused(400, str(error)) from error


def numbers(values: object) -> list[float]:
    """A list of finite numbers, of any length."""
    if not isinstance(values, list):
        raise ValueError("no numbers")
    return [number(value) for value in values]


def number(value: object) -> float:
    """A finite number as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("no number")
    return value
