"""A point cloud and boxes in it as a PNG, without a display.

    python tools/visualize_cloud_region.py room.ply --box 1.2,0.4,0.5,0.6,0.6,1.0 -1.2,0.4,0.5,0.6,0.6,1.0
    python tools/visualize_cloud_region.py room.npy --corners box.json --output room.png
    python tools/visualize_cloud_region.py scannet/scans_npy --object scene0011_00_4

FILE is a .npy, .npz, .ply or .pcd file; with --object it is the folder of prepared scenes (tools/prepare_scannet.py), and the
object is named as in results, <scene>_<object id>. A box is cx,cy,cz,dx,dy,dz, perhaps with a heading in radians about z; its
axis-parallel hull is drawn, as models read it. --corners is a JSON file, or the JSON itself: 8 corners [x, y, z], or a list of
such boxes; with --as-published their extents of y and z have changed places, as models read them.
tools/visualize_PointcloudRegion.py is the published name of this tool.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lavis.common.paths import resolve
from lavis.datasets.cloud_files import read_cloud
from lavis.datasets.cloud_geometry import box_of
from lavis.datasets.datasets.base_dataset import BadSample
from lavis.datasets.datasets.scanrefer import scene_with_box
from lavis.report.file_pictures import cloud_picture, save_png
from lavis.serving.box_arguments import BOX_3D, read_boxes, with_minus
from lavis.serving.boxes import axis_parallel


def boxes_of(given: argparse.Namespace) -> list[Any]:
    """The boxes (cx, cy, cz, dx, dy, dz) that --box and --corners name. ValueError says what is wrong with them."""
    boxes: list[Any] = [axis_parallel(box) for box in read_boxes(given.box, BOX_3D, what="--box")]
    if given.corners:
        path = resolve(given.corners)
        try:
            content = np.asarray(json.loads(path.read_text("utf-8") if path.suffix == ".json" else given.corners), dtype=float)
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            raise ValueError(f"--corners {given.corners[:80]}: {error}; accepted: 8 corners [x, y, z] as JSON") from error
        if content.shape[-2:] != (8, 3):
            raise ValueError(f"--corners {given.corners[:80]}: {content.shape}; accepted: [8, 3], or [boxes, 8, 3]")
        found = [box_of(corners) for corners in content.reshape(-1, 8, 3)]
        boxes += [box[[0, 1, 2, 3, 5, 4]] if given.as_published else box for box in found]
    return boxes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", help="a .npy, .npz, .ply or .pcd file, or a folder of prepared scenes")
    parser.add_argument(
        "--box", "--boxes", nargs="+", action="extend", default=[], metavar=BOX_3D, help="centre and extents; any number of them"
    )
    parser.add_argument("--corners", metavar="JSON", help="a JSON file, or JSON: [8, 3] or [boxes, 8, 3]")
    parser.add_argument("--as-published", action="store_true", help="the corners are those that models read")
    parser.add_argument("--object", metavar="ID", help="<scene>_<object id>, where FILE is a folder of prepared scenes")
    parser.add_argument("-o", "--output", metavar="OUT.png", help="the picture (default: its name, in the working directory)")
    parser.add_argument("--up", choices=("z", "y"), default="z", help="the axis that points up (Objaverse: y; ScanNet: z)")
    parser.add_argument("--azimuth", type=float, default=-60.0, help="degrees that the camera stands around the cloud (-60)")
    parser.add_argument("--elevation", type=float, default=40.0, help="degrees above the ground, -90 to 90 (40)")
    parser.add_argument("--size", type=int, default=720, help="pixels a side (720)")
    given = parser.parse_args(with_minus(arguments))
    view = {"up": given.up, "azimuth": given.azimuth, "elevation": given.elevation, "size": given.size}
    try:
        boxes = boxes_of(given)
        if given.object:
            scene, _, number = given.object.rpartition("_")
            if not scene or not number.isdecimal():
                raise ValueError(f"--object {given.object}; accepted: <scene>_<object id>, such as scene0011_00_4")
            points, corners = scene_with_box(resolve(given.file), scene, int(number))
            boxes.append(box_of(corners))
        else:
            points = read_cloud(resolve(given.file))
        if not boxes:
            raise ValueError("no box is given; accepted: --box, --corners or --object")
        picture = cloud_picture(points, boxes=boxes, **view)
        print(save_png(picture, given.output or f"{given.object or Path(given.file).stem}.png"))
    except (BadSample, ValueError, OSError) as error:
        print(f"error: {getattr(error, 'reason', error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
