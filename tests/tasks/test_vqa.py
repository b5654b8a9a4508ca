"""The task vqa: what it asks of a model, writes and scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common import dist_utils
from lavis.common.config import ConfigError
from lavis.datasets.datasets.vqa import GQAEvalDataset, VQAEvalDataset
from lavis.processors import load_processor
from lavis.runners.evaluation import evaluate_dataset
from lavis.tasks import setup_task
from tests.datasets.files import options, write_images, write_json
from tests.distributed import run_distributed
from tests.runners.fakes import FakeModel, config

ASKED = {"task": "vqa", "num_beams": 2, "max_len": 10, "min_len": 1}


class Answerer(FakeModel):
    """Answers with the last word of the question; remembers what it was asked for."""

    def predict_answers(self, samples: Mapping[str, Any], **kwargs: Any) -> list[str]:
        self.asked = kwargs
        return [(text.split() or ["?"])[-1] for text in samples["text_input"]]

    def forward(self, samples: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        self.samples = samples
        return {"loss": self.shared.weight.sum()}


def dataset_of(
    folder: Path, *files: Path, cls: Any = VQAEvalDataset, rows: list[dict[str, Any]] | None = None, size: int = 16
) -> Any:
    write_images(folder, ["x_1.png", "x_2.png"])
    rows = rows or [
        {"image": "x_1.png", "question": "say red", "question_id": 11, "answer": ["red"] * 4},
        {"image": "x_2.png", "question": "say two", "question_id": 12, "answer": ["2", "3", "3", "3"]},
        {"image": "gone.png", "question": "say no", "question_id": 13, "answer": ["no"] * 4},
    ]
    ann = write_json(folder / "val.json", rows)
    processors = {
        "vis_processor": load_processor("blip_image_eval", {"image_size": size}),
        "text_processor": load_processor("blip_question"),
    }
    return cls(**options(folder, ann, *files, split="val", name="coco_vqa", **processors))


def task_of(folder: Path, **run: Any) -> Any:
    return setup_task(config(folder / "out", **{**ASKED, **run}))


def evaluate(task: Any, dataset: Any, folder: Path) -> tuple[dict[str, Any], Any]:
    model = Answerer()
    cpu = torch.device("cpu")
    arguments = {"task": task, "model": model, "run_cfg": task.run_cfg, "device": cpu, "name": "val", "epoch": 0}
    return evaluate_dataset(dataset, output_dir=folder / "out", **arguments), model


def test_a_question_twice_is_counted_and_one_without_answers_is_told_first(tmp_path: Path) -> None:
    rows = [
        {"image": "x_1.png", "question": f"say {word}", "question_id": key} for word, key in (("red", 1), ("two", 2), ("no", 1))
    ]
    truth = [{"question_id": key, "answers": [{"answer": "red"}] * 4} for key in (1, 2)]
    answers, file = write_json(tmp_path / "list.json", ["red"]), write_json(tmp_path / "truth.json", {"annotations": truth})
    metrics, _ = evaluate(task_of(tmp_path), dataset_of(tmp_path, answers, file, rows=rows), tmp_path)
    assert (metrics["num_duplicates"], metrics["num_samples"], metrics["overall"]) == (1, 2, 50.0), "the first counts"
    stranger = dataset_of(tmp_path, answers, file, rows=[*rows[:2], {**rows[2], "question_id": 7}])
    with pytest.raises(ConfigError, match=r"truth\.json: no answers to 1 of the 3 questions of coco_vqa, val: 7"):
        task_of(tmp_path).before_evaluation(model=None, dataset=stranger)
    file.write_text(file.read_text()[:-9])
    with pytest.raises(ConfigError, match=r"truth\.json is not a whole JSON file"):
        task_of(tmp_path).before_evaluation(model=None, dataset=stranger)


def test_rows_and_metrics_without_annotation_files(tmp_path: Path) -> None:
    task = task_of(tmp_path, prompt="'Question: {} Short answer:'")
    metrics, model = evaluate(task, dataset_of(tmp_path), tmp_path)
    assert model.asked == {
        "num_beams": 2, "inference_method": "generate", "max_len": 10, "min_len": 1, "num_ans_candidates": 128,
        "answer_list": None, "prompt": "Question: {} Short answer:",
    }  # fmt: skip
    saved = json.loads((tmp_path / "out" / "result" / "val_vqa_result.json").read_text())
    assert {row["question_id"]: row["answer"] for row in saved} == {11: "red", 12: "two", 13: ""}
    assert all(set(row) == {"question_id", "answer"} for row in saved)
    expected = round(100 * (1 + 3 / 4 * 1 / 3 + 0) / 3, 2)
    assert metrics["agg_metrics"] == metrics["overall"] == expected
    assert (metrics["num_samples"], metrics["num_unreadable"], metrics["num_missing"]) == (3, 1, 0)
    line = json.loads((tmp_path / "out" / "evaluate.txt").read_text())
    assert line["val"] == metrics and line["dataset"] == "coco_vqa"


def test_annotation_files_give_the_accuracy_per_type(tmp_path: Path) -> None:
    said = {11: ("other", "what", "red"), 12: ("number", "how many", "2"), 13: ("yes/no", "is", "no")}
    annotations = [
        {"question_id": key, "answer_type": kind, "question_type": question, "answers": [{"answer": answer}] * 10}
        for key, (kind, question, answer) in said.items()
    ]
    files = [
        write_json(tmp_path / "answer_list.json", ["red", "2"]),
        write_json(tmp_path / "questions.json", {"questions": []}),
        write_json(tmp_path / "annotations.json", {"annotations": annotations}),
    ]
    metrics, model = evaluate(task_of(tmp_path), dataset_of(tmp_path, *files), tmp_path)
    assert (metrics["other"], metrics["number"], metrics["yes/no"]) == (100.0, 100.0, 0.0)
    assert metrics["perQuestionType"] == {"what": 100.0, "how many": 100.0, "is": 0.0}
    assert metrics["agg_metrics"] == 66.67 and model.asked["answer_list"] == ["red", "2"] and model.asked["prompt"] == ""
    with pytest.raises(ValueError, match=r"no file of VQA answers.*questions\.json has questions"):
        evaluate(task_of(tmp_path), dataset_of(tmp_path, *files[:2]), tmp_path)


def test_gqa_is_scored_by_its_one_answer(tmp_path: Path) -> None:
    rows = [
        {"image": "x_1.png", "question": "say the Car.", "question_id": 1, "answer": "car"},
        {"image": "x_1.png", "question": "say Two", "question_id": 2, "answer": "two"},
    ]
    dataset = dataset_of(tmp_path, cls=GQAEvalDataset, rows=rows)
    assert evaluate(task_of(tmp_path, task="gqa"), dataset, tmp_path)[0]["agg_metrics"] == 50.0
    several = dataset_of(tmp_path, cls=GQAEvalDataset, rows=[{**rows[0], "answer": ["car", "cars"]}])
    with pytest.raises(ConfigError, match="question 1 has several answers"):
        evaluate(task_of(tmp_path), several, tmp_path)


def test_rank_needs_answers_to_choose_from(tmp_path: Path) -> None:
    task = task_of(tmp_path, inference_method="rank", num_ans_candidates=7)
    with pytest.raises(ConfigError, match="dataset coco_vqa has no list of answers; .* second file of the split val"):
        evaluate(task, dataset_of(tmp_path), tmp_path)
    dataset = dataset_of(tmp_path, write_json(tmp_path / "list.json", ["red"]))
    assert dataset.identity()["answer_list"] == ["red"], "another list gives other answers"
    model = evaluate(task, dataset, tmp_path)[1]
    assert (model.asked["inference_method"], model.asked["num_ans_candidates"]) == ("rank", 7)


def test_answers_without_truth_are_written_not_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"image": "x_1.png", "question": "say red", "question_id": key} for key in (1, 2)]
    metrics, _ = evaluate(task_of(tmp_path), dataset_of(tmp_path, rows=rows), tmp_path)
    assert metrics == {"agg_metrics": 0.0, "num_samples": 2, "num_unreadable": 0} and "not scored" in caplog.text
    half = dataset_of(tmp_path, rows=[{**rows[0], "answer": ["red"]}, rows[1]])
    with pytest.raises(ConfigError, match="1 of 2 questions have answers"):
        evaluate(task_of(tmp_path), half, tmp_path)
    assert evaluate(task_of(tmp_path, report_metric="false"), half, tmp_path)[0]["agg_metrics"] == 0.0


def test_training_asks_in_the_format_of_evaluation(tmp_path: Path) -> None:
    model, task = Answerer(), task_of(tmp_path, prompt="'Question: {} Short answer:'")
    batch = {"modality": "image", "text_input": ["what?"], "text_output": ["red"]}
    task.train_step(model, batch)
    assert model.samples == {**batch, "text_input": ["Question: what? Short answer:"]}
    with pytest.raises(ConfigError, match="trains on questions with answers"):
        task.train_step(model, {"modality": "image", "text_input": ["a caption"]})


def test_mistakes_in_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="run.prompt 'Question:' has no place for the question"):
        task_of(tmp_path, prompt="'Question:'")
    with pytest.raises(ConfigError, match="Unknown run.inference_method 'ranks'. Did you mean 'rank'"):
        task_of(tmp_path, inference_method="ranks")
    assert "short answers want" not in caplog.text
    task_of(tmp_path, min_len=8)
    assert "short answers want" in caplog.text


def evaluate_share(folder: str) -> dict[str, Any]:
    root = Path(folder)
    metrics = evaluate(task_of(root / str(dist_utils.get_rank())), dataset_of(root / str(dist_utils.get_rank())), root)[0]
    return metrics


@pytest.mark.slow
def test_unequal_ranks_score_together(tmp_path: Path) -> None:
    """3 questions for 2 processes, one of which has a batch of 1: the metrics are those of one process."""
    for name in ("0", "1", "one"):
        (tmp_path / name).mkdir()
    alone, _ = evaluate(task_of(tmp_path / "one"), dataset_of(tmp_path / "one"), tmp_path / "one")
    assert run_distributed(evaluate_share, str(tmp_path), folder=tmp_path / "returned") == [alone, alone]
    rows = json.loads((tmp_path / "out" / "result" / "val_vqa_result.json").read_text())
    assert [row["question_id"] for row in rows] == [11, 12, 13]
