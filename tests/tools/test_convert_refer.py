"""The REFER converter, as a user calls it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from lavis.datasets.datasets.regions import RegionDataset, RegionEvalDataset
from tests.datasets.files import options, write_images, write_json
from tests.tools.tool import run

NAMES = [f"COCO_train2014_{number:012d}.jpg" for number in (7, 9)]


def sentence(text: str) -> dict[str, Any]:
    return {"sent": text, "raw": text.upper(), "sent_id": 1, "tokens": text.split()}


def write(folder: Path, splits: tuple[str, ...], *, split_by: str = "unc", broken: bool = False) -> Path:
    """A data set of a ref in each split, alternately of two pictures, with two expressions each."""
    refs = [
        {
            "ref_id": number,
            "ann_id": 100 + number % 2,
            "image_id": (7, 9)[number % 2],
            "split": split,
            "file_name": NAMES[number % 2].replace(".jpg", f"_{number}.jpg"),
            "category_id": 1,
            "sent_ids": [2 * number, 2 * number + 1],
            "sentences": [sentence(f"the café in {split}"), sentence("left one")],
        }
        for number, split in enumerate(splits)
    ]
    if broken:
        refs.append({**refs[0], "ref_id": 99, "ann_id": 555})
    path = folder / f"refs({split_by}).p"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(refs, protocol=2))
    images = [{"id": number, "file_name": name, "width": 40, "height": 30} for number, name in zip((7, 9), NAMES, strict=True)]
    annotations = [{"id": 100 + i, "image_id": (7, 9)[i], "bbox": [2 + i, 3, 20.5, 10]} for i in range(2)]
    write_json(folder / "instances.json", {"images": images, "annotations": annotations, "categories": []})
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_refcoco_and_its_readers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refs = write(tmp_path / "refcoco", ("train", "train", "val", "testA", "testB"))
    write_images(tmp_path / "images" / "train2014", NAMES)
    assert run("convert_refer", "--refs", refs, "--images", tmp_path / "images", "--strict") == 0
    out = capsys.readouterr().out
    assert "refcoco: 5 refs (train 2, val 1, testA 1, testB 1), 10 expressions, 0 problems" in out
    files = {path.stem: read(path) for path in (tmp_path / "refcoco").glob("Refcoco_*.json")}
    assert {name: len(rows) for name, rows in files.items()} == {
        **{"Refcoco_train": 4, "Refcoco_val": 2, "Refcoco_testA": 2, "Refcoco_testB": 2},
        "Refcoco_test": 4,
    }
    assert files["Refcoco_test"] == files["Refcoco_testA"] + files["Refcoco_testB"]
    assert files["Refcoco_train"][0] == {
        "image": f"train2014/{NAMES[0]}",
        "image_id": "7",
        "bbox": [2, 3, 20.5, 10],
        "caption": "the café in train",
    }
    train = RegionDataset(**options(tmp_path / "images", tmp_path / "refcoco" / "Refcoco_train.json"))
    assert len(train) == 4 and train[0]["text_input"] == "the café in train" and not train[3]["skipped"]
    test = RegionEvalDataset(**options(tmp_path / "images", tmp_path / "refcoco" / "Refcoco_test.json", split="test"))
    assert [test[i]["image_id"] for i in range(len(test))] == ["9_box_3_3_20_10", "7_box_2_3_20_10"]
    assert len(test.references()) == 4


@pytest.mark.parametrize(
    ("dataset", "split_by", "splits"),
    [
        ("refcoco+", "unc", ("train", "val", "testA", "testB")),
        ("refcocog", "google", ("train", "val")),
        ("refcocog", "umd", ("train", "val", "test")),
        ("refcoco", "google", ("train", "val", "test")),
    ],
)
def test_the_other_datasets(tmp_path: Path, dataset: str, split_by: str, splits: tuple[str, ...]) -> None:
    refs = write(tmp_path / dataset, splits, split_by=split_by)
    assert run("convert_refer", "--refs", refs, "--output", tmp_path / "out") == 0
    names = {path.stem.removeprefix("Refcoco_") for path in (tmp_path / "out").iterdir()}
    assert names == {*splits, *({"test"} if "testA" in splits else ())}
    assert read(tmp_path / "out" / "Refcoco_val.json")[0]["image"] == NAMES[1], "the bare name where no folder is given"


def test_problems_are_named_and_strict_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refs = write(tmp_path / "refcocog", ("train", "val"), split_by="google", broken=True)
    assert run("convert_refer", "--refs", refs, "--strict") == 1
    assert "error: nothing is written (--strict)" in capsys.readouterr().out
    assert not list((tmp_path / "refcocog").glob("Refcoco_*.json"))
    assert run("convert_refer", "--refs", refs) == 0
    out = capsys.readouterr().out
    assert "3 refs (train 2, val 1), 6 expressions, 1 problems" in out
    line = "1 annotation absent from instances: ref 99 of train (ann_id 555): 2 expressions left out"
    assert line in out
    assert line[2:] in (tmp_path / "refcocog" / "convert_refer_problems.txt").read_text()
    assert len(read(tmp_path / "refcocog" / "Refcoco_train.json")) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "more", "message"),
    [
        (lambda f: write(f, ("train", "val", "test")), (), "of the splits test, train, val; accepted: train, val, testA, testB"),
        (lambda f: cut(f / "refs(unc).p"), (), "refs(unc).p: cannot be read as a pickle of data"),
        (lambda f: cut(f / "instances.json"), (), "instances.json is not a whole JSON file"),
        (lambda f: (f / "instances.json").unlink(), (), "instances.json does not exist"),
        (lambda f: (f / "instances.json").write_text("[]"), (), "has no list 'images'"),
        (lambda f: (f / "refs(unc).p").write_bytes(pickle.dumps({"a": 1})), (), "holds 1 of dict; accepted: a list of refs"),
        (lambda f: (f / "refs(unc).p").write_bytes(pickle.dumps([])), (), "holds 0 of list"),
        (lambda f: (f / "refs(unc).p").write_bytes(pickle.dumps([print])), (), "which is not plain data; it is not run"),
        (lambda f: None, ("--dataset", "refclef"), "Unknown dataset of REFER 'refclef'"),
        (lambda f: None, ("--split-by", "umd"), "Unknown split of refcoco 'umd'"),
        (lambda f: None, ("--images", "no/such/folder"), "no folder of pictures at no/such/folder"),
    ],
)
def test_files_that_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, more: tuple[str, ...], message: str
) -> None:
    refs = write(tmp_path / "refcoco", ("train", "val", "testA", "testB"))
    damage(tmp_path / "refcoco")
    assert run("convert_refer", "--refs", refs, *more) == 1
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "refcoco").glob("Refcoco_*.json"))


def test_a_file_whose_name_says_no_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refs = write(tmp_path / "refcoco", ("train", "val", "testA", "testB")).rename(tmp_path / "refcoco" / "refs.p")
    assert run("convert_refer", "--refs", refs) == 1 and "give --split-by" in capsys.readouterr().err
    assert run("convert_refer", "--refs", refs, "--split-by", "unc") == 0
