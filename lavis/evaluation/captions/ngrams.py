"""Tokenised captions as numbers, and how often each caption holds each n-gram.

Letters: N items (images), L lines (captions; those of an item stand together, its prediction first), T words, E entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]


class Corpus(NamedTuple):
    """Predictions and references of a whole evaluation."""

    lines: list[str]  # [L] tokens joined by spaces
    words: Ints  # [T] the words of all lines, one line after another, as numbers from 0
    lengths: Ints  # [L] words of a line
    vocabulary: list[str]  # the word of a number
    first: Ints  # [N] the line of an item's prediction; its references follow
    item: Ints  # [L] which item a line belongs to

    @property
    def is_reference(self) -> NDArray[np.bool_]:
        """[L] True but for the predictions."""
        flags = np.ones(len(self.lines), dtype=bool)
        flags[self.first] = False
        return flags


class Entries(NamedTuple):
    """Which line holds which n-gram how often, sorted by n-gram, then by line."""

    gram: Ints  # [E] a number per n-gram, from 0
    line: Ints  # [E]
    times: Ints  # [E] 1 or more


def encode(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> Corpus:
    """Tokenised captions, an item's references and its prediction at the same place; words stand between plain spaces.

    An empty caption is one empty word. ValueError for another number of predictions than of items, and for an item without
    references.
    """
    if len(references) != len(predictions) or not all(references):
        bare = sum(not captions for captions in references)
        raise ValueError(f"{len(predictions)} predictions of {len(references)} items, {bare} of them without a reference")
    lines = [line for captions, said in zip(references, predictions, strict=True) for line in (said, *captions)]
    sizes = np.fromiter((1 + len(captions) for captions in references), np.int64, len(references))
    words, lengths, vocabulary = _numbered(lines)
    first, item = np.cumsum(sizes) - sizes, np.repeat(np.arange(len(sizes)), sizes)
    return Corpus(lines, words, lengths, vocabulary, first, item)


def _numbered(lines: list[str]) -> tuple[Ints, Ints, list[str]]:
    """Words as numbers [T], words of each line [L], and the vocabulary."""
    flat = " \n ".join(lines).split(" ")
    flat.append("\n")
    numbers = {word: index for index, word in enumerate(dict.fromkeys(flat))}
    words = np.fromiter(map(numbers.__getitem__, flat), np.int64, len(flat))
    ends = np.flatnonzero(words == numbers["\n"])
    if len(ends) != len(lines):
        raise ValueError("a tokenised caption holds the end of a line")
    return np.delete(words, ends), np.diff(ends, prepend=-1) - 1, list(numbers)


def split_at_any_space(corpus: Corpus) -> Corpus:
    """The corpus with no empty word, and words split at wide spaces too ("3\u00a01/2"), as BLEU and CIDEr take them."""
    odd = [index for index, word in enumerate(corpus.vocabulary) if word.split() != [word] and word != "\n"]
    if not odd:
        return corpus
    words, lengths, vocabulary = corpus.words, corpus.lengths, corpus.vocabulary
    if any(vocabulary[index] for index in odd):
        words, lengths, vocabulary = _numbered([" ".join(line.split()) for line in corpus.lines])
    if "" in vocabulary:
        kept = words != vocabulary.index("")
        line = np.repeat(np.arange(len(lengths)), lengths)
        words, lengths = words[kept], np.bincount(line[kept], minlength=len(lengths))
    return corpus._replace(words=words, lengths=lengths, vocabulary=vocabulary)


def ngram_entries(corpus: Corpus, n: int) -> Iterator[Entries]:
    """The entries of the 1-grams, of the 2-grams, ... of the n-grams."""
    words = corpus.words
    line = np.repeat(np.arange(len(corpus.lines)), corpus.lengths)
    ends = np.cumsum(corpus.lengths)
    left = np.repeat(ends, corpus.lengths) - np.arange(len(words))  # words from a position to the end of its line
    vocabulary, bits = int(words.max(initial=0)) + 1, max(len(corpus.lines) - 1, 1).bit_length()
    gram = words  # [T] the number of the n-gram that begins at a position
    for size in range(1, n + 1):
        if size > 1:  # an n-gram is the (n-1)-gram that begins at the same place, and one more word
            within = np.flatnonzero(left >= size)
            longer = gram[within] * vocabulary + words[within + size - 1]
            gram = np.zeros_like(words)
            gram[within] = np.unique(longer, return_inverse=True)[1]
        else:
            within = np.arange(len(words))
        both = np.sort(gram[within] << bits | line[within])
        starts = _starts(both)
        found = both[starts]
        yield Entries(gram=found >> bits, line=found & ((1 << bits) - 1), times=np.diff(starts, append=len(both)))


def _starts(values: NDArray[Any]) -> Ints:
    """Where a run of equal values begins."""
    new = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return np.flatnonzero(new)


def runs(values: NDArray[Any]) -> tuple[Ints, Ints]:
    """Of sorted values: where each run of equal ones begins, and [E] the place at which the run of an entry begins."""
    starts = _starts(values)
    return starts, np.repeat(starts, np.diff(starts, append=len(values)))
