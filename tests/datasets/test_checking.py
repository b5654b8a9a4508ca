"""Damage of every kind, planted in small data of every builder: found, named and counted; what is whole passes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis.datasets.checking import Depth, check_datasets
from lavis.datasets.findings import SplitCheck
from tests.datasets.files import write_images, write_json, write_object, write_scene

PICTURES = {
    "vis_processor": {s: {"name": "general_box_caption_img_trainval", "image_size": 16} for s in ("train", "eval")},
    "text_processor": {s: {"name": "blip_caption"} for s in ("train", "eval")},
}
POINTS = np.random.RandomState(0).randn(8, 3)


def region(image: str, bbox: Any = (1, 2, 30, 20), caption: Any = "a thing", **more: Any) -> dict[str, Any]:
    return {"image": image, "image_id": image, "bbox": list(bbox), "caption": caption, **more}


def pictures(folder: Path, **files: Any) -> dict[str, Any]:
    """A block of a dataset of pictures with these files per split."""
    annotations = {split: {"storage": [str(path) for path in paths]} for split, paths in files.items()}
    return {**PICTURES, "build_info": {"annotations": annotations, "images": {"storage": str(folder / "images")}}}


def run(configs: dict[str, Any], splits: Iterable[str] = ("train",), **depth: Any) -> tuple[list[SplitCheck], list[str]]:
    return check_datasets(
        configs, splits, depth=Depth(**depth), cache_root=None, progress=lambda items, what, total: items, also=lambda dataset: []
    )


def only(configs: dict[str, Any], split: str = "train", **depth: Any) -> SplitCheck:
    (check,), errors = run(configs, (split,), **depth)
    assert errors == []
    return check


def counts(check: SplitCheck) -> dict[str, int]:
    return {kind: finding.count for kind, finding in check.problems.kinds.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", [f"x_{number}.jpg" for number in range(6)])  # 40 x 30 pixels
    return tmp_path


def damage(folder: Path) -> list[dict[str, Any]]:
    """Three good rows, then eleven bad ones and three odd ones, of 40 x 30 pixels."""
    (folder / "images" / "empty.jpg").write_bytes(b"")
    (folder / "images" / "page.jpg").write_text("<html>not found</html>")
    noise = np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "images" / "cut.jpg")
    whole = (folder / "images" / "cut.jpg").read_bytes()
    (folder / "images" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    good = [region("x_0.jpg"), region("x_1.jpg", caption="b"), region("x_1.jpg", (5, 5, 10, 10), "c")]
    dropped = [
        *(region("x_0.jpg", caption=" "), {key: value for key, value in region("x_0.jpg").items() if key != "caption"}),
        *(region("x_0.jpg", (1, 1, 0, 5)), region("x_0.jpg", ("a", 1, 2, 3)), region("x_0.jpg", caption=7)),
    ]
    bad = [
        *(region("gone.jpg"), region("gone.jpg", caption="again"), region("empty.jpg"), region("page.jpg"), region("cut.jpg")),
        *(region("x_2.jpg", (50, 40, 10, 10)), region("x_2.jpg", (30, 20, 90, 80))),
    ]
    odd = [region("x_2.jpg", (30, 20, 13, 10)), region("x_2.jpg", (30, 20, 10.6, 10)), region("x_0.jpg")]
    return [*good, *dropped, *bad, *odd]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_of_damage_to_regions_is_named_and_counted(folder: Path, workers: int) -> None:
    path = write_json(folder / "train.json", damage(folder))
    check = only({"general_box_caption": pictures(folder, train=[path])}, workers=workers, whole=1)
    assert (check.rows, check.samples, check.loaded, check.whole, check.errors) == (18, 13, 13, 1, [])
    assert counts(check) == {
        **{"empty caption": 1, "missing key": 1, "empty bbox": 2, "malformed bbox": 1, "caption is not text": 1},
        **{"missing image": 2, "broken image": 2, "box mostly outside its picture": 1},
    }
    found = check.problems.kinds
    assert (
        found["missing image"].first[0].startswith("train.json[8]: missing image: ") and len(found["missing image"].sources) == 1
    )
    assert "the file is empty" in found["broken image"].first[0] and "page.jpg" in found["broken image"].first[1]
    assert "no area left in a picture of 40 x 30" in found["empty bbox"].first[1]
    assert "train.json[14]: box [30.0, 20.0, 90.0, 80.0]" in found["box mostly outside its picture"].first[0]
    notes = {kind: (finding.count, finding.first) for kind, finding in check.notes.kinds.items()}
    assert set(notes) == {"box partly outside its picture", "the same row again"}
    assert notes["box partly outside its picture"][0] == 1 and "train.json[15]" in notes["box partly outside its picture"][1][0]
    assert notes["the same row again"] == (1, ["train.json[17], as train.json[0]"])
    assert not check.is_fine(0.0) and not check.is_fine(0.1) and check.is_fine(0.2)


def test_a_picture_cut_short_is_found_when_all_are_decoded(folder: Path) -> None:
    path = write_json(folder / "train.json", damage(folder))
    check = only({"general_box_caption": pictures(folder, train=[path])}, decode=True)
    assert check.whole == 13 and counts(check)["broken image"] == 3
    assert any("cut.jpg" in example for example in check.problems.kinds["broken image"].first)


def test_what_is_accepted_is_what_training_accepts(folder: Path) -> None:
    from lavis.datasets.datasets.regions import GeneralBoxCaptionBuilder

    path = write_json(folder / "train.json", damage(folder))
    block = pictures(folder, train=[path])
    check = only({"general_box_caption": block}, decode=True)
    dataset = GeneralBoxCaptionBuilder(block).build_datasets()["train"]
    skipped = [dataset[index]["skipped"] for index in range(len(dataset))]
    refused = len(dataset.dropped) + sum(bool(entry) for entry in skipped)
    inconsistent = counts(check)["box mostly outside its picture"]  # training cuts these to the picture
    assert check.problems.count - inconsistent == refused == 11


def test_whole_data_pass_and_a_limit_takes_rows_from_everywhere(folder: Path) -> None:
    rows = [region(f"x_{number // 20}.jpg", caption=f"c{number}") for number in range(120)]
    rows[100]["image"] = rows[119]["image"] = "gone.jpg"
    path = write_json(folder / "train.json", rows)
    configs = {"general_box_caption": pictures(folder, train=[path])}
    assert counts(only(configs)) == {"missing image": 2}
    few = only(configs, limit=5)
    assert (
        few.loaded == 5
        and counts(few) == {"missing image": 1}
        and "train.json[119]" in few.problems.kinds["missing image"].first[0]
    )
    rows[100]["image"] = rows[119]["image"] = "x_5.jpg"
    write_json(path, rows)
    check = only(configs)
    assert check.is_fine(0.0) and check.problems.count == check.notes.count == 0 and check.loaded == 120


def test_files_that_cannot_be_read_are_all_named_and_the_others_are_read(folder: Path) -> None:
    good = write_json(folder / "good.json", [region("x_0.jpg"), region("gone.jpg")])
    (folder / "cut.json").write_text(json.dumps([region("x_0.jpg")])[:-5])
    (folder / "numbers.json").write_text("[1, 2]")
    block = pictures(folder, train=[folder / "cut.json", good, folder / "numbers.json"])
    check = only({"general_box_caption": block})
    assert ["cut.json: not valid JSON" in check.errors[0], "numbers.json: row" in check.errors[1]] == [True, True]
    assert counts(check) == {"missing image": 1} and check.rows == 2 and not check.is_fine(1.0)
    block = pictures(folder, train=[folder / "a.json", good, folder / "b.json"])
    block["build_info"]["images"]["storage"] = str(folder / "nowhere")
    errors = only({"general_box_caption": block}).errors
    assert [name in error for name, error in zip(("a.json", "b.json", "nowhere"), errors, strict=True)] == [True] * 3


def test_mistakes_of_the_configuration_do_not_hide_each_other(folder: Path) -> None:
    path = write_json(folder / "train.json", [region("x_0.jpg")])
    bad = pictures(folder, train=[path])
    bad["vis_processor"] = {"train": {"name": "blip_imag_eval"}}
    configs = {"general_box_caption": bad, "general_box_captoin": {}, "coco_caption": pictures(folder, train=[path])}
    checks, errors = run(configs, ("train", "val"))
    assert [check.dataset for check in checks] == ["general_box_caption", "coco_caption"]
    assert "blip_imag_eval" in checks[0].errors[0] and checks[1].is_fine(0.0)
    assert len(errors) == 1 and "general_box_captoin" in errors[0]
    _, errors = run({"coco_caption": pictures(folder, train=[path])}, ("train", "val"))
    assert errors == ["run asks for the split 'val', which no dataset has"]


def test_another_checksum(folder: Path) -> None:
    path = write_json(folder / "train.json", [region("x_0.jpg")])
    block = pictures(folder, train=[path])
    block["build_info"]["annotations"]["train"]["md5"] = "0" * 32
    assert counts(only({"general_box_caption": block})) == {"another checksum": 1}


def test_pictures_of_another_split_are_counted(folder: Path) -> None:
    train = write_json(folder / "train.json", [region(f"x_{n}.jpg") for n in (0, 1, 2)])
    val = write_json(folder / "val.json", [region("x_3.jpg"), region("x_2.jpg"), region("x_2.jpg", (1, 1, 5, 5))])
    test = write_json(folder / "test.json", [region("x_3.jpg"), region("x_4.jpg")])
    checks, _ = run({"general_box_caption": pictures(folder, train=[train], val=[val], test=[test])}, ("train", "val", "test"))
    assert [counts(check) for check in checks] == [{}, {"also in train": 2}, {}]
    assert checks[1].problems.kinds["also in train"].first == [
        "1 of 2 that val reads are in train too; the first: row val.json[1]"
    ]
    assert {kind: finding.count for kind, finding in checks[2].notes.kinds.items()} == {"also in val": 1}


def test_evaluation_rows_without_captions_and_with_ids_of_two_pictures(folder: Path) -> None:
    rows = [
        {"image": "x_0.jpg", "caption": ["a"]},
        {"image": "x_1.jpg"},
        {"image": "x_2.jpg", "caption": [" "]},
        {"caption": ["b"]},
    ]
    path = write_json(folder / "test.json", rows)
    check = only({"coco_caption": pictures(folder, test=[path])}, "test")
    assert counts(check) == {"no caption to score against": 2, "missing key": 1}
    write_images(folder / "images" / "more", ["x_0.jpg"])
    write_json(path, [*rows, {"image": "more/x_0.jpg", "caption": ["c"]}])
    check = only({"coco_caption": pictures(folder, test=[path])}, "test")
    assert len(check.errors) == 1 and "have one result id, 0" in check.errors[0]


def test_questions(folder: Path) -> None:
    rows = [{"image": f"x_{n}.jpg", "question": "what?", "question_id": n, "answer": ["a"]} for n in (0, 1, 2)]
    rows += [{**rows[0], "question_id": 1}, {**rows[0], "question": "", "question_id": 5}]
    path, answers = write_json(folder / "val.json", rows), write_json(folder / "answers.json", ["a", "b"])
    block = pictures(folder, val=[path, answers])
    block["text_processor"] = {"eval": {"name": "blip_question"}}
    check = only({"coco_vqa": block}, "val")
    assert counts(check) == {"empty question": 1, "an id again, whose result is lost": 1}
    answers.write_text("[1, 2]")
    assert "answers.json" in only({"coco_vqa": block}, "val").errors[0]
    path.write_text("[")
    assert len(only({"coco_vqa": block}, "val").errors) == 1, "the list of answers is not taken for rows"


def test_objects(tmp_path: Path) -> None:
    for name, points in {"good": POINTS, "few": POINTS[:3], "one": np.ones((8, 3)), "nan": np.full((8, 3), np.nan)}.items():
        write_object(tmp_path / "clouds", name, points)
    write_object(tmp_path / "clouds", "empty", POINTS)
    (tmp_path / "clouds" / "empty" / "empty_8192.npz").write_bytes(b"")
    (tmp_path / "train.txt").write_text("good,a\nfew,b\none,c\nnan,d\nempty,e\ngone,f\ngood,\nno comma\n")
    block = {
        "build_info": {
            "annotations": {"train": {"storage": str(tmp_path / "train.txt")}},
            "pointcloud": {"storage": str(tmp_path / "clouds"), "num_points": 8},
        }
    }
    check = only({"pointcloud_caption": block})
    assert counts(check) == {
        **{"empty caption": 1, "malformed line": 1, "too few points": 1, "one repeated point": 1, "not finite": 1},
        **{"broken point cloud": 1, "missing point cloud": 1},
    }
    assert "the file is empty" in check.problems.kinds["broken point cloud"].first[0] and check.whole == check.loaded == 6


def test_scenes(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 1, 2, 1, 1, 5, 3], [1, 1, 1, 0, 1, 1, 5, 9]], dtype=float)
    points = np.random.RandomState(0).randn(20, 9)
    for scene in ("s", "no_boxes"):
        write_scene(tmp_path / "scenes", scene, points, boxes)
    (tmp_path / "scenes" / "no_boxes_aligned_bbox.npy").unlink()
    named = [("s", 3), ("s", 9), ("s", 4), ("gone", 3), ("no_boxes", 3)]
    rows = [{"scene_id": scene, "object_id": number, "description": "a chair"} for scene, number in named]
    split = {"scene_root_dir": str(tmp_path / "scenes"), "num_points": 8}
    train, val = write_json(tmp_path / "train.json", rows), write_json(tmp_path / "val.json", rows[:1])
    block = {"annotations": {"train": {"scanner_file": str(train), **split}, "val": {"scanner_file": str(val), **split}}}
    checks, _ = run({"scannet_refer": block}, ("train", "val"))
    assert counts(checks[0]) == {
        **{"empty or malformed box": 1, "missing object": 1, "missing scene": 1, "missing boxes of a scene": 1},
    }
    assert counts(checks[1]) == {"also in train": 1}


def test_shapes(tmp_path: Path) -> None:
    (tmp_path / "modelnet40_shape_names.txt").write_text("chair\nlamp\n")
    path = tmp_path / "modelnet40_test_8192pts_fps.dat"
    path.write_bytes(pickle.dumps([[POINTS, POINTS[:2], POINTS + 1], [0, 1, 1]], protocol=2))
    block = {"build_info": {"pointcloud": {"storage": str(tmp_path), "npoints": 8}}}
    assert counts(only({"mobilenet40": block}, "test")) == {"too few points": 1}
    path.write_bytes(path.read_bytes()[:50])
    assert "cannot be read as a pickle of data" in only({"mobilenet40": block}, "test").errors[0]


def test_what_ends_a_run_is_told_like_the_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lavis.datasets.datasets.captions import CaptionDataset

    real = CaptionDataset.load

    def load(self: Any, index: int, rng: Any) -> Any:
        if index == 1:
            raise ZeroDivisionError("a narrow picture")
        return real(self, index, rng)

    monkeypatch.setattr(CaptionDataset, "load", load)
    path = write_json(folder / "train.json", [region(f"x_{n}.jpg") for n in range(3)])
    check = only({"coco_caption": pictures(folder, train=[path])})
    assert check.problems.kinds["not loaded, and ends a run"].first == ["train.json[1]: ZeroDivisionError: a narrow picture"]
