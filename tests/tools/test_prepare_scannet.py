"""The ScanNet converter, as a user calls it: many scenes, bad ones among them, stopped and run again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from lavis.datasets.datasets.scanrefer import ScanReferEvalDataset
from tests.datasets.convert.raw_scannet import expected, write_labels, write_scene
from tests.datasets.files import cloud_options, write_json
from tests.tools.tool import run


def convert(folder: Path, *more: str) -> int:
    labels = write_labels(folder / "labels.tsv")
    return run("prepare_scannet", "-i", folder / "scans", "-l", labels, "-o", folder / "out", *more)


def test_scenes_of_which_some_are_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"scene{number:04d}_00" for number in range(16)]
    folders = [write_scene(tmp_path / "scans", name, seed=number, points=40) for number, name in enumerate(names)]
    (folders[3] / f"{names[3]}.txt").write_text("colorHeight = 968\n")
    (folders[9] / f"{names[9]}_vh_clean_2.ply").write_bytes(b"ply\n")
    assert convert(tmp_path, "--workers", "2") == 1
    out = capsys.readouterr().out
    # how many processes came to work depends on how busy the machine is; test_batch.py shows that two of them do
    assert re.search(r"^14 scenes converted( by 2 processes)?, 0 were there already, 2 failed$", out, re.MULTILINE)
    assert f"failed: 1 no axis alignment: {names[3]} " in out and f"failed: 1 broken mesh: {names[9]} " in out
    assert (tmp_path / "out" / "prepare_scannet_failed.txt").read_text().count("\n") == 2
    for number in (0, 15):
        for name, wanted in expected(folders[number]).items():
            found = np.load(tmp_path / "out" / f"{names[number]}_{name}.npy")
            np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=0)

    write_scene(tmp_path / "again", names[3], seed=3, points=40)
    (folders[3] / f"{names[3]}.txt").write_text((tmp_path / "again" / names[3] / f"{names[3]}.txt").read_text())
    (tmp_path / "out" / f"{names[5]}_bbox.npy").unlink()
    assert convert(tmp_path, "--workers", "1") == 1
    assert "2 scenes converted, 13 were there already, 1 failed" in capsys.readouterr().out
    assert convert(tmp_path, "--again", "--workers", "1") == 1
    assert "15 scenes converted, 0 were there already, 1 failed" in capsys.readouterr().out


def test_the_reader_takes_what_is_written(tmp_path: Path) -> None:
    folder = write_scene(tmp_path / "scans", "scene0000_00")
    assert convert(tmp_path, "--workers", "1") == 0
    rows = [{"scene_id": "scene0000_00", "object_id": number, "description": "It."} for number in ("0", "4")]
    ann = write_json(tmp_path / "ScanRefer_filtered_val.json", rows)
    dataset = ScanReferEvalDataset(
        **cloud_options(tmp_path / "out", ann, split="val", modality="pointcloud_region", use_color=True, num_points=60)
    )
    wanted = expected(folder)
    for sample, box in zip((dataset[0], dataset[1]), wanted["aligned_bbox"][[0, 2]], strict=True):
        assert sample["readable"]
        np.testing.assert_allclose(sample["box_corners"].mean(dim=0), box[:3], atol=1e-5)
        points = sample["pointcloud"][:, :3].numpy()
        np.testing.assert_allclose(np.sort(points, axis=0), np.sort(wanted["aligned_vert"][:, :3], axis=0), atol=1e-5)


def test_what_stops_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scans").mkdir()
    assert convert(tmp_path) == 1 and "no scenes there" in capsys.readouterr().err
    write_scene(tmp_path / "scans", "scene0000_00")
    (tmp_path / "scenes.txt").write_text("scene0000_00\nscene0404_00\n")
    assert convert(tmp_path, "--scenes", str(tmp_path / "scenes.txt"), "--workers", "1") == 1
    assert "1 missing file: scene0404_00" in capsys.readouterr().out, "a scene of the list that is not there"
    assert convert(tmp_path, "--max-points", "10") == 1
    assert 'was begun with {"max_points": null}, not {"max_points": 10}' in capsys.readouterr().err
    assert convert(tmp_path, "--max-points", "0") == 1 and "accepted: an integer of 1 or more" in capsys.readouterr().err
    assert run("prepare_scannet", "-i", tmp_path / "scans", "-l", tmp_path / "none.tsv", "-o", tmp_path / "out") == 1
    assert "none.tsv" in capsys.readouterr().err
