"""RegionBLIP in a LAVIS-style library: models, datasets, tasks and runners for language, images, regions and point
clouds.

Importing it is light: nothing below is loaded until it is asked for.
"""

from __future__ import annotations

import os
import sys
from importlib import util

__version__ = "0.1.0"

# OpenMP reads this once, when torch is loaded, so every command imports lavis first. Threads that wait for work then sleep: by
# default they spin, and two processes on one machine keep each other from the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

NEEDED = ("torch", "transformers", "omegaconf")  # an environment that lacks one of them is another than ours


def find_missing() -> str | None:
    """What to do where this Python lacks what lavis needs, most often because no environment is activated; else None."""
    missing = [name for name in NEEDED if util.find_spec(name) is None]
    if not missing:
        return None
    return (
        f"{sys.executable} has no {', '.join(missing)}, which lavis needs. In a checkout `make install` puts all into .venv: run "
        "`source .venv/bin/activate`, or .venv/bin/python in place of python. Elsewhere: `pip install .` in the checkout"
    )


if _missing := find_missing():
    raise ModuleNotFoundError(_missing)
