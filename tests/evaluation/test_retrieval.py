"""Recalls of score matrices: LAVIS' recorded numbers, ties, lost inputs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lavis.evaluation.retrieval import best_ranks, retrieval_metrics
from tests.parity import count_records, parity_dir


def test_recorded_recalls() -> None:
    record = json.loads((parity_dir() / "lavis" / "expected.json").read_text())["retrieval"]
    txt2img = {int(text): image for text, image in record["txt2img"].items()}
    img2txt = {int(image): texts for image, texts in record["img2txt"].items()}
    metrics = retrieval_metrics(record["scores_i2t"], record["scores_t2i"], txt2img=txt2img, img2txt=img2txt)
    assert metrics == record["metrics"]
    count_records(len(metrics))


def test_ranks_of_the_best_truth() -> None:
    scores = [[0.1, 0.9, 0.5, 0.3], [0.4, 0.2, 0.2, 0.2]]
    assert best_ranks(scores, {0: [0, 2], 1: [1]}).tolist() == [1, 3], "equal scores count against the query"
    assert best_ranks(scores, {0: [1, 1], 1: []}).tolist() == [0], "a query without columns is not asked"


def test_lost_inputs_are_never_found() -> None:
    tables: dict[str, Any] = {"txt2img": {0: 0, 1: 1}, "img2txt": {0: [0], 1: [1]}}
    whole = retrieval_metrics(np.eye(2), np.eye(2), **tables)
    assert whole["r_mean"] == 100.0 and whole["agg_metrics"] == 100.0
    lost = retrieval_metrics(np.eye(2), np.eye(2), **tables, lost={1})
    assert set(lost.values()) == {50.0}


def test_what_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="finite"):
        best_ranks([[0.0, np.nan]], {0: [0]})
    for truths in ({1: [0]}, {0: [2]}):
        with pytest.raises(ValueError, match=r"outside of scores of shape \(1, 2\)"):
            best_ranks([[0.0, 1.0]], truths)
    with pytest.raises(ValueError, match="0 inputs with a text"):
        retrieval_metrics(np.eye(1), np.eye(1), txt2img={0: 0}, img2txt={0: []})
