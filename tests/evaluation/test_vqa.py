from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavis.evaluation import vqa
from lavis.processors import load_processor
from tests.parity import count_records, parity_dir


@pytest.fixture(scope="module")
def records() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((parity_dir() / "vqa" / "vqa_scoring.json").read_text())
    return content


def rows(answers: dict[Any, str]) -> list[dict[str, Any]]:
    return [{"question_id": key, "answer": answer} for key, answer in answers.items()]


def test_recorded_normalisation(records: dict[str, Any]) -> None:
    for text, expected in records["normalise"].items():
        assert vqa.normalise_punctuation(text) == expected["punct"], text
        assert vqa.normalise_answer(text) == expected["full"], text
    processor = load_processor("blip_question")
    for question, processed in records["question_processor"].items():
        assert processor(question) == processed
    count_records(len(records["normalise"]) + len(records["question_processor"]))


def test_recorded_accuracies(records: dict[str, Any]) -> None:
    given = records["vqa"]
    predictions = rows({int(key): entry["answer"] for key, entry in given["pred"].items()})
    metrics = vqa.vqa_metrics(given["gt"], predictions, per_question=True)
    for name, expected in given["accuracy"].items():
        assert metrics[name] == expected, name
    assert metrics["per_question"] == given["per_question"]
    assert metrics["agg_metrics"] == given["accuracy"]["overall"] and metrics["num_missing"] == 0
    gqa = records["gqa"]
    for answer, truth, correct in zip(gqa["pred"], gqa["gt"], gqa["correct"], strict=True):
        assert vqa.gqa_metrics({1: truth}, rows({1: answer}))["acc"] == 100.0 * correct
    count_records(len(given["gt"]) + len(gqa["gt"]))


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),
        ("her hes", "her he's"),
        ("10,000 t-shirts", "10000 tshirts"),  # a number with a comma: all punctuation is dropped
        ("." * 34, ".."),  # no more than 32 periods
        ("3.5.", "3.5"),
        ("The\tTwo  zeros: none", "2 zeros: 0"),
    ],
)
def test_quirks(text: str, normalised: str) -> None:
    assert vqa.normalise_answer(text) == normalised


def test_answers_that_all_agree_keep_their_punctuation() -> None:
    assert vqa.vqa_accuracy("t-shirt", ["t-shirt"] * 10) == 0.0
    assert vqa.vqa_accuracy("t-shirt", ["t-shirt"] * 9 + ["shirt"]) == 1.0
    assert vqa.vqa_accuracy("red", ["red", "red", "blue"]) == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)
    with pytest.raises(ValueError, match="without answers"):
        vqa.vqa_accuracy("red", [])


def test_missing_and_unknown_questions(caplog: pytest.LogCaptureFixture) -> None:
    truth = {1: {"answers": ["red"] * 4, "answer_type": "other"}, "2": {"answers": ["", "a", "b"]}}
    metrics = vqa.vqa_metrics(truth, rows({"1": "red"}))
    assert metrics["num_missing"] == 1 and "1 of 2 questions have no result" in caplog.text
    assert metrics["perAnswerType"] == {"other": 100.0} and metrics["perQuestionType"] == {}
    for results, message in (
        (rows({1: "red", 3: "x"}), "does not have: '3'"),
        ([*rows({1: "red"}), *rows({"1": "blue"})], "'1' twice"),
        ([{"question_id": 1}], "result 0: .* is not a row"),
    ):
        with pytest.raises(ValueError, match=message):
            vqa.vqa_metrics(truth, results)
    with pytest.raises(ValueError, match="holds no question"):
        vqa.gqa_metrics({}, [])
    with pytest.raises(ValueError, match="question 1 of the ground truth has no answers"):
        vqa.vqa_metrics({1: {"answers": []}}, [])


def test_gqa_compares_with_the_raw_answer() -> None:
    truth = {1: "The car", 2: "car", 3: "two"}
    assert vqa.gqa_metrics(truth, rows({1: "the car", 2: "The car.", 3: "two"}))["acc"] == pytest.approx(100 / 3)
    assert vqa.gqa_metrics(truth, rows({1: "The car", 2: "the car", 3: "two"}), normalise=False)["acc"] == pytest.approx(200 / 3)


def test_annotation_files(tmp_path: Path) -> None:
    questions, answers, other = (tmp_path / f"{name}.json" for name in ("questions", "answers", "other"))
    questions.write_text(json.dumps({"questions": [{"question_id": 5, "question": "?"}]}))
    entry = {"question_id": 5, "question_type": "what", "answer_type": "other", "answers": [{"answer": "a", "answer_id": 1}]}
    answers.write_text(json.dumps({"annotations": [entry]}))
    expected = {5: {"answers": ["a"], "question_type": "what", "answer_type": "other"}}
    assert vqa.read_annotations([questions, answers]) == vqa.read_annotations([answers, questions]) == expected
    other.write_text(json.dumps({"annotations": [{"question_id": 5}]}))
    with pytest.raises(ValueError, match=r"other\.json: an annotation is not .*answers"):
        vqa.read_annotations([other])
    with pytest.raises(ValueError, match=r"no file of VQA answers.*questions\.json has questions"):
        vqa.read_annotations([questions])
