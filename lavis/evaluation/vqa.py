"""Accuracies of short answers: VQAv2 and OK-VQA against ten human answers, GQA against one.

Provenance: the rules and numbers of VQA's official evaluation (github.com/GT-Vision-Lab/VQA) as LAVIS carries it, quirks
included: punctuation is dropped where it touches a space (or where the text has a number such as 10,000) and becomes a
space elsewhere; of more than 32 periods the rest stay; the humans' answers keep case and articles, and their punctuation
is normalised only where they disagree. What differs: a question without a prediction counts as answered by "" and is
reported, where the official code stops; ids may be text, and 7 and "7" are the same.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis.evaluation.captions.ground_truth import some
from lavis.evaluation.files import read_json

logger = logging.getLogger(__name__)

DECIMALS = 2  # of percentages, as published
AGREEING = 3  # humans who give an answer for it to be wholly right

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")  # not that of 1.5
MOST_PERIODS = 32  # the official code passes re.UNICODE, which is 32, where the number of replacements goes
NUMBER_WITH_COMMA = re.compile(r"\d,\d")

ARTICLES = ("a", "an", "the")
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}

# a word that lacks one of its apostrophes gets it back: couldnt've and couldn'tve are couldn't've
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _missing_one(word: str) -> list[str]:
    """The word without one of its apostrophes, once for each."""
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {short: word for word in _CONTRACTIONS.split() for short in _missing_one(word)} | {"somebody'd": "somebodyd"}


def normalise_punctuation(text: str) -> str:
    """The text without its punctuation; a colon, an apostrophe and the point of a number stay."""
    number = NUMBER_WITH_COMMA.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        apart = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if apart or number else " ")
    return PERIOD.sub("", out, count=MOST_PERIODS)


def normalise_words(text: str) -> str:
    """Lower case, single spaces, digits for number words, no articles, apostrophes where they were left out."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise_answer(text: str) -> str:
    """A predicted answer as it is compared."""
    return normalise_words(normalise_punctuation(text))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy in [0, 1] of a prediction: the mean, over the humans, of min(1, others who say so / 3).

    ValueError without answers.
    """
    if not answers:
        raise ValueError("a question without answers cannot be scored")
    said = normalise_answer(prediction.replace("\n", " ").replace("\t", " ").strip())
    if len(set(answers)) > 1:
        answers = [normalise_punctuation(answer) for answer in answers]
    agree = [answer == said for answer in answers]
    total = sum(agree)
    return sum(min(1.0, (total - own) / AGREEING) for own in agree) / len(answers)


def vqa_metrics(
    ground_truth: Mapping[Any, Mapping[str, Any]], results: Iterable[Mapping[str, Any]], *, per_question: bool = False
) -> dict[str, Any]:
    """Score rows {"question_id", "answer"} against {question id: {"answers", "question_type", "answer_type"}}.

    Answers are texts, or mappings with the key answer; the types may be absent. Returns percentages: `overall`, also as
    `agg_metrics`, `perAnswerType` and `perQuestionType` {type: accuracy}, `num_missing` (questions without a row), and
    with `per_question` also `per_question` {id: accuracy}. ValueError for no question, a question without answers, two
    rows of one question, a row of an unknown question or of another layout.
    """
    predictions, missing = _match(ground_truth, results)
    each = {}
    for key, entry in ground_truth.items():
        if not entry.get("answers"):
            raise ValueError(f"question {key!r} of the ground truth has no answers")
        each[key] = vqa_accuracy(predictions[key], [_text(answer) for answer in entry["answers"]])
    overall = _percentage(each.values())
    output: dict[str, Any] = {"overall": overall, "agg_metrics": overall}
    for name, kind in (("perAnswerType", "answer_type"), ("perQuestionType", "question_type")):
        groups: dict[str, list[float]] = {}
        for key, value in each.items():
            if ground_truth[key].get(kind) is not None:
                groups.setdefault(str(ground_truth[key][kind]), []).append(value)
        output[name] = {group: _percentage(values) for group, values in groups.items()}
    output["num_missing"] = missing
    if per_question:
        output["per_question"] = {key: round(100 * value, DECIMALS) for key, value in each.items()}
    return output


def gqa_metrics(
    ground_truth: Mapping[Any, str], results: Iterable[Mapping[str, Any]], *, normalise: bool = True
) -> dict[str, Any]:
    """Share of rows {"question_id", "answer"} that equal the one answer of {question id: answer}, in per cent.

    Predictions are normalised (`normalise`: not those that were chosen from a list), the ground truth is not. Returns
    `acc`, also as `agg_metrics`, and `num_missing`. ValueError as `vqa_metrics`.
    """
    predictions, missing = _match(ground_truth, results)
    prepare = normalise_answer if normalise else str
    correct = [prepare(predictions[key]) == answer for key, answer in ground_truth.items()]
    accuracy = 100 * sum(correct) / len(correct)
    return {"acc": accuracy, "agg_metrics": accuracy, "num_missing": missing}


def read_annotations(files: Iterable[str | Path]) -> dict[Any, dict[str, Any]]:
    """{question id: {"answers", "question_type", "answer_type"}} of VQA's annotation file, wherever it stands among `files`.

    Format: {"annotations": [{"question_id", "question_type", "answer_type", "answers": [{"answer"}]}]}; files of
    questions are passed over. ValueError where no file is one, or an entry is of another layout.
    """
    seen = []
    for file in files:
        content = read_json(file)
        keys = sorted(content) if isinstance(content, Mapping) else []
        seen.append(f"{file} has {', '.join(keys) or 'no keys'}")
        if "annotations" in keys:
            try:
                return {entry["question_id"]: _entry(entry) for entry in content["annotations"]}
            except (KeyError, TypeError) as error:
                expected = '{"question_id", "question_type", "answer_type", "answers": [{"answer"}]}'
                raise ValueError(f"{file}: an annotation is not {expected}: {error!r}") from error
    raise ValueError(f"no file of VQA answers, which has the key annotations: {'; '.join(seen)}")


def _entry(annotation: Mapping[str, Any]) -> dict[str, Any]:
    types = {kind: annotation.get(kind) for kind in ("question_type", "answer_type")}
    return {"answers": [_text(answer) for answer in annotation["answers"]], **types}


def _text(answer: Any) -> str:
    return str(answer["answer"] if isinstance(answer, Mapping) else answer)


def _percentage(values: Iterable[float]) -> float:
    numbers = list(values)
    return round(100 * float(sum(numbers)) / len(numbers), DECIMALS)


def _match(ground_truth: Mapping[Any, Any], results: Iterable[Mapping[str, Any]]) -> tuple[dict[Any, str], int]:
    """{id of the ground truth: predicted answer}, and how many had none."""
    if not ground_truth:
        raise ValueError("the ground truth holds no question")
    keys = {str(key): key for key in ground_truth}
    found: dict[str, str] = {}
    for index, row in enumerate(results):
        if not isinstance(row, Mapping) or "question_id" not in row or not isinstance(row.get("answer"), str):
            raise ValueError(f'result {index}: {str(row)[:120]} is not a row {{"question_id", "answer": text}}')
        key = str(row["question_id"])
        if key in found:
            raise ValueError(f"results hold question_id {row['question_id']!r} twice; one answer per question is scored")
        found[key] = row["answer"]
    strangers = [key for key in found if key not in keys]
    if strangers:
        known = some(ground_truth, limit=3)
        raise ValueError(f"results for questions that the ground truth does not have: {some(strangers)}; it has {known}")
    absent = [key for text, key in keys.items() if text not in found]
    if absent:
        count = f"{len(absent)} of {len(ground_truth)}"
        logger.warning("%s questions have no result and count as answered by nothing: %s", count, some(absent))
    return {key: found.get(text, "") for text, key in keys.items()}, len(absent)
