"""What a caption says of a scene of things with a colour and a kind: the metrics of the quickstart.

A thing is (colour, kind), both whole words of a vocabulary. Captions are compared by words, lower-cased, so that
"red" is not found in "redder". A sample without a caption counts as one with an empty caption.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

Id = Any  # text or int
Thing = tuple[str, str]  # colour, kind


class Vocabulary:
    """The words that name colours and kinds. ValueError for one that is not a single lower-case word, or in both."""

    def __init__(self, *, colours: Iterable[str], kinds: Iterable[str]) -> None:
        self.colours, self.kinds = frozenset(colours), frozenset(kinds)
        for word in self.colours | self.kinds:
            if words(word) != [word]:
                raise ValueError(f"{word!r} is not a single lower-case word")
        if both := self.colours & self.kinds:
            raise ValueError(f"both a colour and a kind: {', '.join(sorted(both))}")

    def named(self, caption: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The colours and the kinds that a caption names, each sorted, with repeats."""
        found = words(caption)
        return tuple(sorted(w for w in found if w in self.colours)), tuple(sorted(w for w in found if w in self.kinds))

    def pairs(self, caption: str) -> Counter[Thing]:
        """How often each "<colour> <kind>" stands in a caption."""
        found = words(caption)
        return Counter((a, b) for a, b in zip(found, found[1:], strict=False) if a in self.colours and b in self.kinds)

    def check(self, thing: Thing) -> None:
        """ValueError unless colour and kind are in the vocabulary."""
        if thing[0] not in self.colours or thing[1] not in self.kinds:
            accepted = f"{', '.join(sorted(self.colours))}; {', '.join(sorted(self.kinds))}"
            raise ValueError(f"thing {thing!r} is not a (colour, kind) of the vocabulary: {accepted}")


def words(caption: str) -> list[str]:
    """Lower-case words of a caption; anything but letters and digits parts them."""
    return re.findall(r"[^\W_]+", caption.lower())


def names_thing(caption: str, thing: Thing) -> bool:
    """Whether a caption names the colour and the kind of a thing."""
    return set(thing) <= set(words(caption))


def attribute_accuracy(captions: Mapping[Id, str], truth: Mapping[Id, Thing], *, vocabulary: Vocabulary) -> float:
    """Share of the regions in `truth` whose caption names the right colour and the right kind."""
    for thing in truth.values():
        vocabulary.check(thing)
    return _mean([float(names_thing(captions.get(key, ""), thing)) for key, thing in truth.items()])


def things_named(captions: Mapping[Id, str], scenes: Mapping[Id, Sequence[Thing]], *, vocabulary: Vocabulary) -> float:
    """Mean over the images in `scenes` of the share of their things that the caption names as "<colour> <kind>".

    A pair that a scene holds k times needs k occurrences to count k times.
    """
    shares = []
    for key, things in scenes.items():
        for thing in things:
            vocabulary.check(thing)
        said, held = vocabulary.pairs(captions.get(key, "")), Counter((colour, kind) for colour, kind in things)
        if not held:
            raise ValueError(f"scene {key!r} holds no thing")
        shares.append(sum(min(count, said[thing]) for thing, count in held.items()) / held.total())
    return _mean(shares)


def box_following(
    captions: Mapping[Id, str], truth: Mapping[Id, Thing], images: Mapping[Id, Id], *, vocabulary: Vocabulary
) -> float:
    """Do captions follow the box? `images` maps a region to its image.

    Of the pairs of regions of one image that differ in colour or kind, the share whose captions name other
    colours or other kinds. ValueError when no image holds such a pair.
    """
    regions: dict[Id, list[Id]] = defaultdict(list)
    for key, thing in truth.items():
        vocabulary.check(thing)
        regions[images[key]].append(key)
    pairs = [(a, b) for keys in regions.values() for a, b in combinations(keys, 2) if truth[a] != truth[b]]
    said = {key: vocabulary.named(captions.get(key, "")) for key in truth}
    return _mean([float(said[a] != said[b]) for a, b in pairs])


def majority_accuracy(training: Iterable[Thing], truth: Iterable[Thing]) -> float:
    """Share of `truth` that is the most frequent thing of `training`: the accuracy of always saying the same."""
    counts = Counter((colour, kind) for colour, kind in training)
    if not counts:
        raise ValueError("no thing to count in the training data")
    most = min(counts, key=lambda thing: (-counts[thing], thing))
    return _mean([float((colour, kind) == most) for colour, kind in truth])


def chance_captions(training: Sequence[str], ids: Iterable[Id], *, seed: int) -> dict[Id, str]:
    """A training caption drawn at random for every id: what chance scores."""
    if not training:
        raise ValueError("no caption to choose from")
    draw = random.Random(seed)
    return {key: draw.choice(training) for key in ids}


def most_likely_caption(training: Iterable[str], *, order: int = 4) -> str:
    """The caption that training text alone makes most likely: what a model that sees no picture should say.

    The exact optimum of an n-gram model (maximum likelihood, `order` words) among captions with as many
    space-separated words as most training captions have.
    """
    if order < 2:
        raise ValueError(f"order {order} of the n-gram model is below 2")
    texts = [text.split() for text in training if text.split()]
    if not texts:
        raise ValueError("no caption to learn from")
    lengths = Counter(map(len, texts))
    length = min(lengths, key=lambda n: (-lengths[n], n))
    following = _following_words(texts, order)
    best: dict[tuple[str, ...], tuple[float, list[str]]] = {("",) * (order - 1): (0.0, [])}
    for position in range(length + 1):
        reached: dict[tuple[str, ...], tuple[float, list[str]]] = {}
        for context, (cost, said) in best.items():
            counts = following[context]
            for word, count in counts.items():
                if (word == "") != (position == length):  # it ends after `length` words, not before
                    continue
                path = (cost - math.log(count / counts.total()), [*said, word])
                state = (*context[1:], word)
                reached[state] = min(path, reached.get(state, path))
        best = reached
    return " ".join(min(best.values())[1][:-1])


def _following_words(texts: Iterable[list[str]], order: int) -> dict[tuple[str, ...], Counter[str]]:
    """{order - 1 words: how often each word follows}; "" stands for what is before and after a text."""
    following: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for text in texts:
        padded = [""] * (order - 1) + text + [""]
        for i, word in enumerate(padded[order - 1 :]):
            following[tuple(padded[i : i + order - 1])][word] += 1
    return following


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("nothing to average: no sample, or no pair of different regions in one image")
    return sum(values) / len(values)
