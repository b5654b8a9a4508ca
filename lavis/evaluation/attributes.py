"""What a caption says of things that have attributes, such as a colour and a kind: the metrics of the quickstart.

A vocabulary holds groups of words, one group per attribute; a thing is a word of each group, in the groups' order.
Captions are compared by words, lower-cased, so that "red" is not found in "redder". A sample without a caption counts
as one with an empty caption.
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
Thing = tuple[str, ...]  # a word of each group of a vocabulary


class Vocabulary:
    """The words of attributes: `Vocabulary(colour=[...], kind=[...])`, any number of groups in order.

    ValueError for no group, an empty one, a word that is not single and lower-case, or one of two groups.
    """

    def __init__(self, **groups: Iterable[str]) -> None:
        self.groups = {name: frozenset(group) for name, group in groups.items()}
        if not self.groups or not all(self.groups.values()):
            raise ValueError(f"groups of words {self.groups}; a vocabulary has at least one, and none is empty")
        for word in frozenset().union(*self.groups.values()):
            if words(word) != [word]:
                raise ValueError(f"{word!r} is not a single lower-case word")
        for (first, some), (second, others) in combinations(self.groups.items(), 2):
            if both := some & others:
                raise ValueError(f"both a {first} and a {second}: {', '.join(sorted(both))}")

    def named(self, caption: str) -> tuple[tuple[str, ...], ...]:
        """The words of each group that a caption holds, each group's sorted, with repeats."""
        found = words(caption)
        return tuple(tuple(sorted(word for word in found if word in group)) for group in self.groups.values())

    def agrees(self, caption: str, thing: Thing) -> tuple[bool, ...]:
        """Of each group, whether the thing's word, and no other of the group, stands in a caption."""
        return tuple(set(found) == {word} for found, word in zip(self.named(caption), thing, strict=True))

    def pairs(self, caption: str) -> Counter[Thing]:
        """How often each "<word of the first group> <word of the second>" stands in a caption. ValueError unless the
        vocabulary has two groups."""
        if len(self.groups) != 2:
            raise ValueError(f"pairs of words need two groups; this vocabulary has {', '.join(self.groups)}")
        first, second = self.groups.values()
        found = words(caption)
        return Counter((a, b) for a, b in zip(found, found[1:], strict=False) if a in first and b in second)

    def check(self, thing: Thing) -> None:
        """ValueError unless a thing is a word of each group."""
        fits = len(thing) == len(self.groups) and all(w in group for w, group in zip(thing, self.groups.values(), strict=True))
        if not fits:
            accepted = "; ".join(", ".join(sorted(group)) for group in self.groups.values())
            raise ValueError(f"thing {thing!r} is not a ({', '.join(self.groups)}) of the vocabulary: {accepted}")


def words(caption: str) -> list[str]:
    """Lower-case words of a caption; anything but letters and digits parts them."""
    return re.findall(r"[^\W_]+", caption.lower())


def names_thing(caption: str, thing: Thing, *, vocabulary: Vocabulary) -> bool:
    """Whether a caption names a thing: of every group the thing's word, and no other word of the group.

    "red seven" and "the seven that is red" name a red seven; "red blue seven" does not.
    """
    return all(vocabulary.agrees(caption, thing))


def attribute_accuracy(captions: Mapping[Id, str], truth: Mapping[Id, Thing], *, vocabulary: Vocabulary) -> float:
    """Share of the things in `truth` that their captions name: every attribute right."""
    return _mean([float(all(right)) for right in _agreement(captions, truth, vocabulary)])


def attribute_shares(captions: Mapping[Id, str], truth: Mapping[Id, Thing], *, vocabulary: Vocabulary) -> dict[str, float]:
    """The same of each attribute alone: {name of the group: share of the things whose captions have it right}."""
    agreement = _agreement(captions, truth, vocabulary)
    return {name: _mean([float(right[index]) for right in agreement]) for index, name in enumerate(vocabulary.groups)}


def _agreement(captions: Mapping[Id, str], truth: Mapping[Id, Thing], vocabulary: Vocabulary) -> list[tuple[bool, ...]]:
    for thing in truth.values():
        vocabulary.check(thing)
    return [vocabulary.agrees(captions.get(key, ""), thing) for key, thing in truth.items()]


def things_named(captions: Mapping[Id, str], scenes: Mapping[Id, Sequence[Thing]], *, vocabulary: Vocabulary) -> float:
    """Mean over the images in `scenes` of the share of their things that the caption names as "<colour> <kind>".

    The vocabulary has two groups. A pair that a scene holds k times needs k occurrences to count k times.
    """
    shares = []
    for key, things in scenes.items():
        for thing in things:
            vocabulary.check(thing)
        said, held = vocabulary.pairs(captions.get(key, "")), Counter(tuple(thing) for thing in things)
        if not held:
            raise ValueError(f"scene {key!r} holds no thing")
        shares.append(sum(min(count, said[thing]) for thing, count in held.items()) / held.total())
    return _mean(shares)


def box_following(
    captions: Mapping[Id, str], truth: Mapping[Id, Thing], images: Mapping[Id, Id], *, vocabulary: Vocabulary
) -> float:
    """Do captions follow the box? `images` maps a region to what it is a region of: an image, a room.

    Of the pairs of regions of one image that are different things, the share whose captions differ in the words of
    some group. ValueError when no image holds such a pair.
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
    counts = Counter(tuple(thing) for thing in training)
    if not counts:
        raise ValueError("no thing to count in the training data")
    most = min(counts, key=lambda thing: (-counts[thing], thing))
    return _mean([float(tuple(thing) == most) for thing in truth])


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
