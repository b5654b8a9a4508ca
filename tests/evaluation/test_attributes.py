"""What captions say of scenes: whole words, repeated pairs, boxes, and what no picture is needed for."""

from __future__ import annotations

import pytest

from lavis.evaluation.attributes import (
    Vocabulary,
    attribute_accuracy,
    attribute_shares,
    box_following,
    chance_captions,
    majority_accuracy,
    most_likely_caption,
    names_thing,
    things_named,
)

WORDS = Vocabulary(colour=["red", "blue", "green"], kind=["seven", "star", "six"])
OBJECTS = Vocabulary(kind=["lamp", "table"], proportion=["tall", "low", "long"], posture=["standing", "leaning", "lying"])


@pytest.mark.parametrize(
    ("caption", "right"),
    [
        ("The RED, seven-like thing", True),
        ("a seven that is red, quite red", True),
        ("a redder seven", False),
        ("a red seventy", False),
        ("a seven", False),
        ("", False),
        ("red blue seven", False),  # two colours
        ("a red seven , a red six", False),  # two kinds
        ("a blue seven , a red six", False),
    ],
)
def test_a_thing_is_named_by_its_words_and_no_others(caption: str, right: bool) -> None:
    assert names_thing(caption, ("red", "seven"), vocabulary=WORDS) is right


def test_vocabulary_is_checked() -> None:
    for colours, kinds, message in [
        (["light blue"], ["x"], "'light blue' is not a single"),
        (["Red"], ["x"], "'Red' is not a single lower-case word"),
        (["rose"], ["rose"], "both a colour and a kind: rose"),
        ([], ["rose"], "none is empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            Vocabulary(colour=colours, kind=kinds)
    with pytest.raises(ValueError, match="at least one"):
        Vocabulary()
    with pytest.raises(ValueError, match=r"'pink', 'six'.*\(colour, kind\).*blue, green, red; seven, six, star"):
        attribute_accuracy({}, {1: ("pink", "six")}, vocabulary=WORDS)
    with pytest.raises(ValueError, match="'table', 'low'"):
        attribute_accuracy({}, {1: ("table", "low")}, vocabulary=OBJECTS)
    with pytest.raises(ValueError, match="two groups; this vocabulary has kind, proportion, posture"):
        OBJECTS.pairs("low table")
    assert WORDS.named("Red star, a blue star, red") == (("blue", "red", "red"), ("star", "star"))


def test_three_attributes_together_and_each() -> None:
    truth = {key: ("table", "low", "lying") for key in "abcd"}
    captions = {
        "a": "a low table lying on its side",
        "b": "this tall table is lying on its side",
        "c": "a low table standing, or lying on its side",
    }
    assert attribute_accuracy(captions, truth, vocabulary=OBJECTS) == 0.25
    assert attribute_shares(captions, truth, vocabulary=OBJECTS) == {"kind": 0.75, "proportion": 0.5, "posture": 0.5}
    rooms = dict.fromkeys("ab", "room") | dict.fromkeys("cd", "hall")
    mixed = truth | {"b": ("table", "tall", "lying"), "d": ("table", "low", "leaning")}
    assert box_following(captions, mixed, rooms, vocabulary=OBJECTS) == 1.0
    assert box_following({**captions, "b": "lying low table"}, mixed, rooms, vocabulary=OBJECTS) == 0.5
    assert majority_accuracy([*mixed.values(), list(truth["a"])], mixed.values()) == 0.5  # type: ignore[list-item]


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
