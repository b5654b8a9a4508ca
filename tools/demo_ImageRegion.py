"""Captions of regions of a picture, a line each; many in one call.

    python tools/demo_ImageRegion.py photo.jpg --boxes 10,20,200,180 220,40,300,210 --draw captioned.png
    python tools/demo_ImageRegion.py photo.jpg --json regions.json --json-out captions.json
    python tools/demo_ImageRegion.py photo.jpg --point 120,80 --mask cat.png --scribble "10,10 40,30 60,35"

Boxes are x1,y1,x2,y2 in pixels. A JSON file holds a list of boxes, or of objects {"box": [...]}, {"point": [x, y]},
{"scribble": [[x, y], ...]}, {"mask": "file.png"} or {"mask": {"size": [h, w], "counts": ...}}.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where lavis is not installed, it says what to do
from lavis.serving.cli import image_region_demo, run

if __name__ == "__main__":
    sys.exit(run(image_region_demo))
