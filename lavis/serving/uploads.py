"""What people send, within limits: pictures and clouds by their content, boxes by their numbers.

Every refusal is a ConfigError (a ValueError) whose message can be shown as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from lavis.common.errors import ConfigError
from lavis.datasets.cloud_files import read_cloud
from lavis.serving.images import open_image

MEGABYTES = 20  # of an uploaded file
MAX_PIXELS = 25_000_000  # of an uploaded picture
MAX_POINTS = 1_000_000  # of an uploaded cloud
MAX_BOXES = 32  # of one request
LARGEST = 1e30  # of a number of a box
MAX_WORDS = 64  # of a question

Source = str | os.PathLike[str] | bytes | IO[bytes]


def upload_path(path: str) -> Path:
    """The file of an upload: an absolute path below the folder of uploads, symbolic links resolved. ConfigError for any other,
    which never says whether there is such a file, nor repeats its name."""
    uploads = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    try:
        resolved = Path(path).resolve()
        usable = Path(path).is_absolute() and resolved.is_relative_to(uploads) and resolved.is_file()
    except (OSError, ValueError, RuntimeError):  # too long a name, a null byte, a circle of links
        usable = False
    if not usable:
        raise ConfigError("This file is no longer on the server. Open it again.")
    return resolved


def read_picture(source: Source, name: str) -> Image:
    """An RGB picture, turned as its file says, within the limits."""
    return open_image(source, name, max_pixels=MAX_PIXELS)


def read_points(source: Source, name: str) -> NDArray[np.float32]:
    """A cloud [N, 3 or 6] within the limits."""
    points = read_cloud(source, name, max_points=MAX_POINTS)
    return points


def check_boxes(boxes: Any, *, numbers: int) -> list[list[float]]:
    """Boxes of `numbers` finite numbers each (4: x1, y1, x2, y2; 6: cx, cy, cz, dx, dy, dz), as text in JSON or as lists."""
    accepted = f"accepted: 1 to {MAX_BOXES} lists of {numbers} numbers, for example {[list(range(1, numbers + 1))]}"
    if isinstance(boxes, str | bytes):
        try:
            boxes = json.loads(boxes)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"boxes are no JSON ({str(error)[:80]}); {accepted}") from error
    if not isinstance(boxes, Sequence) or not 1 <= len(boxes) <= MAX_BOXES:
        raise ConfigError(f"boxes {str(boxes)[:80]}; {accepted}")
    return [_box(box, numbers, accepted) for box in boxes]


def _box(box: Any, numbers: int, accepted: str) -> list[float]:
    plain = isinstance(box, Sequence) and not isinstance(box, str) and len(box) == numbers
    if not plain or not all(type(value) in (int, float) and abs(value) < LARGEST for value in box):
        raise ConfigError(f"box {str(box)[:80]}; {accepted}")
    if numbers == 6 and min(box[3:]) <= 0:
        raise ConfigError(f"box {str(box)[:80]} has no volume; accepted: sizes above 0")
    return [float(value) for value in box]


def check_question(question: Any) -> str:
    """A question in words, stripped."""
    words = question.split() if isinstance(question, str) else []
    if not 1 <= len(words) <= MAX_WORDS:
        raise ConfigError(f"the question has {len(words)} words; accepted: 1 to {MAX_WORDS}")
    return " ".join(words)
