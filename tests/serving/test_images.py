"""Pictures from files: upright, RGB, and within limits."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis.serving import images
from lavis.serving.images import ImageFileError, open_image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_any_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded(Image.new(mode, (5, 4)), kind))
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        image = open_image(source)
        assert (image.mode, image.size) == ("RGB", (5, 4))


def test_photos_are_turned_upright() -> None:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[:, :3] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    image = open_image(encoded(Image.fromarray(pixels), exif=exif))
    assert image.size == (4, 6) and image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((0, 5)) == (0, 0, 0)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    good = encoded(Image.effect_noise((64, 64), 50))
    with pytest.raises(ImageFileError, match=r"a\.png: 64 x 64 pixels; accepted: at most 4095 in all"):
        open_image(good, "a.png", max_pixels=4095)
    with pytest.raises(ImageFileError, match=r"picture: the picture is damaged or cut short"):
        open_image(good[: len(good) // 2])
    with pytest.raises(ImageFileError, match="it is no picture that can be read; accepted: JPEG, PNG"):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a.eps")
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    with pytest.raises(ImageFileError, match="larger than 1 MB"):
        open_image(bytes(2**20 + 1))
