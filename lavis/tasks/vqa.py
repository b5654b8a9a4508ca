"""Questions about pictures: training on answers, and answers scored as VQAv2, OK-VQA or GQA score them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from lavis.common import dist_utils
from lavis.common.errors import ConfigError, unknown
from lavis.common.registry import registry
from lavis.evaluation.captions.ground_truth import some
from lavis.evaluation.vqa import gqa_metrics, read_annotations, vqa_metrics
from lavis.tasks.base_task import BaseTask, Row, batch_length, count_samples, gather_rows, save_result

logger = logging.getLogger(__name__)

METHODS = ("generate", "rank")
CAPTION_LENGTH = 8  # the default of run.min_len, which is that of captions


@registry.register_task("vqa")
@registry.register_task("gqa")
class VQATask(BaseTask):
    """One class for all: how answers are scored the dataset says (`scoring`), and `run.prompt` how a question is put."""

    def __init__(self, run_cfg: DictConfig) -> None:
        super().__init__(run_cfg)
        self.prompt = run_cfg.prompt or ""
        if self.prompt and "{}" not in self.prompt:
            raise ConfigError(f"run.prompt {self.prompt!r} has no place for the question; accepted: a text with {{}}, or null")
        if run_cfg.inference_method not in METHODS:
            raise ConfigError(unknown("run.inference_method", run_cfg.inference_method, METHODS))
        if run_cfg.inference_method == "generate" and run_cfg.min_len >= CAPTION_LENGTH:
            logger.warning("run.min_len is %d, a caption's: short answers want max_len 10 and min_len 1", run_cfg.min_len)
        self.answer_list: list[str] | None = None
        self._truth: tuple[Any, dict[Any, Any] | None] | None = None  # of which dataset, and what it holds

    def train_step(self, model: Any, samples: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """The loss of `text_output`, the drawn answer, behind the question in the format of `run.prompt`."""
        if samples.get("text_output") is None:
            raise ConfigError("run.task vqa trains on questions with answers, as coco_vqa, ok_vqa and gqa have them")
        questions = samples["text_input"]
        if self.prompt:
            questions = [self.prompt.format(question) for question in questions]
        return model({**samples, "text_input": questions})

    def before_evaluation(self, *, model: Any, dataset: Any) -> None:
        """Finds what answers are chosen from, and reads what they are scored by before the first is given."""
        super().before_evaluation(model=model, dataset=dataset)
        self.answer_list = getattr(dataset, "answer_list", None)
        if self.run_cfg.inference_method == "rank" and not self.answer_list:
            where = f"dataset {dataset.name} has no list of answers; give it as the second file of the split {dataset.split}"
            raise ConfigError(f"run.inference_method is rank, but {where}, or use generate")
        self.truth(dataset)

    def truth(self, dataset: Any) -> dict[Any, Any] | None:
        """`ground_truth` of the dataset, read once, on the main process; None elsewhere and where nothing is to be scored."""
        if not self.run_cfg.report_metric or not dist_utils.is_main_process():
            return None
        if self._truth is None or self._truth[0] is not dataset:
            self._truth = dataset, ground_truth(dataset)
        return self._truth[1]

    @torch.no_grad()
    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[Row]:
        """A row {"question_id", "answer", "readable"} per sample; one that could not be read is answered by ""."""
        run = self.run_cfg
        answers = model.predict_answers(
            samples,
            num_beams=run.num_beams,
            inference_method=run.inference_method,
            max_len=run.max_len,
            min_len=run.min_len,
            num_ans_candidates=run.num_ans_candidates,
            answer_list=self.answer_list,
            prompt=self.prompt,
        )
        readable = samples.get("readable") or [True] * batch_length(samples)
        return [
            {"question_id": question_id, "answer": answer if good else "", "readable": bool(good)}
            for answer, question_id, good in zip(answers, samples["question_id"], readable, strict=True)
        ]

    def after_evaluation(
        self, rows: list[Row], *, split_name: str, epoch: int | str, result_dir: Path, dataset: Any
    ) -> dict[str, Any]:
        """Writes ``<split>_vqa_result.json`` and scores it: agg_metrics and, for VQA, an accuracy per type of answer and,
        under perQuestionType, of question.

        Of rows with one id, as a file gives that lists a question twice, the first is kept; the others are counted as
        num_duplicates where there are any.
        """
        gathered = gather_rows(rows)
        first: dict[Any, Row] = {}
        for row in gathered:
            first.setdefault(row["question_id"], row)
        rows = list(first.values())
        kept = [{"question_id": row["question_id"], "answer": row["answer"]} for row in rows]
        path = save_result(kept, result_dir=result_dir, name=f"{split_name}_vqa_result")
        counts = count_samples(rows, path=path, unreadable="count as answered by nothing")
        if len(gathered) > len(rows):
            counts["num_duplicates"] = len(gathered) - len(rows)
            logger.warning("%s: %d rows repeat a question_id; the first of each is scored", path, counts["num_duplicates"])
        metrics: dict[str, Any] = {"agg_metrics": 0.0}
        truth = self.truth(dataset)
        if truth is not None:
            if dataset.scoring == "gqa":
                metrics = gqa_metrics(truth, kept, normalise=self.run_cfg.inference_method == "generate")
            else:
                metrics = vqa_metrics(truth, kept)
                metrics = {**metrics.pop("perAnswerType"), **metrics}
        return {**dist_utils.broadcast_object(metrics), **counts}


def ground_truth(dataset: Any) -> dict[Any, Any] | None:
    """{question id: answers} of an evaluation dataset, as its scoring takes them: VQA's own file, else the rows' answers.

    None, with a warning, where there are no answers. ConfigError for rows of which only some have answers, for questions that
    VQA's own file does not list, for such a file that cannot be read, and where GQA's answers are more than one.
    """
    if dataset.truth_files:
        try:
            truth = read_annotations(dataset.truth_files)
        except ValueError as error:
            raise ConfigError(f"dataset {dataset.name}, {dataset.split}: {error}") from error
        known = {str(key) for key in truth}
        strangers = [row["question_id"] for row in dataset.rows if str(row["question_id"]) not in known]
        if strangers:
            counts = f"{len(strangers)} of the {len(dataset)} questions of {dataset.name}, {dataset.split}"
            files = ", ".join(str(file) for file in dataset.truth_files)
            raise ConfigError(f"{files}: no answers to {counts}: {some(strangers)}")
        return truth
    answers = dataset.own_answers()
    if not answers:
        logger.warning("dataset %s, %s has no answers: results are written, not scored", dataset.name, dataset.split)
        return None
    if len(answers) < len(dataset):
        counts = f"{len(answers)} of {len(dataset)} questions have answers"
        raise ConfigError(f"dataset {dataset.name}, {dataset.split}: {counts}; give all, or set run.report_metric: false")
    if dataset.scoring == "gqa":
        several = next((key for key, given in answers.items() if len(given) > 1), None)
        if several is not None:
            raise ConfigError(f"dataset {dataset.name}: question {several!r} has several answers; scored as GQA it has one")
        return {key: given[0] for key, given in answers.items()}
    return {key: {"answers": given} for key, given in answers.items()}
