"""The HTTP API: the page's functions for programs, described in static/http_api.md (GET /api) and at /openapi.json.

A file comes as multipart form field `file`, everything else as form fields beside it. Answers are JSON; a refusal is
{"error": message} with 400 (a file or field that cannot be used), 413 (too large), 422 (a field is missing), 503 (all places
taken; ask again) or 500 (our fault; the log has the traceback).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lavis import __version__
from lavis.serving.desk import Busy, Desk
from lavis.serving.uploads import (
    MAX_BOXES,
    MAX_POINTS,
    MEGABYTES,
    check_boxes,
    check_question,
    read_picture,
    read_points,
)

MANUAL = Path(__file__).parent / "static" / "http_api.md"
FORM_BYTES = 100_000  # of a request beyond its file
UPLOAD_SECONDS = 120.0  # for a request's body
Upload = Annotated[UploadFile, File(description="the picture or the cloud")]
BoxesField = Annotated[str, Form(description="JSON, a list of boxes")]


class TooLarge(ValueError):
    """A request whose body is larger than any that is read."""


class TooSlow(ValueError):
    """A request whose body does not end."""


class BodyLimit:
    """ASGI middleware: bodies that are larger, or that take longer, are refused before they are read to the end."""

    def __init__(self, app: ASGIApp, *, seconds: float = UPLOAD_SECONDS) -> None:
        self.app, self.seconds = app, seconds
        self.most = int(MEGABYTES * 1e6) + FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        refusal = JSONResponse({"error": f"the request is too large; accepted: files up to {MEGABYTES} MB"}, 413)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.most:
            return await refusal(scope, receive, send)
        seen, started, ended, slow = 0, False, False, False
        deadline = asyncio.get_running_loop().time() + self.seconds

        async def counted() -> Message:
            nonlocal seen, ended, slow, refusal
            if ended:
                return await receive()  # waits for the end of the connection, however long the answer takes
            try:
                message = await asyncio.wait_for(receive(), deadline - asyncio.get_running_loop().time())
            except asyncio.TimeoutError as error:
                slow, words = True, f"the upload took longer than {self.seconds:.0f} s"
                refusal = JSONResponse({"error": words}, 408, {"Connection": "close"})
                raise TooSlow from error
            ended = not message.get("more_body")
            seen += len(message.get("body", b""))
            if seen > self.most:
                raise TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            if seen <= self.most and not slow:
                started = True
                await send(message)
            elif not started:  # what the routes say of a body that was cut off is not the reason
                started = True
                await refusal(scope, receive, send)

        try:
            await self.app(scope, counted, noted)
        except (TooLarge, TooSlow):
            if not started:
                await refusal(scope, receive, send)


def build_api(desk: Desk) -> FastAPI:
    """The application with the routes; the page is mounted on it."""
    app = FastAPI(title="RegionBLIP captions", version=__version__, description=__doc__ or "", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit)
    add_errors(app)
    add_routes(app, desk)
    return app


def add_errors(app: FastAPI) -> None:
    """Exceptions as JSON; what is not the caller's fault is logged and not told."""

    def told(status: int, message: str, **headers: str) -> JSONResponse:
        return JSONResponse({"error": message}, status, headers=headers)

    @app.exception_handler(ValueError)
    async def refused(request: Request, error: ValueError) -> JSONResponse:
        return told(400, str(error))

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> JSONResponse:
        return told(503, str(error), **{"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def incomplete(request: Request, error: RequestValidationError) -> JSONResponse:
        return told(422, "; ".join(f"field {problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return told(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return told(500, "the server failed on this request; its log says more")


def add_routes(app: FastAPI, desk: Desk) -> None:
    """GET /api/info and one POST per function of the captioner."""

    @app.get("/api", response_class=PlainTextResponse)
    def manual() -> str:
        """How to call this, in words."""
        return MANUAL.read_text("utf-8")

    @app.get("/api/info")
    def info() -> dict[str, Any]:
        """Which checkpoint is served, what it knows, and the limits."""
        limits = {"megabytes": MEGABYTES, "points": MAX_POINTS, "boxes": MAX_BOXES, "waiting": desk.places}
        path = desk.captioner.checkpoint
        name = "/".join(path.parts[-3:])  # where it lies on this machine is told to nobody
        return {"checkpoint": name, "description": desk.captioner.description.replace(str(path), name), "limits": limits}

    @app.post("/api/caption_image")
    def caption_image(file: Upload) -> dict[str, str]:
        """{"caption"} of a whole picture."""
        picture = read_picture(file.file.read(), named(file))
        with desk.turn() as captioner:
            return {"caption": captioner.caption_image(picture)}

    @app.post("/api/caption_regions")
    def caption_regions(file: Upload, boxes: BoxesField) -> dict[str, list[str]]:
        """{"captions"} of boxes [[x1, y1, x2, y2], ...] in pixels of a picture."""
        checked = check_boxes(boxes, numbers=4)
        picture = read_picture(file.file.read(), named(file))
        with desk.turn() as captioner:
            return {"captions": captioner.caption_regions(picture, checked)}

    @app.post("/api/ask")
    def ask(file: Upload, question: Annotated[str, Form()], box: Annotated[str | None, Form()] = None) -> dict[str, str]:
        """{"answer"} to a question on a picture, or on one box [x1, y1, x2, y2] of it."""
        checked = check_boxes(f"[{box}]", numbers=4)[0] if box else None
        words = check_question(question)
        picture = read_picture(file.file.read(), named(file))
        with desk.turn() as captioner:
            return {"answer": captioner.ask(picture, words, checked)}

    @app.post("/api/caption_cloud")
    def caption_cloud(file: Upload) -> dict[str, str]:
        """{"caption"} of a whole cloud (.npy, .npz, .ply or .pcd)."""
        points = read_points(file.file.read(), named(file))
        with desk.turn() as captioner:
            return {"caption": captioner.caption_cloud(points)}

    @app.post("/api/caption_cloud_regions")
    def caption_cloud_regions(file: Upload, boxes: BoxesField) -> dict[str, list[str]]:
        """{"captions"} of boxes [[cx, cy, cz, dx, dy, dz], ...] in the unit and axes of a cloud."""
        checked = check_boxes(boxes, numbers=6)
        points = read_points(file.file.read(), named(file))
        with desk.turn() as captioner:
            return {"captions": captioner.caption_cloud_regions(points, checked)}

    @app.api_route("/api/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
    def nothing(rest: str) -> None:
        """Other routes below /api; without this gradio's page would answer them in its own form."""
        raise HTTPException(404, "there is no such route; GET /api says what there is")


def named(file: UploadFile) -> str:
    """The last part of a file's name, whatever its sender's machine separates folders by."""
    return (file.filename or "file").replace("\\", "/").rsplit("/", 1)[-1]
