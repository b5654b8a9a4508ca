"""Boxes as they are written on the command line."""

from __future__ import annotations

import argparse

import pytest

from lavis.serving.box_arguments import BOX, BOX_3D, read_boxes, with_minus


@pytest.mark.parametrize(
    "texts",
    [
        ["1,2,3,4", "-5,6,7,8"],
        ["1", "2", "3", "4", "-5", "6", "7", "8"],
        ["1 2 3 4", " -5, 6, 7, 8"],
        ["1", "2", "3", "4", "-5,6,7,8"],
    ],
)
def test_every_way_to_write_two_boxes(texts: list[str]) -> None:
    assert read_boxes(texts, BOX) == [[1, 2, 3, 4], [-5, 6, 7, 8]]


def test_boxes_in_space_may_have_a_heading() -> None:
    assert read_boxes(["1,2,3,4,5,6,.5", "1", "2", "3", "4", "5", "6"], BOX_3D) == [[1, 2, 3, 4, 5, 6, 0.5], [1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["1,2,3"], "--boxes 1,2,3 has 3 numbers; accepted: x1,y1,x2,y2 for each box"),
        (["1,2,3,4", "5"], "--boxes 5 has 1 number; "),
        (["1", "2", "3,4,5,6"], "--boxes 1,2 has 2 numbers; "),
        ([""], "--boxes  has 0 numbers; "),
        (["1,two,3,4"], "--boxes '1,two,3,4'; accepted: numbers with commas between them"),
    ],
)
def test_what_is_no_box(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_boxes(texts, BOX)
    assert str(error.value).startswith(message)


def test_a_leading_minus_is_a_value_and_options_stay_options() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--boxes", nargs="+")
    parser.add_argument("--angle", type=float)
    parser.add_argument("-o")
    given = parser.parse_args(with_minus(["--boxes", "-1,2,3,4", "-.5,6,7,8", "--angle", "-60", "-o", "x"]))
    assert read_boxes(given.boxes, BOX) == [[-1, 2, 3, 4], [-0.5, 6, 7, 8]]
    assert (given.angle, given.o) == (-60, "x")
