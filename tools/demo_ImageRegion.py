"""The published name of demo_image_region.py."""

import sys

from lavis.serving.cli import image_region_demo, run

if __name__ == "__main__":
    sys.exit(run(image_region_demo))
