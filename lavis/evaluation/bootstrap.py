"""Confidence intervals of caption metrics: percentiles over resampled sets of ids.

Provenance: the percentile bootstrap of Efron 1979, over items as in Koehn 2004 ("Statistical significance tests for
machine translation evaluation"). A corpus score is computed anew for every resample: BLEU from the resampled counts of
n-grams and lengths, means from the resampled scores. CIDEr's document frequencies stay those of the whole set.
Letters: N items, R resamples, K numbers that the metrics add up over items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lavis.evaluation.captions.scorers import Score

LEVEL = 0.95
METHOD = (
    "percentile bootstrap over ids; BLEU from resampled counts, means from resampled scores, "
    "CIDEr with the document frequencies of the whole set; METEOR has none, as its corpus score is no mean"
)


def confidence_intervals(
    scores: Sequence[Score], *, resamples: int, seed: int, level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """{metric: (low, high)} of the scores that are made of sums over the same N items, the same draws for all of them.

    ValueError for less than one resample, or a level that is not between 0 and 1.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"{resamples} resamples, level {level}; accepted: 1 or more, and a level between 0 and 1")
    usable = [score for score in scores if score.sums is not None and score.of_means is not None]
    if not usable:
        return {}
    table = np.concatenate([score.sums for score in usable if score.sums is not None], axis=1)  # [N, K]
    items = len(table)
    draws = np.random.default_rng(seed)
    means = np.empty((resamples, table.shape[1]))
    for index in range(resamples):
        times = np.bincount(draws.integers(items, size=items), minlength=items)
        means[index] = times @ table / items
    shares = 100 * (1 - level) / 2, 100 * (1 + level) / 2
    found: dict[str, tuple[float, float]] = {}
    start = 0
    for score in usable:
        assert score.sums is not None and score.of_means is not None
        stop = start + score.sums.shape[1]
        for name, values in score.of_means(means[:, start:stop]).items():
            low, high = np.percentile(values, shares)
            found[name] = float(low), float(high)
        start = stop
    return found
