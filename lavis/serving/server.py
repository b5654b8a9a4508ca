"""The page and the HTTP API on one port of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lavis.common.errors import ConfigError, listed
from lavis.datasets.cloud_files import READERS
from lavis.serving.captioner import Captioner
from lavis.serving.examples import Example, examples
from lavis.serving.images import SUFFIXES


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. ConfigError where the port is taken."""
    try:
        return socket.create_server((host, port), backlog=128)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port} ({error}); choose another --port, 0 for any free one") from error


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for examples and what people upload, removed at the end, also on SIGTERM."""
    folder = Path(tempfile.mkdtemp(prefix="regionblip-page-"))
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield folder
    finally:
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder, ignore_errors=True)


def _end(*_: Any) -> None:
    raise SystemExit(0)


def serve(
    captioner: Captioner, folder: Path | None, *, listener: socket.socket, ready: Callable[[], None], host: str = "127.0.0.1",
    token: str | None = None,
) -> None:  # fmt: skip
    """Serve until the process is told to end, with the examples of `folder`, or generated ones. `ready` is called when the page
    answers; `host` and `token` as in `build_application`."""
    with own_folder() as own:
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(own / "uploads"))  # read when gradio is imported
        import uvicorn

        from lavis.serving.application import build_application

        shown = files_of(folder) if folder else examples(own / "examples")
        app = build_application(captioner, shown, address=listener.getsockname()[:2], host=host, token=token)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
        ready()
        server.run(sockets=[listener])


def files_of(folder: Path) -> list[Example]:
    """The pictures and clouds of a folder, by their suffixes; clouds count as rooms. ConfigError where there are none."""
    kinds = {**dict.fromkeys(SUFFIXES, "image"), **dict.fromkeys(READERS, "room")}
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in kinds) if folder.is_dir() else []
    if not files:
        raise ConfigError(f"{folder} holds no examples; accepted: a folder with files of {listed(kinds)}")
    return [Example(path, kinds[path.suffix.lower()], (path.stem,)) for path in files]
