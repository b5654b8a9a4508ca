"""Paths users write, and published task names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lavis
from lavis.common import paths
from lavis.common.modalities import MODALITIES, TASK_NAMES, modality_of, task_name_of


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "c"))
    assert paths.get_cache_root() == tmp_path / "c"
    monkeypatch.delenv("LAVIS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert paths.get_cache_root() == tmp_path / "lavis"


def test_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "/h")
    assert paths.resolve("$HERE/a") == Path("/h/a")
    assert paths.resolve("~/a") == Path.home() / "a"
    assert paths.resolve("a/b") == Path("a/b")
    assert (paths.library_root / "configs" / "default.yaml").is_file()


def test_modalities() -> None:
    for name, modality in TASK_NAMES.items():
        assert modality_of(name) == modality == modality_of(modality)
        assert task_name_of(modality) == name
    assert modality_of("audio") == task_name_of("audio") == "audio"
    assert MODALITIES == ("image", "image_region", "pointcloud", "pointcloud_region")


@pytest.mark.parametrize("command", [["train.py"], ["evaluate.py"], ["tools/demo_Image.py"], ["tools/demo_PointcloudRegion.py"]])
def test_without_the_environment_the_cure_is_named(command: list[str], tmp_path: Path) -> None:
    """A Python that has nothing installed, as the one outside .venv."""
    root = Path(lavis.__file__).resolve().parent.parent
    bare = [sys.executable, "-I", "-S", str(root / command[0])]  # no site-packages, no PYTHONPATH
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(root)!r}); runpy.run_path({str(root / command[0])!r}, run_name='__main__')"
    )
    given = bare if command[0].startswith("tools") else [sys.executable, "-I", "-S", "-c", code]
    result = subprocess.run(given, capture_output=True, text=True, cwd=tmp_path, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and last.startswith("ModuleNotFoundError: ") and "has no torch, transformers, omegaconf" in last
    assert "source .venv/bin/activate" in last and ".venv/bin/python" in last and "make install" in last
