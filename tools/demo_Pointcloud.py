"""The caption of an object as a point cloud, .npy, .npz, .ply or .pcd.

python tools/demo_Pointcloud.py chair.ply
python tools/demo_Pointcloud.py chair.npz --num-beams 1 --checkpoint output/mine/checkpoint_best.pth
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where lavis is not installed, it says what to do
from lavis.serving.cli import pointcloud_demo, run

if __name__ == "__main__":
    sys.exit(run(pointcloud_demo))
