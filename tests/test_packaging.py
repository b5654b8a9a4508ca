"""`pip install .` ships everything, and the package works outside the repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = """
import lavis, pathlib
assert pathlib.Path(lavis.__file__).is_relative_to(pathlib.Path.cwd()), lavis.__file__
from lavis.common.config import merge_model_config
from lavis.models import model_zoo
from lavis.datasets import dataset_zoo
from lavis.report.pages import TEMPLATES
assert merge_model_config({"arch": "regionblip_t5"}).vit.depth == 39
assert "coco_caption" in dataset_zoo.get_names() and len(model_zoo) >= 5
assert (TEMPLATES / "report.html").is_file() and (TEMPLATES / "gallery.js").is_file()
print("fine")
"""


@pytest.mark.slow
def test_an_installed_copy_works_anywhere(tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(ROOT)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip().endswith("fine"), done.stderr
