"""train.py and evaluate.py on small files in LAVIS' VQAv2 layout, bad rows among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import evaluate
import train
from tests import tiny
from tests.datasets.files import write_images, write_json
from tests.test_end_to_end import call

NUMBER = 7  # questions of the evaluation, of which two cannot be asked


def write_files(data: Path) -> None:
    """Pictures, rows of both splits, and VQA's own files of questions and of answers."""
    write_images(data / "images", [f"val_{i}.jpg" for i in range(4)])
    (data / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    rows = [
        {"image": f"val_{i % 4}.jpg", "question": f"What color is number {i}?", "question_id": 100 + i, "dataset": "vqa"}
        for i in range(NUMBER)
    ]
    train_rows = [{**row, "answer": ["red"] * 7 + ["blue"] * 3} for row in rows]
    bad = [{**train_rows[0], "answer": []}, {**train_rows[0], "question": ""}, {**train_rows[0], "image": "broken.jpg"}]
    write_json(data / "vqa_train.json", [*bad, *train_rows])
    rows[2]["image"] = "broken.jpg"
    del rows[3]["image"]
    write_json(data / "vqa_val_eval.json", rows)
    write_json(data / "answer_list.json", ["red", "blue", "a red square"])
    questions = [{key: row[key] for key in ("question", "question_id")} for row in rows]
    write_json(data / "questions.json", {"task_type": "Open-Ended", "questions": questions})
    annotations = [
        {
            "question_id": row["question_id"],
            "question_type": "what color",
            "answer_type": "number" if place == 6 else "other",
            "answers": [{"answer": "red", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)],
        }
        for place, row in enumerate(rows)
    ]
    write_json(data / "annotations.json", {"annotations": annotations})


def write_config(folder: Path, **run: Any) -> Path:
    """The layout of the published vqav2 file, with a training split beside."""
    data = folder / "data"
    names = ("vqa_val_eval", "answer_list", "questions", "annotations")
    config = {
        "model": tiny.model_config(folder / "model", "blip2_t5", max_txt_len=32),
        "datasets": {
            "coco_vqa": {
                "type": "eval",
                "vis_processor": {split: {"name": "blip_image_eval", "image_size": 28} for split in ("train", "eval")},
                "text_processor": {split: {"name": "blip_question"} for split in ("train", "eval")},
                "build_info": {
                    "annotations": {
                        "train": {"storage": [str(data / "vqa_train.json")]},
                        "val": {"url": [f"https://x/{name}.json" for name in names]}
                        | {"storage": [str(data / f"{name}.json") for name in names]},
                    },
                    "images": {"storage": str(data / "images")},
                },
            }
        },
        "run": {
            "task": "vqa",
            "max_epoch": 1,
            "batch_size_train": 4,
            "batch_size_eval": 3,
            "num_workers": 0,
            "max_len": 10,
            "min_len": 1,
            "num_beams": 2,
            "inference_method": "generate",
            "prompt": "Question: {} Short answer:",
            "valid_splits": ["val"],
            "test_splits": ["val"],
            "tensorboard": False,
            "output_dir": str(folder / "out"),
            **run,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vqa")
    write_files(folder / "data")
    assert train.main(["--cfg-path", str(write_config(folder))]) == 0
    return folder


def test_training_takes_good_rows_and_names_bad_ones(trained: Path) -> None:
    log = lines(trained / "out" / "log.txt")
    assert log[-1]["finished"] and log[-1]["dropped_at_reading"] == {"coco_vqa/train": 2}
    assert "broken image" in json.dumps(log[-1]["skipped"])
    assert (trained / "out" / "checkpoint_0.pth").is_file()
    evaluated = lines(trained / "out" / "evaluate.txt")
    assert evaluated[0]["epoch"] == 0 and evaluated[0]["val"]["num_samples"] == NUMBER


@pytest.mark.parametrize("method", ["generate", "rank"])
def test_evaluation_answers_every_question(trained: Path, method: str) -> None:
    out = trained / method
    options = [f"run.output_dir={out}", f"run.inference_method={method}", "model.load_finetuned=true"]
    options.append(f"model.finetuned={trained / 'out' / 'checkpoint_0.pth'}")
    assert evaluate.main(["--cfg-path", str(trained / "config.yaml"), "--options", *options]) == 0
    rows = json.loads((out / "result" / "val_vqa_result.json").read_text())
    answers = {row["question_id"]: row["answer"] for row in rows}
    assert sorted(answers) == [100 + i for i in range(NUMBER)] and len(rows) == NUMBER
    assert answers[102] == answers[103] == ""
    others = [answer for key, answer in answers.items() if key not in (102, 103)]
    if method == "rank":
        assert set(others) <= {"red", "blue", "a red square"}
    metrics = lines(out / "evaluate.txt")[-1]["val"]
    red = [float(answer == "red") for answer in others]
    assert metrics["agg_metrics"] == pytest.approx(round(100 * sum(red) / NUMBER, 2))
    assert {"other", "number", "perQuestionType"} <= set(metrics) and metrics["perQuestionType"].keys() == {"what color"}
    assert (metrics["num_samples"], metrics["num_unreadable"], metrics["num_missing"]) == (NUMBER, 2, 0)


def test_mistakes_are_told_before_anything_is_read(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = "datasets.coco_vqa.build_info.annotations.val.storage"
    data = trained / "data"
    mistakes = {
        "run.prompt='Question:'": "run.prompt 'Question:' has no place for the question",
        "run.inference_method=guess": "Unknown run.inference_method 'guess'",
        f"{split}=[{data}/vqa_val_eval.json,{data}/vqa_train.json]": "the second file of an evaluation split",
        f"{split}=[{data}/vqa_val_eval.json,{data}/gone.json]": "gone.json",
        "model.apply_lemmatizer=true": "spaCy",
    }
    for option, message in mistakes.items():
        arguments = ["--cfg-path", str(trained / "config.yaml"), "--options", option, f"run.output_dir={trained / 'mistake'}"]
        assert evaluate.main(arguments) == 2, option
        assert message in capsys.readouterr().err, option


@pytest.mark.slow
def test_two_processes_score_as_one(trained: Path) -> None:
    """7 questions in batches of 3: one process has more batches than the other."""
    found = []
    for processes in (1, 2):
        out = trained / f"processes{processes}"
        done = call("evaluate.py", trained / "config.yaml", f"run.output_dir={out}", processes=processes)
        assert done.returncode == 0, done.stdout + done.stderr
        rows = json.loads((out / "result" / "val_vqa_result.json").read_text())
        found.append((rows, lines(out / "evaluate.txt")[-1]))
    assert found[0] == found[1]
