"""A point cloud as a PNG, without a display.

    python tools/visualize_cloud.py chair.ply
    python tools/visualize_cloud.py object_8192.npz --up y --output object.png

FILE is a .npy, .npz, .ply or .pcd file of x, y, z and perhaps red, green, blue; without colours, colour tells height.
tools/visualize_Pointcloud.py is the published name of this tool.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lavis.common.paths import resolve
from lavis.datasets.cloud_files import read_cloud
from lavis.report.file_pictures import cloud_picture, save_png


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", help="a .npy, .npz, .ply or .pcd file")
    parser.add_argument("-o", "--output", metavar="OUT.png", help="the picture (default: its name, in the working directory)")
    parser.add_argument("--up", choices=("z", "y"), default="z", help="the axis that points up (Objaverse: y; ScanNet: z)")
    parser.add_argument("--azimuth", type=float, default=-60.0, help="degrees that the camera stands around the cloud (-60)")
    parser.add_argument("--elevation", type=float, default=30.0, help="degrees above the ground, -90 to 90 (30)")
    parser.add_argument("--size", type=int, default=720, help="pixels a side (720)")
    given = parser.parse_args(arguments)
    view = {"up": given.up, "azimuth": given.azimuth, "elevation": given.elevation, "size": given.size}
    try:
        image = cloud_picture(read_cloud(resolve(given.file)), **view)
        print(save_png(image, given.output or f"{Path(given.file).stem}.png"))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
