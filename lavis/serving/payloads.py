"""What is sent to the browser: pictures as data URLs, points as base64, a few lines of HTML."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lavis.datasets.cloud_files import read_cloud
from lavis.serving.images import open_image
from lavis.evaluation.cloud_pictures import render_cloud
from lavis.serving.captioner import Captioner
from lavis.serving.examples import Example

SIDE = 1600  # pixels of a picture as it is shown, at most
THUMBNAIL = 152  # pixels a side
SHOWN = 12_000  # points of a cloud that are sent to be seen
SHARE = 0.4  # of the extent: the box that a cloud without one starts with


def header(captioner: Captioner) -> str:
    """What this page is and which checkpoint it serves."""
    parts = Path(captioner.checkpoint).parts
    return f"""<header class="rb-head"><h1>Captions of regions, images and point clouds</h1>
<p>{html.escape(captioner.description)}</p>
<p class="rb-served"><b>Served checkpoint</b> <code>{html.escape("/".join(parts[-3:]))}</code></p></header>"""


def footer() -> str:
    """Where the same functions are for programs."""
    return '<p class="rb-note">For programs: <code>POST /api/caption_regions</code> and others, see <a href="/openapi.json">/openapi.json</a>.</p>'


def question_note() -> str:
    """What to expect of answers."""
    return """<p class="rb-note">A question is about the chosen box, or else about the whole image. The quickstart model was not
trained on questions: its answers show that the path works, no more.</p>"""


def data_url(picture: Image.Image, kind: str = "JPEG") -> str:
    """A picture inside the page."""
    stream = io.BytesIO()
    picture.save(stream, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def picture(image: Image.Image) -> dict[str, Any]:
    """Width and height in pixels, and `url` of a copy to be seen: lossless where small, reduced where large."""
    width, height = image.size
    shown = image
    if max(width, height) > SIDE:
        shown = image.copy()
        shown.thumbnail((SIDE, SIDE))
    return {"width": width, "height": height, "url": data_url(shown, "PNG" if width * height <= 256 * 256 else "JPEG")}


def thumbnail(example: Example) -> dict[str, str]:
    """Name, title and a small picture of an example."""
    if example.kind == "image":
        small = open_image(example.path)
        small.thumbnail((THUMBNAIL, THUMBNAIL))
    else:
        points = read_cloud(example.path)
        small = render_cloud(points[:, :3], size=THUMBNAIL, up=example.up)
    return {"name": example.name, "title": example.title, "url": data_url(small.convert("RGB"))}


def cloud(points: NDArray[np.float32], example: Example | None) -> dict[str, Any]:
    """A cloud to be seen: `points` float32 [M, 3] and `colours` uint8 [M, 3] (or None) in base64, evenly thinned to SHOWN."""
    seen = points[np.linspace(0, len(points) - 1, min(len(points), SHOWN)).astype(int)]
    colours = None
    if points.shape[1] >= 6 and np.ptp(points[:, 3:6]) > 0:  # one colour for all tells nothing
        channels = seen[:, 3:6] * (1.0 if points[:, 3:6].max() > 1 else 255.0)
        colours = base64.b64encode(channels.clip(0, 255).astype(np.uint8).tobytes()).decode()
    return {
        "count": len(points),
        "shown": len(seen),
        "points": base64.b64encode(np.ascontiguousarray(seen[:, :3], dtype="<f4").tobytes()).decode(),
        "colours": colours,
        "up": example.up if example else "z",
        "box": first_box(points, example),
        "boxes": [list(box) for box in example.boxes] if example else [],
    }


def first_box(points: NDArray[np.float32], example: Example | None) -> list[float]:
    """The first box of an example, else one in the middle of the cloud: cx, cy, cz, dx, dy, dz."""
    if example and len(example.boxes):
        return [float(value) for value in example.boxes[0]]
    low, high = points[:, :3].min(axis=0).astype(float), points[:, :3].max(axis=0).astype(float)
    size = np.maximum((high - low) * SHARE, float((high - low).max()) * 0.01)
    return [*((low + high) / 2).tolist(), *size.tolist()]
