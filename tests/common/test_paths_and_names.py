"""Paths users write, and published task names."""

from __future__ import annotations

from pathlib import Path

import pytest

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
