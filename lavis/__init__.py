"""RegionBLIP in a LAVIS-style library: models, datasets, tasks and runners for language, images, regions and point
clouds.

Importing it is light: nothing below is loaded until it is asked for.
"""

from __future__ import annotations

import os

__version__ = "0.1.0"

# OpenMP reads this once, when torch is loaded, so every command imports lavis first. Threads that wait for work then sleep: by
# default they spin, and two processes on one machine keep each other from the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
