"""Boxes and captions drawn on a picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#e6194b", "#0a84ff", "#2e9e4f", "#d17a00", "#8e44ad", "#00838f", "#ad1457", "#5d6d1e")  # dark enough for white text
LEAST_SIDE = 640  # pixels: smaller pictures are enlarged, so that captions can be read
FONT_SHARE = 36  # a line of text is this part of the longer side


def draw_regions(image: Image.Image, boxes: Sequence[Sequence[float]], captions: Sequence[str]) -> Image.Image:
    """A copy of a picture with every box (x1, y1, x2, y2 in pixels) and its number, and the captions in a list below it.

    A picture whose longer side is below `LEAST_SIDE` is enlarged by a whole factor.
    """
    scale = max(1, LEAST_SIDE // max(image.size))
    picture = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    line = max(12, max(picture.size) // FONT_SHARE)
    font = ImageFont.load_default(line)
    texts = [f"{number}  {caption}" for number, caption in enumerate(captions, 1)]
    wrapped = [_wrapped(text, font, picture.width - 2 * line) for text in texts]
    rows = sum(len(lines) for lines in wrapped)
    step = line * 3 // 2
    page = Image.new("RGB", (picture.width, picture.height + (step * rows + line if rows else 0)), "white")
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    for number, box in enumerate(boxes, 1):
        colour = COLOURS[(number - 1) % len(COLOURS)]
        x1, y1 = (min(max(value * scale, 0), limit - 1) for value, limit in zip(box[:2], picture.size, strict=True))
        x2, y2 = (min(max(value * scale - 1, 0), limit - 1) for value, limit in zip(box[2:], picture.size, strict=True))
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=max(2, line // 6))
        label = draw.textbbox((x1, y1), str(number), font=font, anchor="lt")
        draw.rectangle((x1, y1, label[2] + line // 2, label[3] + line // 2), fill=colour)
        draw.text((x1 + line // 4, y1 + line // 4), str(number), font=font, fill="white", anchor="lt")
    top = picture.height + line // 2
    for number, lines in enumerate(wrapped):
        for text in lines:
            draw.text((line, top), text, font=font, fill=COLOURS[number % len(COLOURS)], anchor="lt")
            top += step
    return page


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """A text in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > width:
            lines.append(f"    {word}")
        else:
            lines[-1] = longer
    return lines
