"""The caption metrics by name: what each gives for a corpus, for each item, and for any resampling of the items.

Provenance: BLEU, ROUGE-L and CIDEr as pycocoevalcap 1.2 (github.com/salaniz/pycocoevalcap) computes them, in our own code;
METEOR and SPICE are the programs that it ships or downloads (java_metrics.py).
Letters: N items, K numbers that a metric adds up over items.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lavis.evaluation.captions.java_metrics import NEEDED_FILES, java_score
from lavis.evaluation.captions.ngram_scores import NgramStatistics, bleu_of_sums, bleu_sums, ngram_statistics
from lavis.evaluation.captions.ngrams import Corpus, Floats, encode, split_at_any_space
from lavis.evaluation.captions.rouge import rouge_l

METRICS = ("Bleu", "ROUGE_L", "CIDEr", "CIDEr-D", "METEOR", "SPICE")
EXTRA = ("CIDEr_plain",)  # computed where they are asked for by name


class Score(NamedTuple):
    """One metric of one evaluation; Bleu has four names."""

    corpus: dict[str, float]
    each: dict[str, Floats]  # [N] per name
    sums: Floats | None = None  # [N, K] what the corpus score is made of; None where it is made of something else
    of_means: Callable[[Floats], Mapping[str, Floats]] | None = None  # means over items [..., K] -> corpus scores [...]


class Scorer:
    """The metrics of one set of tokenised captions; what several of them need is computed once."""

    def __init__(
        self, references: Mapping[Any, Sequence[str]], predictions: Mapping[Any, Sequence[str]], *, java_timeout: float = 1200.0
    ) -> None:
        """{id: [reference, ...]} and {id: [prediction]} with the same ids; Java programs get `java_timeout` seconds."""
        self.references = [list(captions) for captions in references.values()]
        self.predictions = [predictions[key][0] for key in references]
        self.java_timeout = java_timeout

    @functools.cached_property
    def _corpus(self) -> Corpus:
        return encode(self.references, self.predictions)

    @functools.cached_property
    def _words(self) -> Corpus:
        return split_at_any_space(self._corpus)

    @functools.cached_property
    def _ngrams(self) -> NgramStatistics:
        return ngram_statistics(self._words)

    def score(self, metric: str) -> Score:
        """MetricUnavailable says what METEOR or SPICE lacks, or why its program did not finish."""
        if metric == "Bleu":
            sums = bleu_sums(self._words, self._ngrams.correct)
            of_means = functools.partial(_bleu_of_means, items=len(sums))
            corpus = {name: float(value) for name, value in bleu_of_sums(sums.sum(axis=0)).items()}
            return Score(corpus, dict(bleu_of_sums(sums)), sums, of_means)
        if metric == "ROUGE_L":
            return _mean(metric, rouge_l(self._corpus))
        if metric in ("CIDEr", "CIDEr-D"):
            return _mean(metric, self._ngrams.cider_d)
        if metric == "CIDEr_plain":
            return _mean(metric, self._ngrams.cider_plain)
        if metric not in NEEDED_FILES:
            raise ValueError(f"Unknown caption metric '{metric}'")
        corpus_score, each = java_score(metric, self.references, self.predictions, timeout=self.java_timeout)
        if metric == "SPICE":
            return _mean(metric, np.asarray(each), corpus_score)
        return Score({metric: corpus_score}, {metric: np.asarray(each)})  # METEOR's corpus score is no mean


def _bleu_of_means(means: Floats, *, items: int) -> Mapping[str, Floats]:
    return bleu_of_sums(means * items)


def _mean(name: str, each: Floats, corpus: float | None = None) -> Score:
    """A metric whose corpus score is the mean over items."""
    value = float(np.mean(each)) if corpus is None else corpus
    return Score({name: value}, {name: each}, each[:, None], lambda means: {name: means[..., 0]})
