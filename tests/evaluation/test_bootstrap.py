"""Intervals are those of scoring resampled corpora one by one."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lavis.evaluation.bootstrap import confidence_intervals
from lavis.evaluation.captions.scorers import Score, Scorer


@pytest.fixture(scope="module")
def corpus() -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    rng = random.Random(0)
    words = ["a", "the", "red", "blue", "car", "dog", "runs", "on", "road", "left", "two"]
    references = {item: [" ".join(rng.choices(words, k=rng.randint(3, 8))) for _ in range(3)] for item in range(60)}
    return references, {item: [rng.choice([lines[0], "a dog runs"])] for item, lines in references.items()}


def test_resampled_corpora_scored_one_by_one(corpus: tuple[dict[int, list[str]], dict[int, list[str]]]) -> None:
    references, predictions = corpus
    scorer = Scorer(references, predictions)
    names = ("Bleu", "ROUGE_L", "CIDEr")
    found = confidence_intervals([scorer.score(name) for name in names], resamples=40, seed=5)
    draws = np.random.default_rng(5)
    samples: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(40):
        chosen = draws.integers(60, size=60).tolist()
        again = Scorer(
            {place: references[item] for place, item in enumerate(chosen)},
            {place: predictions[item] for place, item in enumerate(chosen)},
        )
        for metric in ("Bleu", "ROUGE_L"):
            for name, value in again.score(metric).corpus.items():
                samples[name].append(value)
        samples["CIDEr"].append(float(scorer.score("CIDEr").each["CIDEr"][chosen].mean()))
    for name, values in samples.items():
        assert found[name] == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-9), name


def test_seeded_and_wider_at_a_higher_level(corpus: tuple[dict[int, list[str]], dict[int, list[str]]]) -> None:
    scores = [Scorer(*corpus).score("CIDEr")]
    one = confidence_intervals(scores, resamples=200, seed=1)
    assert one == confidence_intervals(scores, resamples=200, seed=1) != confidence_intervals(scores, resamples=200, seed=2)
    low, high = one["CIDEr"]
    wide = confidence_intervals(scores, resamples=200, seed=1, level=0.99)["CIDEr"]
    assert wide[0] < low < scores[0].corpus["CIDEr"] < high < wide[1]


def test_what_is_made_of_no_sums_has_no_interval() -> None:
    assert confidence_intervals([Score({"METEOR": 0.3}, {"METEOR": np.array([0.3])})], resamples=3, seed=0) == {}
    for resamples, level in ((0, 0.95), (10, 1.0)):
        with pytest.raises(ValueError, match="accepted: 1 or more, and a level between 0 and 1"):
            confidence_intervals([], resamples=resamples, seed=0, level=level)
