"""The page and the HTTP API on one port of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lavis.common.errors import ConfigError
from lavis.serving.captioner import Captioner

ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. ConfigError where the port is taken."""
    try:
        return socket.create_server((host, port), backlog=128)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port} ({error}); choose another --port, 0 for any free one") from error


@contextmanager
def own_folder() -> Iterator[str]:
    """A folder for what people upload, removed at the end, also on SIGTERM."""
    folder = tempfile.mkdtemp(prefix="regionblip-page-")
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield folder
    finally:
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder, ignore_errors=True)


def _end(*_: Any) -> None:
    raise SystemExit(0)


def serve(captioner: Captioner, examples: Any, *, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until the process is told to end. `ready` is called when the page answers."""
    with own_folder() as folder:
        os.environ.update(ENVIRONMENT, GRADIO_TEMP_DIR=folder)  # read when gradio is imported
        import uvicorn

        from lavis.serving.application import build_application

        app = build_application(captioner, examples, address=listener.getsockname()[:2])
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
        ready()
        server.run(sockets=[listener])
