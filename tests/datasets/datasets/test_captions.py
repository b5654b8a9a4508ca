from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lavis.datasets.datasets.base_dataset import AnnotationError
from lavis.datasets.datasets.captions import CaptionDataset, CaptionEvalDataset, file_image_id
from lavis.processors import load_processor
from tests.datasets.files import SIZE, options, write_images, write_json


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("val2014/COCO_val2014_000000391895.jpg", 391895),
        ("12/scene_0007.png", 7),
        ("a3_b12c.png", 12),
        ("folder9/plain.png", "plain"),
    ],
)
def test_result_id(name: str, image_id: int | str) -> None:
    assert file_image_id(name) == image_id


def test_training_rows(tmp_path: Path) -> None:
    write_images(tmp_path, ["x_1.png", "x_2.png"])
    rows = [
        {"image": "x_1.png", "caption": "A Red dog.", "image_id": "coco_1"},
        {"image": "x_2.png", "caption": "  "},
        {"image": "x_2.png"},
        {"image": "x_2.png", "caption": ["a", "b"]},
        {"image": None, "caption": "a"},
        {"image": "x_2.png", "caption": "Second"},
        {"image": "x_2.png", "caption": "..."},
    ]
    dataset = CaptionDataset(**options(tmp_path, write_json(tmp_path / "train.json", rows)))
    assert [reason.split(":")[0] for _, reason in dataset.dropped] == [
        "empty caption",
        "missing key",
        "caption is not text",
        "image is not text",
    ]
    sample = dataset[0]
    assert sample["image"].shape == (3, SIZE, SIZE) and sample["image"].dtype == torch.float32
    assert (sample["text_input"], sample["image_id"], sample["modality"]) == ("a red dog", "coco_1", "image")
    assert dataset[1]["image_id"] == 2
    assert dataset.references()[0] == ("coco_1", "A Red dog.")
    assert "nothing left" in dataset[2]["skipped"][0][1]
    assert dataset[2]["text_input"] in ("a red dog", "second")


def test_missing_and_broken_pictures(tmp_path: Path) -> None:
    write_images(tmp_path, ["x_1.jpg", "x_2.jpg", "x_3.png"])
    whole = (tmp_path / "x_2.jpg").read_bytes()
    (tmp_path / "x_2.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "x_3.png").write_bytes(b"<html>not a picture</html>")
    rows = [{"image": f"x_{i}", "caption": f"number {i}"} for i in ("1.jpg", "2.jpg", "3.png", "4.jpg")]
    ann = write_json(tmp_path / "train.json", rows)
    train = CaptionDataset(**options(tmp_path, ann))
    train.check_usable()
    reasons = [train[i]["skipped"][0][1].split(":")[0] for i in (1, 2, 3)]
    assert reasons == ["broken image", "broken image", "missing image"]
    assert all(train[i]["text_input"] == "number 1 jpg" for i in range(4))

    test = CaptionEvalDataset(**options(tmp_path, ann, split="test"))
    batch = test.collater([test[i] for i in range(4)])
    assert batch["readable"] == [True, False, False, False] and batch["image_id"] == [1, 2, 3, 4]
    assert batch["image"].shape == (4, 3, SIZE, SIZE) and not batch["image"][1:].any()
    assert [label for label, _ in batch["skipped"]] == ["train.json[1]", "train.json[2]", "train.json[3]"]
    with pytest.raises(AnnotationError, match=r"train\.json: no usable row among 4; .*missing image: elsewhere"):
        CaptionDataset(**options(Path("elsewhere"), ann)).check_usable()


def test_evaluation_groups_captions_by_picture(tmp_path: Path) -> None:
    write_images(tmp_path, ["x_1.png", "x_2.png"])
    rows = [
        {"image": "x_1.png", "caption": ["One.", ""]},
        {"image": "x_2.png", "caption": "Two"},
        {"image": "x_1.png", "caption": "three"},
        {"image_id": 9, "caption": "no picture"},
        {"image": "x_2.png"},
    ]
    dataset = CaptionEvalDataset(**options(tmp_path, write_json(tmp_path / "v.json", rows), split="val"))
    assert dataset.references() == [(1, "One."), (1, ""), (1, "three"), (2, "Two"), (9, "no picture")]
    assert [dataset[i]["image_id"] for i in range(len(dataset))] == [1, 2, 9]
    assert dataset[0]["text_input"] == "one"
    assert dataset[2]["readable"] is False and dataset[2]["skipped"] == [("v.json[3]", "missing key: image")]


def test_two_pictures_with_one_result_id(tmp_path: Path) -> None:
    rows = [{"image": "a_1.png", "caption": "a"}, {"image": "b_1.png", "caption": "b"}]
    with pytest.raises(AnnotationError, match=r"v\.json\[0\] and v\.json\[1\].*'a_1\.png' and 'b_1\.png'"):
        CaptionEvalDataset(**options(tmp_path, write_json(tmp_path / "v.json", rows)))


def test_several_files_and_lines(tmp_path: Path) -> None:
    write_images(tmp_path, ["x_1.png", "x_2.png"])
    first = write_json(tmp_path / "a.json", [{"image": "x_1.png", "caption": "a"}])
    second = tmp_path / "b.jsonl"
    second.write_text('{"image": "x_2.png", "caption": "b"}\n')
    dataset = CaptionDataset(**options(tmp_path, first, second, dataset_repeat_num=3))
    assert len(dataset) == 6
    assert [dataset[i]["text_input"] for i in range(6)] == ["a", "b"] * 3
    assert dataset[1]["instance_id"] == "b.jsonl:1"


def test_pictures_are_decoded_once_for_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, ["x_1.png"])
    ann = write_json(tmp_path / "a.json", [{"image": "x_1.png", "caption": "a"}] * 3)
    for name, expected in (("blip_image_eval", 1), ("blip2_image_train", 3)):
        processor = load_processor(name, {"image_size": SIZE})
        dataset = CaptionDataset(**options(tmp_path, ann, vis_processor=processor))
        decoded: list[Path] = []
        decode = dataset.decode
        monkeypatch.setattr(dataset, "decode", lambda path, d=decode, log=decoded: log.append(path) or d(path))
        for i in range(3):
            dataset[i]
        assert len(decoded) == expected
