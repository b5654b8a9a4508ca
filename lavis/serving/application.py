"""The HTTP API with the page mounted on it: one application, one model, one queue of turns."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr
from fastapi import FastAPI

from lavis.serving.api import build_api
from lavis.serving.captioner import Captioner
from lavis.serving.desk import Desk
from lavis.serving.examples import Example
from lavis.serving.page import STATIC, build_page, theme
from lavis.serving.uploads import MEGABYTES


def build_application(captioner: Captioner, examples: Sequence[Example], *, address: tuple[str, int]) -> FastAPI:
    """An ASGI application; `address` is the host and port that it will be served on."""
    desk = Desk(captioner)
    host, port = address
    return gr.mount_gradio_app(
        build_api(desk), build_page(desk, examples), path="/", server_name=host, server_port=port, footer_links=[],
        max_file_size=int(MEGABYTES * 1e6), theme=theme(), css_paths=[STATIC / "page.css"], show_error=True, ssr_mode=False,
        pwa=False, mcp_server=False, enable_monitoring=False,
    )  # fmt: skip
