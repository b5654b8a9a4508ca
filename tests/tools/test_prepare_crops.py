"""The crop baseline: regions as pictures, their ground truth, and the reader of both."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis.common.registry import registry
from lavis.evaluation.captions.ground_truth import read_references
from tests.datasets.files import write_json
from tests.tools.tool import run

CROP, TRUTH = "prepare_blip2_zeroshot_RefcocoCrop", "prepare_blip2_zeroshot_RefcocoCrop_eval"


def row(bbox: Any, caption: Any = "x", *, image: Any = "a.png", image_id: Any = "12") -> dict[str, Any]:
    return {"image": image, "image_id": image_id, "bbox": bbox, "caption": caption}


def write_pictures(folder: Path) -> np.ndarray:
    """Two pictures of 40 x 30, in which the colour says the place."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:30, :40]
    pixels = np.stack([6 * x, 8 * y, np.full_like(x, 90)], axis=2).astype(np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(folder / name)
    return pixels


def crop(folder: Path, *rows: Any, more: tuple[str, ...] = ()) -> int:
    ann = write_json(folder / "Refcoco_test.json", list(rows))
    return run(CROP, "-a", ann, "-m", folder / "images", "-o", folder / "out", "--workers", "1", *more)


def test_crops_and_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = write_pictures(tmp_path / "images")
    rows = [
        row([10.9, 5.2, 12.3, 9.9], "left cup"),
        row([0, 0, 40, 30], "all", image="b.png", image_id="13"),
        row([10.9, 5.2, 12.3, 9.9], "cup"),
        row([-4, 20, 200.5, 80], "", image_id="12"),
    ]
    assert crop(tmp_path, *rows) == 0
    assert "3 regions, 4 captions" in capsys.readouterr().out
    names = ["12_bbox_10_5_23_15", "13_bbox_0_0_40_30", "12_bbox_-4_20_196_100"]
    assert json.loads((tmp_path / "out" / "RefCOCO_test_crop.json").read_text()) == [
        {"image": f"{names[0]}.jpg", "caption": ["left cup", "cup"], "image_id": names[0]},
        {"image": f"{names[1]}.jpg", "caption": ["all"], "image_id": names[1]},
        {"image": f"{names[2]}.jpg", "caption": [""], "image_id": names[2]},
    ]
    for name, (x1, y1, x2, y2) in zip(names, [(10, 5, 23, 15), (0, 0, 40, 30), (0, 20, 40, 30)], strict=True):
        found = np.asarray(Image.open(tmp_path / "out" / "images" / f"{name}.jpg"), dtype=int)
        assert found.shape == (y2 - y1, x2 - x1, 3)
        assert abs(found - pixels[y1:y2, x1:x2]).mean() < 4, "JPEG is not exact"

    for damage in (Path.unlink, lambda path: path.write_bytes(b"")):
        damage(tmp_path / "out" / "images" / f"{names[1]}.jpg")
        assert crop(tmp_path, *rows) == 0
        assert "1 pictures converted, 1 were there already, 0 failed" in capsys.readouterr().out
    assert crop(tmp_path, *rows, more=("--again",)) == 0
    assert "2 pictures converted, 0 were there already, 0 failed" in capsys.readouterr().out


def test_bad_rows_and_pictures_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be cut keeps its row: an evaluation counts it as unreadable."""
    write_pictures(tmp_path / "images")
    (tmp_path / "images" / "b.png").write_bytes(b"no picture")
    rows = [
        row([1, 1, 5, 5]),
        row([50, 50, 5, 5], "outside"),
        row([1, 1, 5, 5], image="gone.png", image_id="14"),
        row([1, 1, 5, 5], image="b.png", image_id="15"),
        row([1, 1, 5, 5], image="c.png", image_id="12"),
        *(row([1, 2, 3]), row(None), row([1, 1, 5, 5], None), row([1, 1, 5, 5], image_id="../x"), row([1, 1, 5, 5], image=3), 7),
    ]
    assert crop(tmp_path, *rows) == 1
    out = capsys.readouterr().out
    for line in (
        "problem: 6 malformed row: row 5: bbox [1, 2, 3] is not 4 numbers, row 6: bbox None is not 4 numbers",
        "problem: 1 region of another picture with an id in use: row 4: 12_bbox_1_1_6_6.jpg of c.png",
        "failed: 1 region without area in its picture: a.png (12_bbox_50_50_55_55.jpg)",
        "failed: 1 missing picture: gone.png",
        "failed: 1 broken picture: b.png",
    ):
        assert line in out
    assert len(json.loads((tmp_path / "out" / "RefCOCO_test_crop.json").read_text())) == 4
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["12_bbox_1_1_6_6.jpg"]

    config = {
        "vis_processor": {"eval": {"name": "blip_image_eval", "image_size": 16}},
        "text_processor": {"eval": {"name": "blip_caption"}},
        "build_info": {
            "annotations": {"test": {"storage": str(tmp_path / "out" / "RefCOCO_test_crop.json")}},
            "images": {"storage": str(tmp_path / "out" / "images")},
        },
    }
    builder = registry.get_builder_class("refcoco_crop_caption")(config)
    dataset = builder.build_datasets(splits=["test"])["test"]
    assert [dataset[i]["readable"] for i in range(4)] == [True, False, False, False]
    assert [dataset[i]["image_id"] for i in range(2)] == ["12_bbox_1_1_6_6", "12_bbox_50_50_55_55"]
    assert dataset.modality == "image" and dataset.references()[1] == ("12_bbox_50_50_55_55", "outside")


@pytest.mark.parametrize("more", [(), ("--seed", "3")])
def test_ground_truth_in_the_published_order(tmp_path: Path, more: tuple[str, ...]) -> None:
    rows = [{"image": f"{i}.jpg", "image_id": f"{i}_bbox_0_0_1_{i}", "caption": [f"a{i}", f"b{i}"]} for i in range(9)]
    assert run(TRUTH, "-a", write_json(tmp_path / "RefCOCO_test_crop.json", rows), *more) == 0
    path = tmp_path / "RefCOCO_test_crop__jianchong.json"
    assert read_references(path) == {row["image_id"]: row["caption"] for row in rows}
    random.seed(3 if more else 10)
    random.shuffle(rows)
    content = json.loads(path.read_text())
    assert content["images"] == [{"id": row["image_id"]} for row in rows]
    assert [(a["id"], a["caption"]) for a in content["annotations"][:3]] == list(
        zip((1, 2, 3), [*rows[0]["caption"], rows[1]["caption"][0]], strict=True)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds a dict; expected a list"),
        ([], "no captions to write"),
        ([{"image_id": "a", "caption": []}], "row 0: "),
        ([{"image_id": "a", "caption": ["x"]}, {"image_id": "b", "caption": "x"}], "row 1: "),
        ([{"image_id": None, "caption": ["x"]}], "row 0: "),
    ],
)
def test_malformed_crops_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str) -> None:
    assert run(TRUTH, "-a", write_json(tmp_path / "crops.json", content)) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "crops__jianchong.json").exists()


def test_files_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crop(tmp_path) == 1 and "no regions to write" in capsys.readouterr().err
    write_json(tmp_path / "ann.json", {"a": 1})
    for name, message in (("ann.json", "expected a list"), ("gone.json", "does not exist")):
        assert run(CROP, "-a", tmp_path / name, "-m", tmp_path, "-o", tmp_path / "out") == 1
        assert message in capsys.readouterr().err
