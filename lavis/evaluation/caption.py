"""Caption metrics: BLEU-1..4, ROUGE-L and CIDEr everywhere, METEOR and SPICE where Java and their files are.

Provenance: the numbers of pycocoevalcap's COCOEvalCap over the whole ground truth. What differs: the tokens come
from lavis/evaluation/tokenizer.py instead of a Java process, ids may be text, and an id without a prediction
scores as an empty caption instead of failing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from lavis.common.errors import unknown
from lavis.evaluation import scorers
from lavis.evaluation.ground_truth import Id, build_ground_truth, read_references, some
from lavis.evaluation.scorers import METRICS
from lavis.evaluation.tokenizer import tokenize_captions

__all__ = ["METRICS", "build_ground_truth", "caption_metrics"]

logger = logging.getLogger(__name__)
_told: set[str] = set()  # reasons for an absent metric that were logged


def caption_metrics(
    ground_truth: Mapping[str, Any] | str | os.PathLike[str],
    results: Iterable[Mapping[str, Any]],
    *,
    metrics: Iterable[str] = METRICS,
    per_sample: bool = False,
) -> dict[str, Any]:
    """Score rows {"image_id", "caption"} against a COCO caption file (or its content).

    Returns Bleu_1..Bleu_4, ROUGE_L, CIDEr, METEOR, SPICE as asked; `agg_metrics`, CIDEr + Bleu_4, when both are;
    `num_missing`, the ids without a row, which score as empty captions; `unavailable` {metric: what it lacks} for
    a metric that cannot run here; with `per_sample` also `per_sample` {id: {metric: score}}. Ids of the ground
    truth and of the rows may be text or ints; 7 and "7" are the same.

    ValueError for two rows of one id, a row of an unknown id, a row or file of another layout, an unknown metric.
    """
    wanted = tuple(metrics)
    for name in wanted:
        if name not in METRICS:
            raise ValueError(unknown("caption metric", name, METRICS))
    references = read_references(ground_truth)
    predictions, num_missing = _match(references, results)
    tokens = tokenize_captions(references), tokenize_captions({key: [text] for key, text in predictions.items()})
    output: dict[str, Any] = {}
    each: dict[Id, dict[str, float]] = {key: {} for key in references}
    unavailable: dict[str, str] = {}
    for name in wanted:
        try:
            score = scorers.score(name, *tokens)
        except scorers.MetricUnavailable as error:
            unavailable[name] = str(error)
            _tell(name, str(error))
            continue
        output.update(score.corpus)
        for metric, values in score.each.items():
            for key, value in zip(references, values, strict=True):
                each[key][metric] = value
    if "CIDEr" in output and "Bleu_4" in output:
        output["agg_metrics"] = output["CIDEr"] + output["Bleu_4"]
    output["num_missing"] = num_missing
    if unavailable:
        output["unavailable"] = unavailable
    if per_sample:
        output["per_sample"] = each
    return output


def _match(references: Mapping[Id, Any], results: Iterable[Mapping[str, Any]]) -> tuple[dict[Id, str], int]:
    """{id of the ground truth: predicted caption} in its order, and how many had none."""
    keys = {str(key): key for key in references}
    if len(keys) < len(references):
        twice = [key for key in references if keys[str(key)] != key]
        raise ValueError(f"ground truth has ids that differ by type only: {some(twice)}")
    found: dict[str, str] = {}
    for index, row in enumerate(results):
        if not isinstance(row, Mapping) or "image_id" not in row or not isinstance(row.get("caption"), str):
            raise ValueError(f'result {index}: {str(row)[:120]} is not a row {{"image_id", "caption": text}}')
        key = str(row["image_id"])
        if key in found:
            raise ValueError(f"results hold image_id {row['image_id']!r} twice; one caption per id is scored")
        found[key] = row["caption"]
    strangers = [key for key in found if key not in keys]
    if strangers:
        known = some(references, limit=3)
        raise ValueError(f"results for ids that the ground truth does not list: {some(strangers)}; it lists {known}")
    absent = [key for text, key in keys.items() if text not in found]
    if absent:
        count = f"{len(absent)} of {len(references)}"
        logger.warning("%s ids have no result and score as empty captions: %s", count, some(absent))
    return {key: found.get(text, "") for text, key in keys.items()}, len(absent)


def _tell(metric: str, reason: str) -> None:
    """Log once per process why a metric is absent."""
    if f"{metric} {reason}" not in _told:
        _told.add(f"{metric} {reason}")
        logger.warning("%s is not computed: %s", metric, reason)
