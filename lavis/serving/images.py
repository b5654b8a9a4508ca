"""Pictures from files that people have: upright, in RGB, within limits."""

from __future__ import annotations

import io
import os

from PIL import Image, ImageOps, UnidentifiedImageError

from lavis.common.errors import ConfigError
from lavis.common.files import Source, read_bounded

MAX_PIXELS = 64_000_000
MAX_BYTES = 128 * 2**20
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class ImageFileError(ConfigError):
    """A file that holds no usable picture: the message names the file, what is wrong with it and what is accepted."""


def open_image(source: Source, name: str | None = None, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture of a path, bytes or a binary stream, read whole: RGB, turned upright as its EXIF orientation says.

    `name` stands in messages. ImageFileError (a ValueError) for a file that is missing, empty, cut short, too large or of another
    format; the number of pixels is looked at before they are unpacked.
    """
    if name is None:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else str(getattr(source, "name", "picture"))
    content = read_bounded(source, name, most=MAX_BYTES, error=ImageFileError)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise ImageFileError(f"{name}: {image.width} x {image.height} pixels; accepted: at most {max_pixels} in all")
        return ImageOps.exif_transpose(image).convert("RGB")
    except ImageFileError:
        raise
    except Image.DecompressionBombError as error:  # Pillow looks at the size before we can
        raise ImageFileError(f"{name}: the image has too many pixels; accepted: at most {max_pixels} in all") from error
    except UnidentifiedImageError as error:
        raise ImageFileError(f"{name}: it is no picture that can be read; accepted: {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's readers raise a dozen kinds for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageFileError(f"{name}: the picture is damaged or cut short ({reason})") from error
