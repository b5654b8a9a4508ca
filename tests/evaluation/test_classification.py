from __future__ import annotations

from typing import Any

import pytest

from lavis.evaluation.classification import classification_metrics, top_k_accuracy


def test_top_k() -> None:
    labels = ["a", "b", "c", "d"]
    guesses = [["a", "b"], ["a", "b"], [], ["a", "b", "d"]]
    assert [top_k_accuracy(labels, guesses, k=k) for k in (1, 2, 3, 9)] == [0.25, 0.5, 0.75, 0.75]
    assert top_k_accuracy([3], [[3]], k=1) == 1.0


@pytest.mark.parametrize(("labels", "guesses", "k"), [([], [], 1), (["a"], [], 1), (["a"], [["a"]], 0)])
def test_what_cannot_be_counted(labels: list[str], guesses: list[list[str]], k: int) -> None:
    with pytest.raises(ValueError, match="accepted"):
        top_k_accuracy(labels, guesses, k=k)


def test_rows() -> None:
    rows = [{"label": "a", "top5": ["a", "b"]}, {"label": "a", "top5": ["b", "a"]}, {"label": "a", "top5": []}]
    assert classification_metrics(rows) == {"top1": pytest.approx(1 / 3), "top5": pytest.approx(2 / 3), "agg_metrics": 1 / 3}


@pytest.mark.parametrize("row", [{"label": "a"}, {"top5": ["a"]}, {"label": "a", "top5": "a"}])
def test_other_rows_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="result 0: .* is not a row"):
        classification_metrics([row])
