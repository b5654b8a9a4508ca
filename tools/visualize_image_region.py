"""A picture and boxes in it as a PNG, without a display.

    python tools/visualize_image_region.py photo.jpg --boxes 10,20,200,180 --labels "a dog"
    python tools/visualize_image_region.py photo.jpg --boxes 10,20,200,180 40,40,90,90 --output marked.png

A box is left,top,right,bottom in pixels; with --xywh left,top,width,height, as in COCO's files. A small picture is enlarged.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

from lavis.common.paths import resolve
from lavis.datasets.geometry import as_boxes, xywh_to_xyxy
from lavis.report.file_pictures import boxes_picture, save_png
from lavis.serving.box_arguments import BOX, read_boxes, with_minus


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", metavar="IMAGE", help="a picture of any kind that Pillow reads")
    parser.add_argument(
        "--boxes", "--box", nargs="+", action="extend", required=True, metavar=BOX, help="any number of boxes, in pixels"
    )
    parser.add_argument("--xywh", action="store_true", help="the boxes are x,y,width,height")
    parser.add_argument("--labels", nargs="+", default=[], metavar="TEXT", help="a text per box")
    parser.add_argument("-o", "--output", metavar="OUT.png", help="the picture (default: its name and _boxes, where you are)")
    given = parser.parse_args(with_minus(arguments))
    try:
        numbers = read_boxes(given.boxes, BOX)
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
