"""What captions say of scenes: whole words, repeated pairs, boxes, and what no picture is needed for."""

from __future__ import annotations

import pytest

from lavis.evaluation.attributes import (
    Vocabulary,
    attribute_accuracy,
    box_following,
    chance_captions,
    majority_accuracy,
    most_likely_caption,
    names_thing,
    things_named,
)

WORDS = Vocabulary(colours=["red", "blue", "green"], kinds=["seven", "star", "six"])


def test_words_are_whole_and_case_does_not_count() -> None:
    assert names_thing("The RED, seven-like thing", ("red", "seven"))
    assert not names_thing("a redder seven", ("red", "seven"))
    assert not names_thing("a red seventy", ("red", "seven"))
    assert not names_thing("", ("red", "seven"))


def test_vocabulary_is_checked() -> None:
    for colours, kinds, message in [
        (["light blue"], ["x"], "'light blue' is not a single"),
        (["Red"], ["x"], "'Red' is not a single lower-case word"),
        (["rose"], ["rose"], "both a colour and a kind: rose"),
    ]:
        with pytest.raises(ValueError, match=message):
            Vocabulary(colours=colours, kinds=kinds)
    with pytest.raises(ValueError, match="'pink', 'six'.*blue, green, red; seven, six, star"):
        attribute_accuracy({}, {1: ("pink", "six")}, vocabulary=WORDS)
    assert WORDS.named("Red star, a blue star, red") == (("blue", "red", "red"), ("star", "star"))


def test_regions() -> None:
    truth = {"a": ("red", "seven"), "b": ("blue", "star"), "c": ("red", "star"), "d": ("green", "six")}
    captions = {"a": "the red seven", "b": "blue seven", "c": "star that is red", "stranger": "green six"}
    assert attribute_accuracy(captions, truth, vocabulary=WORDS) == 0.5
    with pytest.raises(ValueError, match="nothing to average"):
        attribute_accuracy(captions, {}, vocabulary=WORDS)


def test_whole_pictures() -> None:
    scenes = {
        1: [("red", "seven"), ("red", "seven"), ("blue", "star"), ("green", "six")],
        2: [("red", "star"), ("blue", "star")],
        3: [("red", "star")],
    }
    captions = {1: "a red seven , a blue star , a six green", 2: "red star red star blue , star"}
    assert things_named(captions, scenes, vocabulary=WORDS) == pytest.approx((2 / 4 + 2 / 2 + 0) / 3)
    assert things_named({1: "red seven, red seven, red seven"}, {1: scenes[1]}, vocabulary=WORDS) == 0.5
    with pytest.raises(ValueError, match="scene 5 holds no thing"):
        things_named({}, {5: []}, vocabulary=WORDS)


def test_captions_follow_the_box() -> None:
    truth = {"a": ("red", "six"), "b": ("blue", "six"), "c": ("red", "six"), "d": ("red", "star"), "e": ("blue", "star")}
    images = {"a": 1, "b": 1, "c": 1, "d": 2, "e": 2}
    told = {"a": "red six", "b": "the blue six", "c": "a red six", "d": "red star", "e": "the red star at the top"}
    assert box_following(told, truth, images, vocabulary=WORDS) == pytest.approx(2 / 3)  # a-b and b-c, not d-e
    same = {key: "the red six" for key in truth}
    assert box_following(same, truth, images, vocabulary=WORDS) == 0
    with pytest.raises(ValueError, match="no pair of different regions"):
        box_following(told, {"a": truth["a"], "c": truth["c"]}, images, vocabulary=WORDS)


def test_majority() -> None:
    training = [("red", "six"), ("red", "six"), ("blue", "star")]
    assert majority_accuracy(training, [("red", "six"), ("blue", "star"), ("red", "star"), ("red", "six")]) == 0.5


def test_chance_repeats_with_its_seed() -> None:
    training = [str(i) for i in range(100)]
    drawn = chance_captions(training, range(50), seed=1)
    assert drawn == chance_captions(training, range(50), seed=1) != chance_captions(training, range(50), seed=2)
    assert set(drawn.values()) <= set(training) and len(set(drawn.values())) > 20
    for nothing in (lambda: chance_captions([], [1], seed=0), lambda: most_likely_caption([])):
        with pytest.raises(ValueError, match="no caption"):
            nothing()


def test_most_likely_caption() -> None:
    training = ["a red six", "a red star", "the red star", "a blue star", "a blue star", "one"]
    assert most_likely_caption(training, order=4) == "a blue star"
    # words are joined across captions by a short memory: P(a) 4/6, P(blue | a) 1/2, P(star | blue) 1
    assert most_likely_caption(training, order=2) == "a blue star"
    joined = ["a red six", "a red six", "the red star", "the red star", "the red star"]
    assert most_likely_caption(joined, order=2) == "the red star"
    with pytest.raises(ValueError, match="order 1"):
        most_likely_caption(training, order=1)
