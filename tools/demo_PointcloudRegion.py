"""Captions of regions of a scene as a point cloud, .npy, .npz, .ply or .pcd in metres with z up; a line each, many in one call.

    python tools/demo_PointcloudRegion.py room.ply --box 1.2,0.4,0.5,0.6,0.6,1.0 -1.2,0.4,0.5,0.6,0.6,1.0
    python tools/demo_PointcloudRegion.py room.npy --json boxes.json --json-out captions.json
    python tools/demo_PointcloudRegion.py room.npy --point 1.2,0.4,0.5 --size 0.8 --mask chair_points.npy

A box is cx,cy,cz,dx,dy,dz, perhaps with a heading in radians about z. A JSON file holds a list of boxes, or of objects
{"box": [...]}, {"corners": [8 of x, y, z]}, {"point": [x, y, z], "size": edge}, {"scribble": [...]} or {"mask": "file.npy"}.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where lavis is not installed, it says what to do
from lavis.serving.cli import pointcloud_region_demo, run

if __name__ == "__main__":
    sys.exit(run(pointcloud_region_demo))
