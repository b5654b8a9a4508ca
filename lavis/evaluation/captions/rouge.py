"""ROUGE-L of a whole evaluation at once: pycocoevalcap's numbers.

Provenance: Lin 2004 with beta 1.2, as pycocoevalcap's rouge.py computes it: the best precision and the best recall over
the references, which may be those of two. The longest common subsequence is found with a word of bits instead of a table
(Hyyro 2004, "Bit-parallel LCS-length computation revisited"), for all pairs at once.
Letters: see ngrams.py; P pairs of a reference and its item's prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lavis.evaluation.captions.ngrams import Corpus, Floats, Ints

BETA = 1.2
_BITS = 64
_CHUNK = 1 << 22  # words of two lines that are compared at once


def rouge_l(corpus: Corpus) -> Floats:
    """[N] ROUGE-L of each item.

    An empty caption counts as one word, the empty one, as in pycocoevalcap: it is equal to an empty reference.
    """
    pair = np.flatnonzero(corpus.is_reference)
    prediction = corpus.first[corpus.item[pair]]
    lengths = corpus.lengths
    quick = (lengths[pair] <= _BITS) & (lengths[prediction] <= _BITS)
    common = np.zeros(len(pair), dtype=np.int64)
    common[quick] = _common_of_many(corpus, prediction[quick], pair[quick])
    for index in np.flatnonzero(~quick):
        said, meant = corpus.lines[prediction[index]], corpus.lines[pair[index]]
        common[index] = longest_common(said.split(" "), meant.split(" "))
    starts = corpus.first - np.arange(len(corpus.first))  # of an item's pairs
    precision = np.maximum.reduceat(common / lengths[prediction], starts)
    recall = np.maximum.reduceat(common / lengths[pair], starts)
    weighted = recall + BETA**2 * precision
    return np.divide((1 + BETA**2) * precision * recall, weighted, out=np.zeros_like(weighted), where=weighted > 0)


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence of two lists of words of any length."""
    places: dict[str, int] = {}
    for index, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << index
    state = everything = (1 << len(one)) - 1
    for word in other:
        matched = state & places.get(word, 0)
        state = (state + matched | state - matched) & everything
    return len(one) - state.bit_count()


def _common_of_many(corpus: Corpus, first: Ints, second: Ints) -> Ints:
    """[P] longest common subsequences of pairs of lines, none of more than 64 words; pairs of like length together."""
    found = np.zeros(len(first), dtype=np.int64)
    sizes = corpus.lengths[first], corpus.lengths[second]
    order = np.lexsort((sizes[0], sizes[1]))
    start = 0
    while start < len(order):
        width = int(sizes[1][order[start]]) + 8
        take = max(_CHUNK // (width * _BITS), 1)
        chunk = order[start : start + take]
        found[chunk] = _common(_padded(corpus, first[chunk], -1), _padded(corpus, second[chunk], -2))
        start += take
    return found


def _padded(corpus: Corpus, lines: Ints, filler: int) -> Ints:
    """[P, longest] words of lines, filled up with a number that no word has."""
    lengths = corpus.lengths[lines]
    place = np.arange(int(lengths.max()))
    begin = (np.cumsum(corpus.lengths) - corpus.lengths)[lines]
    inside = place < lengths[:, None]
    return np.where(inside, corpus.words[np.where(inside, begin[:, None] + place, 0)], filler)


def _common(one: Ints, other: Ints) -> Ints:
    """[P] longest common subsequences of the rows of one [P, up to 64] and other [P, any], -1 and -2 being no words."""
    places = np.zeros(other.shape, dtype=np.uint64)  # bit i of places[p, j]: word i of one is word j of the other
    for index in range(one.shape[1]):
        places |= (other == one[:, index : index + 1]).astype(np.uint64) << np.uint64(index)
    state = np.full(len(one), np.iinfo(np.uint64).max, dtype=np.uint64)
    for matched in places.T:
        kept = state & matched
        state = (state + kept) | (state - kept)
    bits = np.unpackbits((~state).view(np.uint8).reshape(len(one), 8), axis=1)
    return bits.sum(axis=1, dtype=np.int64)
