"""Accuracy of classifications: is the label among a sample's first k guesses?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TOP = (1, 5)


def top_k_accuracy(labels: Sequence[Any], guesses: Sequence[Sequence[Any]], *, k: int) -> float:
    """Share of the labels that stand among the first `k` guesses of their sample, best guess first.

    A sample without guesses counts as wrong. ValueError for no sample, or another number of guesses than labels.
    """
    if k < 1:
        raise ValueError(f"k is {k}; accepted: 1 or more")
    if not labels or len(labels) != len(guesses):
        raise ValueError(f"{len(labels)} labels and {len(guesses)} lists of guesses; accepted: as many, at least one")
    return sum(label in ranked[:k] for label, ranked in zip(labels, guesses, strict=True)) / len(labels)


def classification_metrics(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """{"top1", "top5", "agg_metrics": top1} of rows {"label", "top5": the best 5 guesses, best first}."""
    labels, guesses = [], []
    for index, row in enumerate(rows):
        if "label" not in row or not isinstance(row.get("top5"), (list, tuple)):
            raise ValueError(f'result {index}: {str(row)[:120]} is not a row {{"label", "top5": list}}')
        labels.append(row["label"])
        guesses.append(row["top5"])
    metrics = {f"top{k}": top_k_accuracy(labels, guesses, k=k) for k in TOP}
    return {**metrics, "agg_metrics": metrics["top1"]}
