"""Questions about pictures: the builders coco_vqa (VQAv2), ok_vqa (OK-VQA) and gqa.

Rows, in LAVIS' files: {"image": path, "question": str, "question_id": int or str, "answer": [str, ...]}; GQA has one
answer, a str. The key answers serves as well, and so do VQA's own answers, {"answer": str, ...}. GQA's released rows
{"imageId", "question", "answer"} by question id are read too.

A training split is one or more files of such rows. A sample is a row: its question (text_input), its different answers
(`answers`) with the share of the humans who gave each (`weights`), and one of them drawn by these weights
(`text_output`). Batches also have LAVIS' flat lists: `answer`, `weight` [sum of n] and `n_answers` [B].

An evaluation split is, in LAVIS' order: the rows (their answers may be absent), then if wished a list of the answers
to choose from (inference_method rank), then VQA's own files of questions and of answers, by which results are scored; where
these are absent, the rows' own answers are. Layout after LAVIS (salesforce/LAVIS, lavis/datasets/datasets/vqa_datasets.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.base_dataset import AnnotationError, BadSample, Batch, Row, Sample
from lavis.datasets.datasets.captions import ImageDataset, text_of


def answers_of(row: Row) -> list[str]:
    """Every answer of a row, one or a list of texts or of {"answer": text}, blank ones too; [] when it has none."""
    value = row.get("answer", row.get("answers"))
    entries = value if isinstance(value, list) else [value]
    found = [entry.get("answer") if isinstance(entry, Mapping) else entry for entry in entries]
    return [answer for answer in found if isinstance(answer, str)]


def image_of(row: Row) -> str:
    """The picture of a row: `image`, or GQA's `imageId` with .jpg. BadSample when it has neither."""
    if "image" not in row and isinstance(row.get("imageId"), str):
        return text_of({"image": f"{row['imageId']}.jpg"}, "image")
    return text_of(row, "image")


def question_id_of(row: Row, default: str) -> int | str:
    """The id of a question: `question_id`, else the row's key in its file, else `default`."""
    value = row.get("question_id", row.get("sample_id", default))
    return value if isinstance(value, (str, int)) and not isinstance(value, bool) else str(value)


class VQADataset(ImageDataset):
    """Training: one row, one question with its answers."""

    needs = "image, question and answer (a text or a list of texts)"
    scoring: ClassVar[str] = "vqa"  # how results are scored: vqa (many answers) or gqa (one)

    def parse(self, row: Row, label: str) -> Row:
        parsed = self._row(image_of(row), text_of(row, "question"), row, label)
        parsed["answers"] = [answer for answer in parsed["answers"] if answer.strip()]
        if not parsed["answers"]:
            raise BadSample("missing key: answer" if not {"answer", "answers"} & set(row) else "empty answer")
        return parsed

    def _row(self, image: str, question: str, row: Row, label: str) -> Row:
        key = question_id_of(row, label)
        return {"image": image, "image_id": key, "captions": [question], "answers": answers_of(row), "question_id": key}

    def load_text(self, row: Row, rng: np.random.RandomState) -> Sample:
        """text_input, the processed question, and the ids of a parsed row. BadSample for no question, in training."""
        question = self.text_processor(row["captions"][0], rng=rng) if row["captions"] else ""
        if self.training and not question:
            raise BadSample(f"empty question: nothing left of {row['captions'][0]!r} after processing")
        return {"text_input": question, "question_id": row["question_id"], "image_id": row["image_id"]}

    def load(self, index: int, rng: np.random.RandomState) -> Sample:
        row = self.rows[index]
        sample, _ = self.load_picture_and_text(row, rng)
        counts = Counter(row["answers"])
        weights = [count / len(row["answers"]) for count in counts.values()]
        answers = list(counts)
        drawn = answers[int(rng.choice(len(answers), p=weights))]
        return {**sample, "answers": answers, "weights": weights, "text_output": drawn}

    def collater(self, samples: Sequence[Sample]) -> Batch:
        batch = super().collater(samples)
        batch["answer"] = [answer for sample in samples for answer in sample["answers"]]
        batch["weight"] = torch.tensor([weight for sample in samples for weight in sample["weights"]])
        batch["n_answers"] = torch.tensor([len(sample["answers"]) for sample in samples])
        return batch


class VQAEvalDataset(VQADataset):
    """Evaluation: one sample per question, those of a picture next to each other. No row is left out."""

    training = False
    share_inputs = True  # questions about one picture in a batch are asked after encoding it once

    def __init__(self, *, ann_paths: Sequence[str | Path], **kwargs: Any) -> None:
        others = [Path(path) for path in ann_paths[1:]]
        self.answer_list = read_answer_list(others[0]) if others else None
        self.truth_files = others[1:]  # VQA's own files of questions and answers
        super().__init__(ann_paths=ann_paths[:1], **kwargs)

    def parse(self, row: Row, label: str) -> Row:
        try:
            return self._row(image_of(row), text_of(row, "question"), row, label)
        except BadSample as error:
            parsed = self._row("", "", row, label)
            return {**parsed, "captions": [], "problem": error.reason}

    def arrange(self, rows: Iterator[Row]) -> Iterable[Row]:
        return self.side_by_side(rows)

    def load(self, index: int, rng: np.random.RandomState) -> Sample:
        return self.load_picture_and_text(self.rows[index], rng)[0]

    def placeholder(self, index: int) -> Sample:
        return {**super().placeholder(index), "question_id": self.rows[index]["question_id"]}

    def collater(self, samples: Sequence[Sample]) -> Batch:
        return ImageDataset.collater(self, samples)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "answer_list": self.answer_list}

    def own_answers(self) -> dict[int | str, list[str]]:
        """{question id: answers} of the rows that have answers."""
        return {row["question_id"]: row["answers"] for row in self.rows if row["answers"]}


class GQADataset(VQADataset):
    """VQADataset, scored by its one answer."""

    scoring = "gqa"


class GQAEvalDataset(VQAEvalDataset):
    """VQAEvalDataset, scored by its one answer."""

    scoring = "gqa"


def read_answer_list(path: Path) -> list[str]:
    """The answers to choose from: a JSON list of texts. AnnotationError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise AnnotationError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, list) or not content or not all(isinstance(answer, str) and answer for answer in content):
        what = "the second file of an evaluation split, the answers to choose from"
        raise AnnotationError(f"{path}: {what}; accepted: a JSON list of texts")
    return content


@registry.register_builder("coco_vqa")
class CocoVQABuilder(BaseDatasetBuilder):
    """VQAv2, or any questions in its layout. `type: eval` is the published name of the same defaults."""

    name = "coco_vqa"
    train_dataset_cls: ClassVar[type[VQADataset]] = VQADataset
    eval_dataset_cls: ClassVar[type[VQAEvalDataset]] = VQAEvalDataset
    DATASET_CONFIG_DICT = dict.fromkeys(("default", "eval"), "configs/datasets/coco_vqa.yaml")


@registry.register_builder("ok_vqa")
class OKVQABuilder(CocoVQABuilder):
    """OK-VQA."""

    name = "ok_vqa"
    DATASET_CONFIG_DICT = {"default": "configs/datasets/ok_vqa.yaml"}


@registry.register_builder("gqa")
class GQABuilder(CocoVQABuilder):
    """GQA. Its published types differ in the files that they name, which a configuration does here."""

    name = "gqa"
    train_dataset_cls = GQADataset
    eval_dataset_cls = GQAEvalDataset
    DATASET_CONFIG_DICT = dict.fromkeys(("default", "balanced_val", "balanced_testdev"), "configs/datasets/gqa.yaml")
