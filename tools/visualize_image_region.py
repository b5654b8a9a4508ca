"""A picture and boxes in it as a PNG, without a display.

    python tools/visualize_image_region.py photo.jpg --boxes 10 20 200 180 --labels "a dog"
    python tools/visualize_image_region.py photo.jpg --boxes 10 20 200 180 40 40 90 90 --output marked.png

--boxes are left, top, right and bottom in pixels, one box after the other; --xywh: left, top, width and height, as in COCO's
files. A small picture is enlarged.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

from lavis.common.paths import resolve
from lavis.datasets.geometry import as_boxes, xywh_to_xyxy
from lavis.report.file_pictures import boxes_picture, save_png


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", metavar="IMAGE", help="a picture of any kind that Pillow reads")
    parser.add_argument("--boxes", type=float, nargs="+", required=True, metavar="N", help="x1 y1 x2 y2 of each box, in pixels")
    parser.add_argument("--xywh", action="store_true", help="the boxes are x y width height")
    parser.add_argument("--labels", nargs="+", default=[], metavar="TEXT", help="a text per box")
    parser.add_argument("-o", "--output", metavar="OUT.png", help="the picture (default: its name and _boxes, where you are)")
    given = parser.parse_args(arguments)
    try:
        if len(given.boxes) % 4:
            raise ValueError(f"--boxes has {len(given.boxes)} numbers; accepted: 4 per box")
        numbers = [given.boxes[start : start + 4] for start in range(0, len(given.boxes), 4)]
        boxes = (xywh_to_xyxy(numbers) if given.xywh else as_boxes(numbers)).tolist()
        with Image.open(resolve(given.image)) as picture:
            marked = boxes_picture(picture, boxes, given.labels)
        print(save_png(marked, given.output or f"{Path(given.image).stem}_boxes.png"))
    except (ValueError, OSError) as error:  # Pillow's are both
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
