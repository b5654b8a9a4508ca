"""BLEU and CIDEr of a whole evaluation at once: pycocoevalcap's numbers, from arrays instead of loops.

Provenance: BLEU is Papineni et al. 2002 as pycocoevalcap's bleu_scorer.py computes it, with its small constants and the
closest reference length; CIDEr is Vedantam et al. 2015 (arXiv 1411.5726). pycocoevalcap calls CIDEr what that paper and
its code (github.com/vrama91/cider) call CIDEr-D: products of tf-idf weights are clipped at the reference's weight, and
a Gaussian of the difference in length is multiplied in. The same without both, that code's CIDEr, is CIDEr_plain here.
Document frequencies are those of the references that are evaluated.
Letters: see ngrams.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lavis.evaluation.captions.ngrams import Corpus, Entries, Floats, Ints, ngram_entries, runs

N = 4  # the longest n-gram
SIGMA = 6.0  # of CIDEr-D's Gaussian, in words
_TINY, _SMALL = 1e-15, 1e-9  # pycocoevalcap's guards: no match is not quite zero, nothing to match is not a division by it


class NgramStatistics(NamedTuple):
    """What BLEU and CIDEr are made of."""

    correct: Floats  # [N, 4] n-grams of the prediction that a reference holds, each as often as one reference does
    cider_d: Floats  # [N]
    cider_plain: Floats  # [N]


def ngram_statistics(corpus: Corpus) -> NgramStatistics:
    """One pass over the n-grams of a corpus. CIDEr is 0 for everybody where there is one item only, as log(1) is."""
    items, lines = len(corpus.first), len(corpus.lines)
    reference = corpus.is_reference
    correct = np.zeros((items, N))
    clipped, plain = np.zeros(lines), np.zeros(lines)
    for n, entries in enumerate(ngram_entries(corpus, N)):
        pairs = _pairs(entries, corpus, reference)
        weight = entries.times * _idf(entries, pairs, items, reference)
        norm = np.sqrt(_sums(entries.line, weight**2, lines))
        scale = norm * norm[corpus.first[corpus.item]]
        scale[scale == 0] = 1.0
        ours, theirs = weight[pairs.prediction], weight[pairs.reference]
        line = entries.line[pairs.reference]
        clipped += _sums(line, np.minimum(ours, theirs) * theirs, lines) / scale
        plain += _sums(line, ours * theirs, lines) / scale
        correct[:, n] = _correct(entries, pairs, corpus)
    bigrams = np.maximum(corpus.lengths - 1, 0)  # the published code counts these as a caption's length
    delta = bigrams - bigrams[corpus.first[corpus.item]]
    clipped *= np.exp(-(delta**2) / (2 * SIGMA**2))
    references = np.diff(corpus.first, append=lines) - 1

    def of_items(of_lines: Floats) -> Floats:
        return 10.0 * np.add.reduceat(np.where(reference, of_lines, 0.0), corpus.first) / (N * references)

    return NgramStatistics(correct, of_items(clipped), of_items(plain))


class _Pairs(NamedTuple):
    """Entries of references (P of them) whose n-gram the prediction holds too, and where an item's n-gram begins."""

    prediction: Ints  # [P] the prediction's entry
    reference: Ints  # [P] the reference's entry
    starts: Ints  # of the runs of one n-gram in one item


def _sums(places: Ints, weights: Floats, length: int) -> Floats:
    """[length] the sum of the weights at each place."""
    return np.asarray(np.bincount(places, weights=weights, minlength=length), dtype=np.float64)


def _pairs(entries: Entries, corpus: Corpus, reference: NDArray[np.bool_]) -> _Pairs:
    starts, start = runs(entries.gram * len(corpus.first) + corpus.item[entries.line])
    of_reference = reference[entries.line]
    met = np.flatnonzero(of_reference & ~of_reference[start])  # a prediction, where there is one, begins its run
    return _Pairs(prediction=start[met], reference=met, starts=starts)


def _idf(entries: Entries, pairs: _Pairs, items: int, reference: NDArray[np.bool_]) -> Floats:
    """[E] log(N / df), df the number of items with the n-gram in a reference, at least 1."""
    if not len(entries.gram):
        return np.zeros(0)
    last = np.append(pairs.starts[1:], len(entries.gram)) - 1  # the last entry of a run is a reference's, if there is one
    held = reference[entries.line[last]].astype(np.float64)
    df = _sums(entries.gram[pairs.starts], held, int(entries.gram[-1]) + 1)
    return (np.log(float(items)) - np.log(np.maximum(df, 1.0)))[entries.gram]


def _correct(entries: Entries, pairs: _Pairs, corpus: Corpus) -> Floats:
    """[N] how many n-grams of the prediction are in a reference, no oftener than in the reference with most of them."""
    if not len(pairs.reference):
        return np.zeros(len(corpus.first))
    starts, _ = runs(pairs.prediction)
    most = np.maximum.reduceat(entries.times[pairs.reference], starts)
    ours = pairs.prediction[starts]
    matched = np.minimum(entries.times[ours], most).astype(np.float64)
    return _sums(corpus.item[entries.line[ours]], matched, len(corpus.first))


def bleu_sums(corpus: Corpus, correct: Floats) -> Floats:
    """[N, 10] what BLEU adds up over items: 4 x correct, 4 x n-grams of the prediction, its words, the closest reference's."""
    words = corpus.lengths[corpus.first]
    reference = corpus.is_reference
    theirs = corpus.lengths[reference]
    distance = np.abs(theirs - words[corpus.item[reference]])
    ranked = distance * (int(theirs.max(initial=0)) + 1) + theirs  # the shorter one of two as close
    closest = np.minimum.reduceat(ranked, corpus.first - np.arange(len(words))) % (int(theirs.max(initial=0)) + 1)
    guesses = [np.maximum(words - n, 0) for n in range(N)]
    return np.column_stack([correct, *guesses, words, closest]).astype(np.float64)


def bleu_of_sums(sums: Floats) -> Mapping[str, Floats]:
    """{"Bleu_1": ..., "Bleu_4": ...} of sums [..., 10] over items, or of single items."""
    correct, guesses, words, closest = sums[..., :N], sums[..., N : 2 * N], sums[..., -2], sums[..., -1]
    precision = np.cumprod((correct + _TINY) / (guesses + _SMALL), axis=-1)
    ratio = (words + _TINY) / (closest + _SMALL)
    brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1.0)), 1.0)
    return {f"Bleu_{n}": precision[..., n - 1] ** (1 / n) * brevity for n in range(1, N + 1)}
