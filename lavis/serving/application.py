"""The HTTP API with the page mounted on it: one application, one model, one queue of turns."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

import gradio as gr
from fastapi import FastAPI

from lavis.serving.api import build_api
from lavis.serving.captioner import Captioner
from lavis.serving.desk import Desk
from lavis.serving.examples import Example
from lavis.serving.guard import Guard
from lavis.serving.page import STATIC, build_page, theme
from lavis.serving.uploads import MEGABYTES


def build_application(
    captioner: Captioner, examples: Sequence[Example], *, address: tuple[str, int], host: str, token: str | None
) -> FastAPI:
    """An ASGI application; `address` is where it will be served, `host` what the user named for that.

    token: what the page's login and the API ask for (None: nothing)."""
    desk = Desk(captioner)
    page = build_page(desk, examples)
    auth = None if token is None else lambda user, word: hmac.compare_digest(word.encode(), token.encode())
    app = gr.mount_gradio_app(
        build_api(desk), page, path="/", server_name=address[0], server_port=address[1], auth=auth,
        auth_message="Any user name, and as the password the token that app.py printed.", footer_links=[],
        max_file_size=int(MEGABYTES * 1e6), theme=theme(), css_paths=[STATIC / "page.css"], show_error=False, ssr_mode=False,
        pwa=False, mcp_server=False, enable_monitoring=False,
    )  # fmt: skip
    page.has_launched = True  # or gradio does not check which files a request may name; mounting leaves it out
    calls = {number: len(function.inputs) for number, function in page.fns.items() if function.fn is not None}
    app.add_middleware(Guard, calls=calls, host=host, token=token)  # the outermost, as it is the last
    return app
