"""The Objaverse converter, as a user calls it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from lavis.datasets.datasets.objaverse import ObjectCaptionDataset
from tests.datasets.files import cloud_options
from tests.tools.tool import run


def write_objects(folder: Path) -> None:
    for number, name in enumerate(("aa", "bb", "cc", "dd")):
        (folder / f"000-00{number}").mkdir(parents=True)
        trimesh.creation.box((1, 2, 3 + number)).export(folder / f"000-00{number}" / f"{name}.glb")
    (folder / "000-003" / "bad.glb").write_bytes(b"glTF")


def clouds(folder: Path, out: str, *more: str) -> int:
    return run("prepare_objaverse", "clouds", "-i", folder / "glbs", "-o", folder / out, "--points", "64", *more)


def test_clouds_and_captions_feed_the_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_objects(tmp_path / "glbs")
    assert clouds(tmp_path, "clouds", "--workers", "2") == 1
    out = capsys.readouterr().out
    assert "4 objects converted" in out and "1 failed" in out and "failed: 1 broken mesh: bad " in out
    assert clouds(tmp_path, "clouds", "--workers", "1") == 1
    assert "0 objects converted, 4 were there already, 1 failed" in capsys.readouterr().out
    assert clouds(tmp_path, "alone", "--workers", "1") == 1
    for name in ("aa", "dd"):
        found = [np.load(tmp_path / folder / name / f"{name}_8192.npz")["arr_0"] for folder in ("clouds", "alone")]
        np.testing.assert_array_equal(*found, err_msg="equal whatever the processes did")
    assert clouds(tmp_path, "clouds", "--seed", "1") == 1 and "was begun with" in capsys.readouterr().err

    (tmp_path / "Cap3D.csv").write_text('aa,"A box, tall"\nbb,Short\ncc,Other\nzz,Not here\n')
    (tmp_path / "ids.txt").write_text("aa\nbb\nzz\n")
    target = tmp_path / "Cap3D_automated_Objaverse_train.txt"
    given = (
        "captions",
        "-i",
        tmp_path / "Cap3D.csv",
        "-o",
        target,
        "--ids",
        tmp_path / "ids.txt",
        "--clouds",
        tmp_path / "clouds",
    )
    assert run("prepare_objaverse", *given, "--strict") == 1 and not target.exists()
    assert "problem: 1 object without a cloud, kept: zz" in capsys.readouterr().out
    assert run("prepare_objaverse", *given) == 0
    assert target.read_text() == "aa,A box, tall\nbb,Short\nzz,Not here\n"
    dataset = ObjectCaptionDataset(**cloud_options(tmp_path / "clouds", target, num_points=64))
    assert [dataset[i]["text_input"] for i in (0, 1)] == ["a box, tall", "short"]
    assert dataset[0]["pointcloud"].shape == (64, 3) and not dataset[0]["skipped"]

    rest = tmp_path / "rest.txt"
    assert run("prepare_objaverse", "captions", "-i", tmp_path / "Cap3D.csv", "-o", rest, "--without", tmp_path / "ids.txt") == 0
    assert rest.read_text() == "cc,Other\n"


def test_what_stops_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clouds(tmp_path, "out") == 1 and "no folder at" in capsys.readouterr().err
    assert run("prepare_objaverse", "captions", "-i", tmp_path / "no.csv", "-o", tmp_path / "x.txt") == 1
    assert "no.csv: cannot be read" in capsys.readouterr().err
