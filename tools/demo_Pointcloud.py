"""The caption of an object as a point cloud, .npy, .npz, .ply or .pcd.

    python tools/demo_pointcloud.py chair.ply
    python tools/demo_pointcloud.py chair.npz --num-beams 1 --checkpoint output/mine/checkpoint_best.pth

demo_pointcloud.py and demo_Pointcloud.py, the published name, hold the same text: where a file system takes the two names for one
file, either serves.
"""

import sys

from lavis.serving.cli import pointcloud_demo, run

if __name__ == "__main__":
    sys.exit(run(pointcloud_demo))
