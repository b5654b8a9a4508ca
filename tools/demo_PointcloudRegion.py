"""The published name of demo_pointcloud_region.py."""

import sys

from lavis.serving.cli import pointcloud_region_demo, run

if __name__ == "__main__":
    sys.exit(run(pointcloud_region_demo))
