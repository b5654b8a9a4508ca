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
from lavis.report.cloud_pictures import render_cloud
from lavis.serving.captioner import Captioner
from lavis.serving.examples import Example
from lavis.serving.images import open_image

QUICKSTART = (
    "This is the quickstart's small model. It has seen nothing but generated scenes: coloured digits and shapes in images, "
    "furniture in point clouds. Of anything else, photographs too, it says something about digits and shapes."
)
SIDE = 1600  # pixels of a picture as it is shown, at most
THUMBNAIL = 152  # pixels a side
SHOWN = 12_000  # points of a cloud that are sent to be seen
SHARE = 0.4  # of the extent: the box that a cloud without one starts with


def header(captioner: Captioner) -> str:
    """What this page is, which checkpoint it serves and what that knows."""
    size = captioner.model.show_n_params(return_str=True)
    facts = f"{captioner.model.cfg.arch}, {size} parameters, knows {', '.join(map(kind_of, captioner.modalities))}"
    limits = QUICKSTART if of_quickstart(captioner) else ""
    return f"""<header class="rb-head"><h1>Captions of regions, images and point clouds</h1><p>{limits}</p>
<p class="rb-served"><b>Served checkpoint</b> <code>
{html.escape("/".join(captioner.checkpoint.parts[-3:]))}</code> {html.escape(facts)}</p></header>"""


def kind_of(modality: str) -> str:
    """A modality in words."""
    return {"image": "images", "image_region": "regions", "pointcloud": "clouds", "pointcloud_region": "regions of clouds"}.get(
        modality, modality
    )


def of_quickstart(captioner: Captioner) -> bool:
    """Whether the model stands on the quickstart's small frozen base."""
    return "quickstart" in Path(str(captioner.model.cfg.opt_model)).parts


def footer() -> str:
    """Where the same functions are for programs."""
    return """<p class="rb-note">For programs: the same functions over HTTP, for example <code>POST /api/caption_regions</code>;
<a href="/api">how to call them</a>, <a href="/openapi.json">openapi.json</a>.</p>"""


def question_note(captioner: Captioner) -> str:
    """What a question is about, and what to expect of answers."""
    untrained = " The quickstart model was not trained on questions: expect no sense in its answers."
    more = untrained if of_quickstart(captioner) else ""
    return f'<p class="rb-note">A question is about the chosen box, or else about the whole image.{more}</p>'


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
        small = render_cloud(read_cloud(example.path)[:, :3], size=THUMBNAIL, up=up_of(example))
    return {"name": example.path.name, "title": ", ".join(example.names), "url": data_url(small)}


def up_of(example: Example | None) -> str:
    """The axis that points up: y of objects, as in Objaverse; z of rooms, as in ScanNet, and of what is not known."""
    return "y" if example and example.kind == "object" else "z"


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
        "up": up_of(example),
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
