"""Caption metrics: BLEU-1..4, ROUGE-L and CIDEr everywhere, METEOR and SPICE where Java and their files are.

Provenance: the numbers of pycocoevalcap's COCOEvalCap over the whole ground truth. `CIDEr` is what pycocoevalcap calls so
and what captioning papers report; it is CIDEr-D, under which name it is found too. `CIDEr_plain`, if asked for, is CIDEr
without clipping and length penalty. What differs: tokens come from `tokenizer.py` instead of a Java process,
ids may be text, and an id without a prediction scores as an empty caption instead of failing.

What does not fit: two results of one id, results of unknown ids and images without a reference are errors; an id without a
result is counted, named, and scores as empty, so that it stays in every denominator.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import lavis
from lavis.common.errors import unknown
from lavis.evaluation.bootstrap import LEVEL, METHOD, confidence_intervals
from lavis.evaluation.captions.ground_truth import Id, build_ground_truth, read_references, some
from lavis.evaluation.captions.java_metrics import VERSIONS, MetricUnavailable, java_version, package_version
from lavis.evaluation.captions.scorers import EXTRA, METRICS, Score, Scorer
from lavis.evaluation.captions.tokenizer import tokenize_captions

__all__ = ["EXTRA", "METRICS", "CaptionScores", "build_ground_truth", "caption_metrics", "score_captions"]

logger = logging.getLogger(__name__)
_told: set[str] = set()  # reasons for an absent metric that were logged


@dataclass(frozen=True)
class CaptionScores:
    """An evaluation of captions: corpus scores, and everything they were computed from, by id of the ground truth."""

    metrics: dict[str, Any]  # what `caption_metrics` returns
    each: dict[Id, dict[str, float]]  # scores of each id
    captions: dict[Id, str]  # what was predicted; "" where nothing was
    missing: list[Id]  # ids without a result
    tokens: dict[Id, str]  # predictions as they were scored, words separated by spaces
    reference_tokens: dict[Id, list[str]]
    bootstrap: dict[str, Any] = field(default_factory=dict)  # how the intervals were made; empty without any


def caption_metrics(
    ground_truth: Mapping[str, Any] | str | os.PathLike[str],
    results: Iterable[Mapping[str, Any]],
    *,
    metrics: Iterable[str] = METRICS,
    per_sample: bool = False,
    resamples: int = 0,
    seed: int = 0,
    java_timeout: float = 1200.0,
) -> dict[str, Any]:
    """Score rows {"image_id", "caption"} against a COCO caption file (or its content).

    Returns Bleu_1..Bleu_4, ROUGE_L, CIDEr, CIDEr-D (the same number), METEOR, SPICE as asked; `agg_metrics`,
    CIDEr + Bleu_4, when both are; `num_missing`, the ids without a row, which score as empty captions; `unavailable`
    {metric: what it lacks} for a metric that cannot run here; with `resamples` also `<metric>_ci95` [low, high], by a
    seeded bootstrap over ids; with `per_sample` also `per_sample` {id: {metric: score}}. Ids of the ground truth and of the
    rows may be text or ints; 7 and "7" are the same. A Java program is stopped after `java_timeout` seconds.

    ValueError for two rows of one id, a row of an unknown id, a row or file of another layout, an unknown metric.
    """
    found = score_captions(ground_truth, results, metrics=metrics, resamples=resamples, seed=seed, java_timeout=java_timeout)
    return {**found.metrics, "per_sample": found.each} if per_sample else found.metrics


def score_captions(
    ground_truth: Mapping[str, Any] | str | os.PathLike[str],
    results: Iterable[Mapping[str, Any]],
    *,
    metrics: Iterable[str] = METRICS,
    resamples: int = 0,
    seed: int = 0,
    java_timeout: float = 1200.0,
) -> CaptionScores:
    """`caption_metrics` with all that belongs to it."""
    wanted = tuple(metrics)
    for name in wanted:
        if name not in (*METRICS, *EXTRA):
            raise ValueError(unknown("caption metric", name, (*METRICS, *EXTRA)))
    references = read_references(ground_truth)
    predictions, missing = _match(references, results)
    tokens = tokenize_captions(references), tokenize_captions({key: [text] for key, text in predictions.items()})
    scorer = Scorer(*tokens, java_timeout=java_timeout)
    scores: list[Score] = []
    unavailable: dict[str, str] = {}
    for name in wanted:
        try:
            scores.append(scorer.score(name))
        except MetricUnavailable as error:
            unavailable[name] = str(error)
            _tell(name, str(error))
    output: dict[str, Any] = {name: value for score in scores for name, value in score.corpus.items()}
    if "CIDEr" in output and "Bleu_4" in output:
        output["agg_metrics"] = output["CIDEr"] + output["Bleu_4"]
    output["num_missing"] = len(missing)
    if unavailable:
        output["unavailable"] = unavailable
    bootstrap: dict[str, Any] = {}
    if resamples:
        intervals = confidence_intervals(scores, resamples=resamples, seed=seed)
        output |= {f"{name}_ci95": list(interval) for name, interval in intervals.items()}
        bootstrap = {"resamples": resamples, "seed": seed, "level": LEVEL, "method": METHOD}
    said = {key: captions[0] for key, captions in tokens[1].items()}
    return CaptionScores(output, _by_id(references, scores), predictions, missing, said, tokens[0], bootstrap)


def metric_versions(metrics: Iterable[str]) -> dict[str, str]:
    """What the numbers depend on: packages, the tokenizer's model and, for METEOR and SPICE, the programs and Java."""
    java = sorted(set(metrics) & set(VERSIONS))
    found = {
        "lavis": lavis.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "formulas": "pycocoevalcap 1.2",
        "tokens": "Penn Treebank as Stanford CoreNLP 3.4.1, without punctuation",
    }
    if java:
        found |= {name: VERSIONS[name] for name in java}
        found |= {"pycocoevalcap": package_version("pycocoevalcap"), "java": java_version()}
    return found


def _by_id(ids: Iterable[Id], scores: Sequence[Score]) -> dict[Id, dict[str, float]]:
    """{id: {metric: score}}."""
    columns = {name: values.tolist() for score in scores for name, values in score.each.items()}
    if not columns:
        return {key: {} for key in ids}
    rows = zip(*columns.values(), strict=True)
    return {key: dict(zip(columns, row, strict=True)) for key, row in zip(ids, rows, strict=True)}


def _match(references: Mapping[Id, Any], results: Iterable[Mapping[str, Any]]) -> tuple[dict[Id, str], list[Id]]:
    """{id of the ground truth: predicted caption} in its order, and the ids that had none."""
    keys = {str(key): key for key in references}
    if len(keys) < len(references):
        twice = [key for key in references if keys[str(key)] != key]
        raise ValueError(f"ground truth has ids that differ by type only: {some(twice)}")
    found: dict[str, str] = {}
    again: dict[str, None] = {}
    for index, row in enumerate(results):
        if not isinstance(row, Mapping) or "image_id" not in row or not isinstance(row.get("caption"), str):
            raise ValueError(f'result {index}: {str(row)[:120]} is not a row {{"image_id", "caption": text}}')
        key = str(row["image_id"])
        if key in found:
            again[key] = None
        found[key] = row["caption"]
    if again:
        raise ValueError(f"results hold image_id {some(again)} twice or more; one caption per id is scored")
    strangers = [key for key in found if key not in keys]
    if strangers:
        known = some(references, limit=3)
        raise ValueError(f"results for ids that the ground truth does not list: {some(strangers)}; it lists {known}")
    absent = [key for text, key in keys.items() if text not in found]
    if absent:
        count = f"{len(absent)} of {len(references)}"
        logger.warning("%s ids have no result and score as empty captions: %s", count, some(absent))
    return {key: found.get(text, "") for text, key in keys.items()}, absent


def _tell(metric: str, reason: str) -> None:
    """Log once per process why a metric is absent."""
    if f"{metric} {reason}" not in _told:
        _told.add(f"{metric} {reason}")
        logger.warning("%s is not computed: %s", metric, reason)
