"""tools/make_shards.py, as a user calls it: what it writes is what the plain readers read."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from lavis.datasets.convert import shards
from lavis.datasets.datasets.base_dataset import BaseDataset
from lavis.datasets.datasets.captions import CaptionDataset
from lavis.datasets.datasets.regions import RegionDataset
from lavis.datasets.shards.datasets import CaptionShardsBuilder, RegionShardsBuilder, ShardBuilder
from lavis.quickstart.scenes import generate
from tests.datasets.files import options, write_images, write_json
from tests.datasets.tars import captions, write_tar
from tests.tools.tool import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of 12 expressions each."""
    folder = tmp_path_factory.mktemp("data")
    generate(folder / "data", seed=3, num_train=24, num_test=1)
    return folder / "data"


def write(folder: Path, output: Path, *more: str | Path) -> int:
    return run("make_shards", "write", "-a", folder / "annotations/Refcoco_train.json", "--images", folder / "images",
               "--kind", "regions", "-o", output, "--samples-per-shard", "60", "--workers", "1", *more)  # fmt: skip


def read(storage: Path, builder: type[ShardBuilder] = RegionShardsBuilder) -> BaseDataset:
    processor = {"train": {"name": "general_box_caption_img_trainval", "image_size": 16}}
    texts = {"train": {"name": "blip_caption"}}
    block = {"build_info": {"storage": str(storage)}, "vis_processor": processor, "text_processor": texts, "index_workers": 1}
    return builder(block).build_datasets()["train"]


def by_content(dataset: BaseDataset) -> list[tuple[Any, ...]]:
    """The samples without their order."""
    samples = [dataset[index] for index in range(len(dataset))]
    keys = ("image_id", "text_input")
    return sorted(
        (*(sample[key] for key in keys), *sample.get("box", torch.zeros(0)).tolist(), sample["image"].sum().item())
        for sample in samples
    )


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.suffix == ".tar"}


def test_what_is_written_is_what_plain_files_hold(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write(folder, tmp_path / "shards") == 0
    assert "288 rows of 24 pictures in 5 shards" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "shards/manifest.json").read_text())
    assert manifest["samples"] == 288 and manifest["shards"]["000004.tar"]["samples"] == 48 and manifest["left_out"] == {}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    found = read(tmp_path / "shards")
    plain = RegionDataset(**options(folder / "images", folder / "annotations/Refcoco_train.json", modality="image_region"))
    assert by_content(found) == by_content(plain)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}, "the indexes are there"
    with tarfile.open(tmp_path / "shards/000000.tar") as tar:
        members = tar.getmembers()
        rows = json.load(tar.extractfile(members[1]))  # type: ignore[arg-type]
        stored = tar.extractfile(members[0]).read()  # type: ignore[union-attr]
    assert stored == (folder / "images" / rows["image"]).read_bytes(), "bytes as they lie on disk"
    assert len(members) == 10 and len(rows["rows"]) == 12 and set(rows["rows"][0]) == {"image_id", "caption", "bbox"}


def test_stopped_and_run_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write(folder, tmp_path / "straight", "--shuffle") == 0
    whole = contents(tmp_path / "straight")
    original = shards.read_picture
    calls = []

    def stop(path: Path, *, max_side: int | None) -> Any:
        calls.append(path)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return original(path, max_side=max_side)

    monkeypatch.setattr(shards, "read_picture", stop)
    with pytest.raises(KeyboardInterrupt):
        write(folder, tmp_path / "again", "--shuffle")
    done = contents(tmp_path / "again")
    assert len(done) == 2 and not (tmp_path / "again/manifest.json").exists()
    (tmp_path / "again/000001.tar.regions.index").unlink()
    capsys.readouterr()
    assert write(folder, tmp_path / "again", "--shuffle") == 0
    assert "4 shards converted, 1 were there already" in capsys.readouterr().out
    assert contents(tmp_path / "again") == whole and not list((tmp_path / "again").glob(".*.tmp"))
    assert write(folder, tmp_path / "again", "--shuffle", "--seed", "1") == 1 and "was begun with" in capsys.readouterr().err
    assert write(folder, tmp_path / "other", "--shuffle", "--seed", "1") == 0 and contents(tmp_path / "other") != whole
    assert sorted(map(len, whole.values())) == sorted(map(len, contents(tmp_path / "other").values()))


def test_several_processes_write_the_same(folder: Path, tmp_path: Path) -> None:
    assert write(folder, tmp_path / "one") == 0 and write(folder, tmp_path / "two", "--workers", "2") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_smaller_pictures_keep_their_boxes(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["wide.png", "small.jpeg"], size=(400, 300))
    Image.new("RGB", (40, 30)).save(tmp_path / "images/small.jpeg")
    rows = [
        {"image": "wide.png", "image_id": 1, "bbox": [100, 60, 200, 90], "caption": "a"},
        {"image": "small.jpeg", "image_id": "x", "bbox": [1, 2, 20, 9], "caption": "b"},
    ]
    given = ("-a", write_json(tmp_path / "rows.json", rows), "--images", tmp_path / "images", "--kind", "regions")
    assert run("make_shards", "write", *given, "-o", tmp_path / "out", "--max-side", "100", "--workers", "1") == 0
    with tarfile.open(tmp_path / "out/000000.tar") as tar:
        assert tar.getnames() == ["000000000.jpg", "000000000.json", "000000001.jpeg", "000000001.json"]
        with Image.open(tar.extractfile("000000000.jpg")) as picture:  # type: ignore[arg-type]
            assert picture.size == (100, 75)
    dataset = read(tmp_path / "out")
    plain = RegionDataset(**options(tmp_path / "images", tmp_path / "rows.json", modality="image_region"))
    assert all(torch.equal(dataset[number]["box"], plain[number]["box"]) for number in (0, 1))
    assert dataset[0]["box"].tolist() == pytest.approx([0.25, 0.2, 0.75, 0.5]) and dataset[0]["image_id"] == 1
    assert dataset[1]["box"].tolist() == pytest.approx([1 / 40, 2 / 30, 21 / 40, 11 / 30])


def test_what_cannot_be_used_is_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images", [f"{n}.png" for n in range(6)])
    (tmp_path / "images/1.png").write_bytes(b"x")
    rows = [{"image": f"{n}.png", "caption": f"picture {n}"} for n in range(8)]
    rows[3]["caption"] = ""
    given = ("-a", write_json(tmp_path / "rows.json", rows), "--images", tmp_path / "images", "--kind", "captions")
    out = tmp_path / "out"
    assert run("make_shards", "write", *given, "-o", out, "--samples-per-shard", "3", "--workers", "1") == 1
    said = capsys.readouterr().out
    assert "row left out: 1 empty caption: rows.json[3]" in said
    assert f"note: 1 broken image: {tmp_path / 'images/1.png'}" in said
    assert "failed: 1 shard without a picture: 000002.tar" in said and "note: 1 missing image" in said
    assert "4 rows of 4 pictures in 2 shards" in said and "4 of 8 rows left out" in said
    assert json.loads((out / "manifest.json").read_text())["left_out"] == {"empty caption": 1, "not written": 3}
    assert "broken image" in (out / "000000.tar.left_out.txt").read_text()
    assert len(read(out, CaptionShardsBuilder)) == 4


def test_shards_of_a_number_of_bytes(folder: Path, tmp_path: Path) -> None:
    size = max(path.stat().st_size for path in (folder / "images").iterdir())
    assert write(folder, tmp_path / "out", "--max-size", str(2 * size)) == 0
    shards = json.loads((tmp_path / "out/manifest.json").read_text())["shards"]
    assert len(shards) >= 12 and all(1 <= shard["pictures"] <= 4 for shard in shards.values())


def test_a_dataset_of_a_configuration(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"train": {"name": "blip_caption"}}
    info = {
        "annotations": {"train": {"storage": str(folder / "annotations/coco_karpathy_train.json")}},
        "images": {"storage": str(folder / "images")},
    }
    vision = {"train": {"name": "blip_image_eval", "image_size": 16}}
    blocks = {"coco_caption": {"vis_processor": vision, "text_processor": texts, "build_info": info}}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"model": {"arch": "blip2_opt"}, "datasets": blocks, "run": {"task": "captioning"}}))
    given = ("write", "--cfg-path", config, "-o", tmp_path / "out", "--workers", "1")
    assert run("make_shards", *given, "--dataset", "coco_caption") == 0
    plain = CaptionDataset(**options(folder / "images", folder / "annotations/coco_karpathy_train.json"))
    assert by_content(read(tmp_path / "out", CaptionShardsBuilder)) == by_content(plain)
    assert run("make_shards", *given, "--dataset", "coco") == 1
    assert "has no dataset 'coco'; accepted: coco_caption" in capsys.readouterr().err


def test_indexes_of_shards_that_others_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", captions(10 * number, 5))
    pattern = str(tmp_path / "{0..2}.tar")
    assert run("make_shards", "index", pattern, "--kind", "captions", "--workers", "2") == 0
    assert "15 rows in 3 shards" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.captions.index"))) == 3
    os.truncate(tmp_path / "1.tar", 9000)
    assert run("make_shards", "index", str(tmp_path / "{0..3}.tar"), "--kind", "captions", "--workers", "1") == 1
    said = capsys.readouterr().out
    assert f"problem: {tmp_path / '1.tar'}: cut short" in said and f"problem: {tmp_path / '3.tar'}: missing shard" in said


def test_what_stops_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (
        ["--kind", "regions"],
        ["--cfg-path", "x"],
        ["-a", "x", "--images", "x", "--kind", "regions", "--dataset", "x"],
    ):
        with pytest.raises(SystemExit):
            run("make_shards", "write", "-o", tmp_path, *given)
    assert "accepted: --annotation, --images and --kind, or --cfg-path and --dataset" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("make_shards", "write", "-o", tmp_path, "--max-size", "1T")
    assert "'1T'; accepted: a number of bytes" in capsys.readouterr().err
    assert run("make_shards", "index", "http://x/{0..3}.tar", "--kind", "captions") == 1
    assert "accepted: paths of this machine" in capsys.readouterr().err
