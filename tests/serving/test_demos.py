"""The demo tools on generated images and clouds, and on files that are none."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis.serving import cli
from lavis.serving.captioner import Captioner
from lavis.serving.drawing import draw_regions
from lavis.serving.examples import Example
from lavis.serving.loading import REPOSITORY, SHIPPED

TOOLS = REPOSITORY / "tools"


class Tools:
    """Runs a tool's file as a script, with one model for all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], captioner: Captioner) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.setattr(cli, "load_captioner", lambda *args, **kwargs: captioner)

    def __call__(self, tool: str, *arguments: Any) -> tuple[int, list[str], str]:
        """Exit code, lines of stdout, stderr."""
        self.monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TOOLS / tool), run_name="__main__")
        out, err = self.capsys.readouterr()
        return ended.value.code or 0, out.splitlines(), err  # type: ignore[return-value]


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], captioner: Captioner) -> Tools:
    return Tools(monkeypatch, capsys, captioner)


def boxes_as_text(boxes: list[list[float]]) -> list[str]:
    return [",".join(map(str, box)) for box in boxes]


def test_a_picture(tools: Tools, captioner: Captioner, made: list[Example], tmp_path: Path) -> None:
    path, image = made[0].path, Image.open(made[0].path)
    code, lines, err = tools("demo_Image.py", path)
    assert (code, lines) == (0, [captioner.caption_image(image)]) and "regionblip.safetensors" in err
    short = {"num_beams": 2, "max_length": 6}
    code, lines, _ = tools("demo_Image.py", path, "--num-beams", 2, "--max-length", 6, "--json-out", tmp_path / "out.json")
    assert lines == [captioner.caption_image(image, **short)]
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["caption"] == lines[0] and record["image"] == str(path) and record["checkpoint"].endswith(SHIPPED)
    code, lines, _ = tools("demo_Image.py", path, "--question", "what is it?")
    assert (code, lines) == (0, [captioner.ask(image, "what is it?")])


def test_regions_equal_describe(tools: Tools, captioner: Captioner, made: list[Example], tmp_path: Path) -> None:
    path, boxes, image = made[0].path, made[0].boxes, Image.open(made[0].path)
    expected = captioner.model.describe(image, boxes)
    assert tools("demo_ImageRegion.py", path, "--boxes", *boxes_as_text(boxes))[:2] == (0, expected)
    for content in (boxes, [{"box": box} for box in boxes], {"boxes": boxes}, {"regions": [{"box": box} for box in boxes]}):
        (tmp_path / "regions.json").write_text(json.dumps(content))
        assert tools("demo_ImageRegion.py", path, "--json", tmp_path / "regions.json")[1] == expected
    first, *rest = boxes_as_text(boxes)
    code, lines, _ = tools(
        "demo_ImageRegion.py", path, "--boxes", first, "--boxes", *rest, "--json-out", "-", "--draw", tmp_path / "d" / "out.png"
    )
    record = json.loads("\n".join(lines))
    assert record["regions"] == [{"box": box, "caption": text} for box, text in zip(boxes, expected, strict=True)]
    with Image.open(tmp_path / "d" / "out.png") as drawn:
        assert drawn.width == 84 * 7 and drawn.height > 84 * 7


def test_every_way_to_point_at_a_region(tools: Tools, captioner: Captioner, made: list[Example], tmp_path: Path) -> None:
    path, image = made[0].path, Image.open(made[0].path)
    x1, y1, x2, y2 = (int(value) for value in made[0].boxes[0])
    mask = np.zeros((84, 84), dtype=np.uint8)
    mask[y1:y2, x1:x2] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "regions.json").write_text(json.dumps([{"mask": "mask.png"}]))  # beside the list, wherever the tool is run
    ways = ["--json", tmp_path / "regions.json", "--point", f"{(x1 + x2) / 2},{(y1 + y2) / 2}", "--size", 20]
    ways += ["--mask", tmp_path / "mask.png", "--scribble", f"{x1},{y1} {x2},{y2}"]
    code, lines, _ = tools("demo_ImageRegion.py", path, *ways, "--json-out", "-")
    regions = json.loads("\n".join(lines))["regions"]
    assert code == 0 and regions[0]["box"] == regions[2]["box"] == [x1, y1, x2, y2] and len(regions) == 4
    assert [region["caption"] for region in regions] == captioner.caption_regions(image, [region["box"] for region in regions])
    code, lines, _ = tools("demo_ImageRegion.py", path, "--mask", tmp_path / "mask.png", "--question", "what is it?")
    assert lines == [captioner.ask(image, "what is it?", box=[x1, y1, x2, y2])]


def test_an_object(tools: Tools, captioner: Captioner, made: list[Example], tmp_path: Path) -> None:
    points = np.load(made[2].path)
    np.savez(tmp_path / "object.npz", points)
    expected = captioner.caption_cloud(points)
    assert "tall chair" in expected
    for path in (made[2].path, tmp_path / "object.npz"):
        assert tools("demo_Pointcloud.py", path)[:2] == (0, [expected])
    code, lines, _ = tools("demo_Pointcloud.py", made[2].path, "--json-out", "-")
    assert json.loads("\n".join(lines))["caption"] == expected


def test_a_room(tools: Tools, captioner: Captioner, made: list[Example], tmp_path: Path) -> None:
    path, boxes, points = made[4].path, made[4].boxes, np.load(made[4].path)
    expected = captioner.caption_cloud_regions(points, boxes)
    texts = boxes_as_text(boxes)
    assert any(text.startswith("-") for text in texts)
    assert tools("demo_PointcloudRegion.py", path, "--box", *texts)[:2] == (0, expected)
    assert tools("demo_PointcloudRegion.py", path, *(f"--box={text}" for text in texts))[:2] == (0, expected)
    (tmp_path / "boxes.json").write_text(json.dumps([boxes[0], {"box": [*boxes[1], 0.0]}, *boxes[2:]]))
    assert tools("demo_PointcloudRegion.py", path, "--json", tmp_path / "boxes.json")[1] == expected
    low, high = (np.array(boxes[0])[:3] + sign * np.array(boxes[0])[3:] / 2 for sign in (-1, 1))
    inside = ((points >= low - 0.01) & (points <= high + 0.01)).all(axis=1) & (points[:, 2] > 0.02)
    np.save(tmp_path / "mask.npy", inside)
    centre = ",".join(str(value) for value in boxes[0][:3])
    given = ["--mask", tmp_path / "mask.npy", f"--point={centre}", "--size", 0.8, f"--scribble={centre} 1,1,1"]
    code, lines, _ = tools("demo_PointcloudRegion.py", path, *given, "--json-out", "-")
    regions = json.loads("\n".join(lines))["regions"]
    assert code == 0 and [np.shape(region["box"]) for region in regions] == [(6,), (8, 3), (6,)]
    shown = [region["caption"] for region in regions]
    assert shown == captioner.caption_cloud_regions(points, [region["box"] for region in regions])


def test_files_that_are_none(tools: Tools, made: list[Example], tmp_path: Path) -> None:
    picture, cloud = made[0].path, made[4].path
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:2000])
    (tmp_path / "text.npy").write_text("no cloud")
    np.save(tmp_path / "three.npy", np.eye(3))
    (tmp_path / "regions.json").write_text('{"circles": []}')
    (tmp_path / "broken.json").write_text("[[1, 2,")
    box = ["--box", "0,0,9,9"]
    for arguments, message in (
        (["demo_Image.py", tmp_path / "away.png"], "away.png: no such file"),
        (["demo_Image.py", tmp_path / "text.png"], "text.png: it is no picture that can be read; accepted: JPEG, PNG"),
        (["demo_Image.py", tmp_path / "empty.jpg"], "empty.jpg: the file is empty"),
        (["demo_Image.py", tmp_path / "cut.png"], "cut.png: the picture is damaged or cut short"),
        (["demo_Image.py", tmp_path], "is a folder, not a file"),
        (["demo_Image.py", picture, "--num-beams", "0"], "--num-beams is 0; accepted: whole numbers from 1"),
        (["demo_Image.py", picture, "--question", " "], "the question is empty"),
        (["demo_ImageRegion.py", picture], "no region is given; accepted: --boxes, --json"),
        (["demo_ImageRegion.py", picture, "--boxes", "1,2,x,4"], "--boxes '1,2,x,4'; accepted: numbers with commas"),
        (["demo_ImageRegion.py", picture, "--boxes", "1,2,3"], "--boxes 1,2,3 has 3 numbers; accepted: x1,y1,x2,y2 for"),
        (["demo_ImageRegion.py", picture, "--boxes", "90,90,99,99"], "has no area left in a picture of 84 x 84 pixels"),
        (["demo_ImageRegion.py", picture, "--json", tmp_path / "regions.json"], "regions.json: accepted: a list of regions"),
        (["demo_ImageRegion.py", picture, "--json", tmp_path / "broken.json"], "broken.json is not a whole JSON file"),
        (["demo_Pointcloud.py", tmp_path / "text.npy"], "text.npy: it is no .npy file; accepted: a .npy file of finite numbers"),
        (["demo_Pointcloud.py", picture], "scene_1.png: .png says no format of clouds; accepted: .npy, .npz, .ply, .pcd"),
        (["demo_Pointcloud.py", tmp_path / "three.npy"], "the cloud has points at 3 places, too few to show anything"),
        (
            ["demo_PointcloudRegion.py", cloud, "--box", "90,0,0,1,1,1"],
            "the box (90, 0, 0, 1, 1, 1) holds no point of the cloud",
        ),
        (["demo_PointcloudRegion.py", cloud, *box], "--boxes 0,0,9,9 has 4 numbers; accepted: cx,cy,cz,dx,dy,dz[,heading]"),
    ):
        code, lines, err = tools(*arguments)  # type: ignore[arg-type]
        assert (code, lines) == (1, []), arguments
        assert "error: " in err and message in err and "Traceback" not in err, err


@pytest.mark.slow
def test_a_process_of_its_own_on_the_default_checkpoint(made: list[Example], tmp_path: Path) -> None:
    """From another folder, as on a fresh clone: the checkpoint that is there names what is in the picture."""
    command = [sys.executable, str(TOOLS / "demo_ImageRegion.py"), str(made[0].path), "--boxes", *boxes_as_text(made[0].boxes)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(name in line for name, line in zip(made[0].names, lines, strict=True)) >= 3


def test_drawing_keeps_to_the_page() -> None:
    image = Image.new("RGB", (1000, 400), "white")
    long = "a very long caption " * 12
    drawn = draw_regions(image, [[-5, -5, 10, 10], [900, 300, 2000, 2000]], [long, "short"])
    assert drawn.width == 1000 and drawn.height > 400 and drawn.getpixel((999, 350)) != (255, 255, 255)
    assert draw_regions(image, [], []).size == (1000, 400)
