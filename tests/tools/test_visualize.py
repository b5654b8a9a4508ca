"""PNGs of clouds and regions, as a user asks for them; and the page of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lavis.datasets.cloud_geometry import box_corners, corners_of
from tests.datasets.files import write_scene
from tests.tools import tool

BOX = [0.0, 0.5, 0.0, 1.0, 0.5, 2.0]
POINTS = np.random.RandomState(0).uniform(-1, 1, (300, 3))


def png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    np.save(tmp_path / "cloud.npy", POINTS)
    return tmp_path / "cloud.npy"


def test_a_cloud(cloud: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(cloud.parent)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert tool.run("visualize_cloud", cloud, "--size", "120") == 0
    assert capsys.readouterr().out == "cloud.png\n"
    assert png(cloud.parent / "cloud.png").shape == (120, 120, 3)
    np.savez(cloud.with_suffix(".npz"), np.c_[POINTS, np.tile([255.0, 0, 0], (300, 1)) * np.linspace(0.5, 1, 300)[:, None]])
    assert tool.run("visualize_cloud", cloud.with_suffix(".npz"), "--size", "120", "-o", "new/red.png", "--up", "y") == 0
    red = png(cloud.parent / "new" / "red.png").astype(int)
    assert (red[..., 0] > red[..., 1:].max(axis=2) + 60).sum() > 500


def test_regions_of_a_cloud(cloud: Path) -> None:
    def drawn(*options: str | Path) -> np.ndarray:
        out = cloud.parent / "out.png"
        assert tool.run("visualize_cloud_region", *options, "--size", "120", "-o", out) == 0
        return png(out)

    plain = ["--box", *map(str, BOX)]
    expected = drawn(cloud, *plain)
    corners = cloud.parent / "corners.json"
    corners.write_text(json.dumps(corners_of(BOX).tolist()))
    assert (drawn(cloud, "--corners", corners) == expected).all()
    corners.write_text(json.dumps([box_corners(BOX).tolist()]))
    assert (drawn(cloud, "--corners", corners, "--as-published") == expected).all()
    assert (drawn(cloud, "--corners", corners) != expected).any()
    for given in (
        ["--box", ",".join(map(str, BOX))],
        ["--box", "0,0.5,0,1,0.5,2,0.0"],
        ["--boxes=0 0.5 0 1 0.5 2"],
    ):
        assert (drawn(cloud, *given) == expected).all()
    behind = drawn(cloud, "--box=-0.5,0.5,0,1,0.5,2", "--box=0,-0.5,0,1,0.5,2")
    assert (drawn(cloud, "--box", "-0.5,0.5,0,1,0.5,2", "0,-0.5,0,1,0.5,2") == behind).all()
    assert (drawn(cloud, "--box", "-0.5", *map(str, BOX[1:]), "--box", "0", "-.5", *map(str, BOX[2:])) == behind).all()
    write_scene(cloud.parent / "scenes", "s1_00", np.c_[POINTS, np.zeros((300, 6))], np.array([[*BOX, 5, 7]]))
    assert (drawn(cloud.parent / "scenes", "--object", "s1_00_7") == expected).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["visualize_cloud", "gone.npy"], "gone.npy: no such file"),
        (["visualize_cloud", "cloud.npy", "-o", "x.jpg"], "x.jpg: the picture is a PNG"),
        (["visualize_cloud", "cloud.npy", "--elevation", "100"], "elevation 100"),
        (["visualize_cloud_region", "cloud.npy"], "no box is given; accepted: --box, --corners or --object"),
        (["visualize_cloud_region", "cloud.npy", "--box", "0", "0", "0", "1", "1", "0"], "has no volume"),
        (["visualize_cloud_region", "cloud.npy", "--corners", "[[1, 2]]"], "accepted: [8, 3]"),
        (["visualize_cloud_region", "cloud.npy", "--corners", "[[1, 2"], "accepted: 8 corners [x, y, z] as JSON"),
        (["visualize_cloud_region", ".", "--object", "scene"], "--object scene; accepted: <scene>_<object id>"),
        (["visualize_cloud_region", ".", "--object", "s_00_1"], "missing boxes of a scene"),
        (
            ["visualize_image_region", "photo.png", "--boxes", "1", "2", "3"],
            "--boxes 1,2,3 has 3 numbers; accepted: x1,y1,x2,y2 for each box",
        ),
        (["visualize_image_region", "photo.png", "--boxes", "5", "5", "5", "9"], "has no area in a picture of 60 x 40"),
        (["visualize_image_region", "photo.png", "--boxes", "0", "0", "9", "9", "--labels", "a", "b"], "2 labels for 1 boxes"),
        (["visualize_image_region", "cloud.npy", "--boxes", "0", "0", "9", "9"], "cannot identify image file"),
        (["run_summary", "."], "holds neither log.txt nor evaluate.txt"),
    ],
)
def test_mistakes_are_told(
    cloud: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(cloud.parent)
    Image.new("RGB", (60, 40)).save("photo.png")
    before = sorted(os.listdir())
    assert tool.run(*arguments) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and message in said.err and not said.out
    assert sorted(os.listdir()) == before


def test_boxes_on_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (600, 400), "white").save(tmp_path / "photo.png")
    out = tmp_path / "out.png"
    arguments = [tmp_path / "photo.png", "--labels", "one", "the other", "-o", out]
    assert tool.run("visualize_image_region", *arguments, "--boxes", "100", "200", "300", "380", "0", "0", "50", "50") == 0
    marked = png(out)
    assert marked.shape == (400, 600, 3) and capsys.readouterr().out == f"{out}\n"
    changed = (marked != 255).any(axis=2)
    assert changed[300, 98:103].any() and changed[300, 298:303].any() and changed[378:383, 200].any()
    assert not changed[220:370, 110:290].any() and not changed[:, 310:].any()  # labels stand above their box
    assert (
        tool.run("visualize_image_region", *arguments, "--xywh", "--boxes", "100", "200", "200", "180", "0", "0", "50", "50") == 0
    )
    assert (png(out) == marked).all()
    assert tool.run("visualize_image_region", *arguments, "--boxes", "100,200,300,380", "-9,-9,50,50") == 0
    assert (png(out)[200:] == marked[200:]).all()
    Image.new("RGB", (60, 40), "white").save(tmp_path / "small.png")
    assert tool.run("visualize_image_region", tmp_path / "small.png", "--boxes", "0", "0", "9", "9", "-o", out) == 0
    assert png(out).shape == (320, 480, 3)


@pytest.mark.parametrize("name", ["visualize_Pointcloud", "visualize_PointcloudRegion"])
def test_published_names(cloud: Path, name: str) -> None:
    box = ["--box", *map(str, BOX)] if name.endswith("Region") else []
    out = cloud.parent / f"{name}.png"
    command = [sys.executable, tool.ROOT / "tools" / f"{name}.py", cloud, *box, "--size", "64", "-o", out]
    environment = {**os.environ, "PYTHONPATH": str(tool.ROOT)}
    subprocess.run([str(part) for part in command], check=True, env=environment, cwd=cloud.parent)
    assert png(out).shape == (64, 64, 3)


def test_the_summary_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evaluate.txt").write_text(json.dumps({"test": {"CIDEr": 0.5}, "epoch": 1, "dataset": "coco"}) + "\n")
    assert tool.run("run_summary", tmp_path) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'summary.html'}\n"
    assert tool.run("run_summary", tmp_path, "-o", tmp_path / "x" / "page.html") == 0
    assert "0.500" in (tmp_path / "x" / "page.html").read_text()
