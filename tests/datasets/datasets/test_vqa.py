from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.datasets.datasets.base_dataset import AnnotationError
from lavis.datasets.datasets.vqa import CocoVQABuilder, GQADataset, GQAEvalDataset, VQADataset, VQAEvalDataset
from lavis.processors import load_processor
from tests.datasets.files import SIZE, options, write_images, write_json

QUESTION = {"image": "x_1.png", "question": "What is this?!", "question_id": 11}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path, ["x_1.png", "x_2.png"])
    return tmp_path


def questions(folder: Path, *files: Path, split: str = "train", **kwargs: Any) -> dict[str, Any]:
    return options(folder, *files, split=split, text_processor=load_processor("blip_question"), **kwargs)


def test_training_rows(folder: Path) -> None:
    rows = [
        {**QUESTION, "answer": ["red", "red", "blue", "red"]},
        {**QUESTION, "answer": []},
        QUESTION,
        {**QUESTION, "answer": [" "]},
        {**QUESTION, "question": " ", "answer": "red"},
        {**QUESTION, "image": "gone.png", "answer": "red"},
        {**QUESTION, "question": "...", "answer": "red"},
        {"image": "x_2.png", "question": "which?", "answers": [{"answer": "green"}, {"answer": 3}]},
    ]
    dataset = VQADataset(**questions(folder, write_json(folder / "train.json", rows)))
    reasons = [reason for _, reason in dataset.dropped]
    assert reasons == ["empty answer", "missing key: answer", "empty answer", "empty question"]
    sample = dataset[0]
    assert (sample["text_input"], sample["question_id"]) == ("what is this?", 11)
    assert (sample["answers"], sample["weights"]) == (["red", "blue"], [0.75, 0.25])
    assert "missing image" in dataset[1]["skipped"][0][1] and "empty question" in dataset[2]["skipped"][0][1]
    other = dataset[3]
    assert (other["answers"], other["weights"], other["text_output"]) == (["green"], [1.0], "green")
    assert other["question_id"] == "train.json[7]"


def test_answers_are_drawn_by_their_weights_and_can_be_drawn_again(folder: Path) -> None:
    ann = write_json(folder / "train.json", [{**QUESTION, "answer": ["red"] * 8 + ["blue"] * 2}])
    dataset = VQADataset(**questions(folder, ann))
    drawn = [dataset[epoch, 0]["text_output"] for epoch in range(200)]
    assert drawn == [dataset[epoch, 0]["text_output"] for epoch in range(200)]
    assert 0.7 < drawn.count("red") / 200 < 0.9 and set(drawn) == {"red", "blue"}


def test_training_batches_have_the_published_flat_lists(folder: Path) -> None:
    rows = [{**QUESTION, "answer": ["a", "b", "a"]}, {**QUESTION, "image": "x_2.png", "answer": "c"}]
    dataset = VQADataset(**questions(folder, write_json(folder / "train.json", rows)))
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["answer"] == ["a", "b", "c"] and batch["n_answers"].tolist() == [2, 1]
    torch.testing.assert_close(batch["weight"], torch.tensor([2 / 3, 1 / 3, 1.0]))
    assert batch["answers"] == [["a", "b"], ["c"]] and batch["image"].shape == (2, 3, SIZE, SIZE)


def test_evaluation_keeps_every_row_and_encodes_a_picture_once(folder: Path) -> None:
    rows = [
        {**QUESTION, "question_id": 1, "answer": ["red"] * 10},
        {**QUESTION, "question_id": 2, "image": "x_2.png"},
        {**QUESTION, "question_id": 3},
        {**QUESTION, "question_id": 4, "image": "gone.png"},
        {"image": "x_1.png", "question_id": 5},
    ]
    choices = write_json(folder / "answers.json", ["red", "blue"])
    files = [write_json(folder / "val.json", rows), choices, folder / "q.json", folder / "a.json"]
    dataset = VQAEvalDataset(**questions(folder, *files, split="val"))
    assert dataset.answer_list == ["red", "blue"] and dataset.truth_files == files[2:]
    assert dataset.own_answers() == {1: ["red"] * 10}
    batch = dataset.collater([dataset[i] for i in range(5)])
    assert batch["question_id"] == [1, 3, 2, 4, 5] and batch["readable"] == [True, True, True, False, False]
    assert batch["image"].shape[0] == 3 and batch["image_index"].tolist() == [0, 0, 1, 2, 2]
    assert batch["text_input"] == ["what is this?"] * 3 + ["", ""]
    assert [reason for _, reason in batch["skipped"]] == [f"missing image: {folder / 'gone.png'}", "missing key: question"]
    assert "weight" not in batch


def test_second_file_must_be_a_list_of_answers(folder: Path) -> None:
    rows = write_json(folder / "val.json", [QUESTION])
    for content in ([], {"a": 1}, [QUESTION], ["red", 1]):
        with pytest.raises(AnnotationError, match=r"other\.json: the second file .* accepted: a JSON list of texts"):
            VQAEvalDataset(**questions(folder, rows, write_json(folder / "other.json", content), split="val"))
    (folder / "other.json").write_text("<html>")
    with pytest.raises(AnnotationError, match=r"other\.json: not valid JSON"):
        VQAEvalDataset(**questions(folder, rows, folder / "other.json", split="val"))


def test_gqa_rows_of_both_layouts(folder: Path) -> None:
    ours = write_json(folder / "a.json", [{**QUESTION, "answer": "red"}])
    released = write_json(folder / "b.json", {"07": {"imageId": "x_2", "question": "Is it?", "answer": "no"}})
    write_images(folder, ["x_2.jpg"])
    train = GQADataset(**questions(folder, ours, released))
    assert [train[i]["text_output"] for i in range(2)] == ["red", "no"]
    test = GQAEvalDataset(**questions(folder, released, split="val"))
    assert test.own_answers() == {"07": ["no"]} and test.answer_list is None and test[0]["readable"]


@pytest.mark.parametrize("name", ["coco_vqa", "ok_vqa", "gqa"])
def test_builders(folder: Path, name: str) -> None:
    ann = write_json(folder / "rows.json", [{**QUESTION, "answer": "red"}])
    choices = write_json(folder / "answers.json", ["red"])
    processors = {"train": {"name": "blip_image_eval", "image_size": 16}, "eval": {"name": "blip_image_eval", "image_size": 16}}
    config = {
        "vis_processor": processors,
        "text_processor": {"train": {"name": "blip_question"}, "eval": {"name": "blip_question"}},
        "build_info": {
            "annotations": {"train": {"storage": str(ann)}, "val": {"storage": [str(ann), str(choices)]}},
            "images": {"storage": str(folder)},
        },
    }
    builder = registry.get_builder_class(name)
    built = builder(config).build_datasets()
    assert builder(config).modality == "image" and set(built) == {"train", "val"}
    assert built["train"].scoring == built["val"].scoring == ("gqa" if name == "gqa" else "vqa")
    assert built["val"].answer_list == ["red"] and len(built["val"]) == 1
    config["build_info"]["annotations"]["val"]["storage"] = [str(ann), "gone.json"]
    with pytest.raises(ConfigError, match=rf"datasets\.{name}\.build_info\.annotations\.val\.storage: no file at .*gone\.json"):
        builder(config).build_datasets()


def test_published_type_is_known() -> None:
    assert CocoVQABuilder({"type": "eval"}).config["type"] == "eval"
    with pytest.raises(ConfigError, match="evall"):
        CocoVQABuilder({"type": "evall"})
