"""Boxes in space, in all the forms that people write, as the models read them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from lavis.datasets.cloud_geometry import box_corners
from lavis.serving.boxes import region_corners

BOX = [1.0, 2.0, 3.0, 0.4, 0.6, 0.8]


def test_plain_boxes_are_those_of_the_dataset() -> None:
    corners = region_corners(BOX)
    assert np.array_equal(corners, box_corners(BOX)) and corners.dtype == np.float32
    np.testing.assert_allclose(np.ptp(corners, axis=0), [0.4, 0.8, 0.6], rtol=1e-5)  # y and z change places, as published


def test_headings_and_corners() -> None:
    np.testing.assert_allclose(region_corners([*BOX, 0.0]), box_corners(BOX))
    quarter = [*BOX[:3], 0.6, 0.4, 0.8]
    np.testing.assert_allclose(region_corners([*BOX, math.pi / 2]), box_corners(quarter), rtol=1e-5)
    side = (0.4 + 0.6) / math.sqrt(2)
    np.testing.assert_allclose(region_corners([*BOX, math.pi / 4]), box_corners([*BOX[:3], side, side, 0.8]), rtol=1e-5)
    low, high = np.array(BOX[:3]) - np.array(BOX[3:]) / 2, np.array(BOX[:3]) + np.array(BOX[3:]) / 2
    corners = np.array(list(itertools.product(*zip(low, high, strict=True))))
    for order in (corners, corners[::-1], corners[[3, 1, 2, 0, 7, 5, 6, 4]]):
        np.testing.assert_allclose(region_corners(order), box_corners(BOX), rtol=1e-5)


@pytest.mark.parametrize(
    "box, message",
    [
        ([1, 2, 3, 4], r"has shape \(4,\); accepted: finite numbers, cx, cy, cz, dx, dy, dz"),
        ([1, 2, 3, 1, 1, math.nan], "accepted: finite numbers"),
        ([1, 2, 3, 1, 0, 1], "has no volume; accepted: dx, dy and dz above 0"),
        (np.zeros((8, 3)), "enclose no volume"),
        ("box", "is not numbers"),
        ([[1, 2], [3]], "is not numbers"),
    ],
)
def test_bad_boxes_are_named(box: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        region_corners(box)
