"""Folders and lists captioned in batches: what is written, what is skipped, and that stopping and going on changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis.common.config import ConfigError
from lavis.serving import cli, folder
from lavis.serving.captioner import Captioner
from lavis.serving.examples import Example
from lavis.serving.items import Item, batches_of, find_items
from lavis.serving.loading import REPOSITORY, SHIPPED
from lavis.serving.rows_file import RowsFile
from tools import caption_folder

SHORT = ["--num-beams", "1", "--batch-size", "3"]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, captioner: Captioner) -> Any:
    monkeypatch.setattr(cli, "load_captioner", lambda *args, **kwargs: captioner)
    return lambda *arguments: caption_folder.main([str(argument) for argument in arguments])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_list(made: list[Example], path: Path) -> Path:
    """Regions of pictures and a room, wholes, and every kind of row that cannot be used."""
    room, picture = made[4], made[0]
    (path.parent / "broken.png").write_text("no picture")
    rows = [
        {"pointcloud": str(room.path), "boxes": room.boxes, "id": "room"},
        {"image": str(picture.path), "boxes": picture.boxes, "id": 7},
        {"image": str(made[1].path)},
        {"image": str(made[1].path), "regions": [{"point": [42, 14]}, {"box": made[1].boxes[0]}], "id": "points"},
        {"image": "broken.png"},
        {"image": "away.png"},
        {"image": str(picture.path), "boxes": [[90, 90, 99, 99]], "id": "outside"},
        {"image": str(picture.path), "boxes": [], "id": "none"},
        {"pointcloud": str(made[2].path)},
        {"pointcloud": str(picture.path), "id": "no cloud"},
        {"pointcloud": str(room.path), "boxes": [room.boxes[0], [90, 0, 0, 1, 1, 1]], "id": "nothing in it"},
        {"caption": "no file"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder(
    tool: Any, captioner: Captioner, made: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "in" / "below"
    pictures.mkdir(parents=True)
    for number in range(5):
        Image.open(made[number % 2].path).rotate(90 * number).save(pictures / f"{number}.png")
    np.save(tmp_path / "in" / "chair.npy", np.load(made[2].path))
    (tmp_path / "in" / "broken.jpg").write_text("no picture")
    (tmp_path / "in" / "notes.txt").write_text("no picture either, and not asked for")
    out = tmp_path / "out.jsonl"
    assert tool(tmp_path / "in", "-o", out, *SHORT) == 0
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [f"below/{number}.png" for number in range(5)] + ["chair.npy"]
    for row in rows[:5]:
        image = Image.open(tmp_path / "in" / row["image"])
        assert row["caption"] == captioner.caption_image(image, num_beams=1)
    assert rows[5]["pointcloud"] == "chair.npy" and "tall chair" in rows[5]["caption"]
    err = capsys.readouterr().err
    assert "skipped broken.jpg: broken.jpg: it is no picture" in err and "6 captioned, 0 from before, 1 skipped" in err
    content = out.read_bytes()
    assert tool(tmp_path / "in", "-o", out, *SHORT, "--strict") == 1  # nothing to do, but one file is still broken
    assert out.read_bytes() == content and "0 captioned, 6 from before, 1 skipped" in capsys.readouterr().err
    Image.open(made[0].path).save(tmp_path / "in" / "broken.jpg", "JPEG")
    assert tool(tmp_path / "in", "-o", out, *SHORT, "--strict") == 0
    assert out.read_bytes().startswith(content) and rows_of(out)[-1]["id"] == "broken.jpg"


def test_a_list(tool: Any, captioner: Captioner, made: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_list(made, tmp_path / "rows.jsonl"), tmp_path / "out.jsonl"
    assert tool(source, "-o", out, *SHORT) == 0
    rows = {row["id"]: row for row in rows_of(out)}
    assert list(rows) == [str(made[1].path), "7", "points", str(made[2].path), "room"]
    image, cloud = Image.open(made[0].path), np.load(made[4].path)
    expected = captioner.model.describe(image, made[0].boxes, num_beams=1)
    assert rows["7"]["regions"] == [{"box": b, "caption": c} for b, c in zip(made[0].boxes, expected, strict=True)]
    captions = captioner.caption_cloud_regions(cloud, made[4].boxes, num_beams=1)
    assert [region["caption"] for region in rows["room"]["regions"]] == captions
    assert [len(region["box"]) for region in rows["points"]["regions"]] == [4, 4]
    err = capsys.readouterr().err
    for message in (
        "skipped broken.png: broken.png: it is no picture",
        "skipped away.png: away.png: no such file",
        "skipped outside: box [90.0, 90.0, 99.0, 99.0] (x1, y1, x2, y2) has no area left",
        "skipped none: boxes: accepted: one list of at least one region",
        "skipped no cloud: ",
        "skipped nothing in it: box 2 of 2 (90, 0, 0, 1, 1, 1) holds no point of the cloud",
        "skipped rows.jsonl:12: the row names no file; accepted: a path under image or pointcloud",
        "5 captioned, 0 from before, 7 skipped",
    ):
        assert message in err


def test_a_torn_line_and_lost_rows_are_done_again(tool: Any, made: list[Example], tmp_path: Path) -> None:
    source, out = write_list(made, tmp_path / "rows.jsonl"), tmp_path / "out.jsonl"
    assert tool(source, "-o", out, *SHORT) == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (b"", lines[0][:20], lines[0], lines[0] + lines[1][:-1], b"".join(lines[:3]) + lines[3][:9], whole):
        out.write_bytes(kept)
        assert tool(source, "-o", out, *SHORT) == 0
        assert out.read_bytes() == whole


def test_a_signal_ends_it_after_the_batch(tool: Any, made: list[Example], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    source, out = write_list(made, tmp_path / "rows.jsonl"), tmp_path / "out.jsonl"
    assert tool(source, "-o", tmp_path / "straight.jsonl", *SHORT) == 0
    real, before = folder._captioned, signal.getsignal(signal.SIGINT)

    def interrupted(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(folder, "_captioned", interrupted)
    capsys.readouterr()
    assert tool(source, "-o", out, *SHORT) == 130
    assert "the same command goes on with it" in capsys.readouterr().err
    assert [row["id"] for row in rows_of(out)] == [str(made[1].path)]
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(folder, "_captioned", real)
    assert tool(source, "-o", out, *SHORT) == 0
    assert out.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_other_settings_are_refused(tool: Any, made: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_list(made, tmp_path / "rows.jsonl"), tmp_path / "out.jsonl"
    assert tool(source, "-o", out, *SHORT) == 0
    assert tool(source, "-o", out, "--num-beams", "2") == 1
    assert "was made with other settings (decoding: {'max_length': 40, 'num_beams': 1} then" in capsys.readouterr().err
    (tmp_path / "out.jsonl.settings.json").unlink()
    assert tool(source, "-o", out, *SHORT) == 1
    assert "out.jsonl is there, but not out.jsonl.settings.json" in capsys.readouterr().err
    with RowsFile(tmp_path / "own.jsonl", settings={"a": 1}) as rows:
        rows.append([{"id": "x"}])
    (tmp_path / "own.jsonl").write_text('hello\n{"id": "x"}\n')
    with pytest.raises(ConfigError, match=r"own\.jsonl, line 1: no row of ours"):
        RowsFile(tmp_path / "own.jsonl", settings={"a": 1})
    with pytest.raises(ConfigError, match="is a folder; accepted: a file to write"):
        RowsFile(tmp_path, settings={})


def test_when_nothing_can_be_captioned(tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    assert tool(tmp_path / "in", "-o", tmp_path / "out.jsonl") == 1
    assert "holds no picture and no cloud; accepted: .jpg" in capsys.readouterr().err
    (tmp_path / "in" / "a.png").touch()
    assert tool(tmp_path / "in", "-o", tmp_path / "out.jsonl") == 1
    assert "skipped a.png: a.png: the file is empty" in capsys.readouterr().err
    assert tool(tmp_path / "away", "-o", tmp_path / "out.jsonl") == 1
    assert "away does not exist; accepted: a folder, a JSON list, or JSON lines" in capsys.readouterr().err
    assert tool(tmp_path / "in", "-o", tmp_path / "out.jsonl", "--batch-size", "0") == 1
    assert "batch size 0, workers 2; accepted: 1 or more" in capsys.readouterr().err


def test_lists(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"image": "a.png"}, {"pointcloud": "b.npy", "boxes": [[0] * 6]}, {"image": "c.png", "id": 3}]))
    items = find_items(path, root=tmp_path / "files")
    assert [(item.id, item.kind) for item in items] == [("a.png", "image"), ("3", "image"), ("b.npy", "pointcloud_region")]
    assert items[0].path == tmp_path / "files" / "a.png" and find_items(path)[0].path == tmp_path / "a.png"
    path.write_text(json.dumps([{"image": "a.png"}, {"image": "a.png", "boxes": [[0, 0, 1, 1]]}]))
    with pytest.raises(ConfigError, match=r"has 1 ids more than once, the first: 'a.png'"):
        find_items(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="holds no rows"):
        find_items(path)


def test_batches_are_of_one_kind_and_bounded() -> None:
    def item(name: str, kind: str, regions: int = 0) -> Item:
        return Item(name, kind, name, Path(name), Path(), tuple([[0, 0, 1, 1]] * regions))

    items = [item(name, "image") for name in "abcde"]
    items += [item(name, "image_region", count) for name, count in zip("fghij", (2, 2, 1, 9, 1), strict=True)]
    found = [[each.id for each in batch] for batch in batches_of(items, 4)]
    assert found == [["a", "b", "c", "d"], ["e"], ["f", "g"], ["h"], ["i"], ["j"]]


def test_many_regions_of_one_picture_are_decoded_in_parts(captioner: Captioner, made: list[Example], tmp_path: Path) -> None:
    boxes = (made[0].boxes * 3)[:10]
    whole = Item("a", "image_region", "a", made[0].path, tmp_path, tuple(boxes))
    passes: list[int] = []
    encoder = captioner.model.encoders["image"]
    real = encoder.compute
    encoder.compute = lambda images: (passes.append(len(images)), real(images))[1]
    try:
        with RowsFile(tmp_path / "out.jsonl", settings={}) as out:
            report = folder.caption_items(captioner, [whole], out, batch_size=4, workers=1, decoding={"num_beams": 1})
    finally:
        encoder.compute = real
    said = [region["caption"] for region in rows_of(tmp_path / "out.jsonl")[0]["regions"]]
    assert report.captioned == 1 and passes == [1]
    assert said == captioner.caption_regions(Image.open(made[0].path), boxes, num_beams=1)


def test_signals_are_left_alone_in_other_threads() -> None:
    before = signal.getsignal(signal.SIGINT)
    found: list[Any] = []

    def look() -> None:
        with folder.stopped_by_signals() as stop:
            found.append((stop.is_set(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [(False, before)]


KILLED_IN_ITS_THIRD_WRITE = """
import os, signal, sys
from lavis.serving import rows_file
from tools import caption_folder

writes = 0

class Stream:
    def __init__(self, stream):
        self.stream = stream
    def __getattr__(self, name):
        return getattr(self.stream, name)
    def write(self, content):
        global writes
        writes += 1
        if writes == 3:
            self.stream.write(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return self.stream.write(content)

def init(self, *args, real=rows_file.RowsFile.__init__, **kwargs):
    real(self, *args, **kwargs)
    self._stream = Stream(self._stream)

rows_file.RowsFile.__init__ = init
caption_folder.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_process_goes_on(tool: Any, made: list[Example], tmp_path: Path) -> None:
    """SIGKILL in the middle of a write; the same command then gives the file of a run that was left alone."""
    (tmp_path / "in").mkdir()
    for number in range(8):
        Image.open(made[number % 2].path).rotate(45 * number).save(tmp_path / "in" / f"{number}.png")
    straight, out = tmp_path / "straight.jsonl", tmp_path / "killed.jsonl"
    arguments = ["--num-beams", "1", "--batch-size", "2", "--checkpoint", str(REPOSITORY / SHIPPED)]
    assert tool(tmp_path / "in", "-o", straight, *arguments) == 0
    command = [sys.executable, "-c", KILLED_IN_ITS_THIRD_WRITE, str(tmp_path / "in"), "-o", str(out), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    lines = out.read_bytes().splitlines(keepends=True)
    assert len(lines) >= 5 and b"".join(lines) != straight.read_bytes() and not lines[-1].endswith(b"\n")
    assert tool(tmp_path / "in", "-o", out, *arguments) == 0
    assert out.read_bytes() == straight.read_bytes()
