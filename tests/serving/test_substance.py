"""Clouds and boxes that hold nothing to caption."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lavis.serving.substance import LEAST_POINTS, check_boxes, check_cloud

CLOUD = np.random.RandomState(0).uniform(-1, 1, (500, 3)).astype(np.float32)


def test_a_cloud_needs_points_at_different_places() -> None:
    check_cloud(CLOUD[:LEAST_POINTS])
    check_cloud(np.concatenate([np.repeat(CLOUD[:1], 5000, axis=0), CLOUD]))  # its first points alone would not do
    for few in (CLOUD[:3], np.repeat(CLOUD[: LEAST_POINTS - 1], 200, axis=0)):
        places = len(np.unique(few, axis=0))
        with pytest.raises(
            ValueError, match=f"points at {places} places, too few to show anything; accepted: at least {LEAST_POINTS}"
        ):
            check_cloud(few)


def test_a_box_needs_a_point_in_it() -> None:
    inside = [0, 0, 0, 1, 1, 1]
    check_boxes(CLOUD, [])
    check_boxes(CLOUD, [inside, [*inside, 0.5]])
    check_boxes(CLOUD + 100, [[100, 100, 100, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"^the box \(5, 0, 0, 1, 1, 1\) holds no point of the cloud; .* x -0.99 to 1.00, y "):
        check_boxes(CLOUD, [[5, 0, 0, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"^box 2 of 2 \(0, 0, 0, 1e-06, 1e-06, 1e-06\) holds no point"):
        check_boxes(CLOUD, [inside, [0, 0, 0, 1e-6, 1e-6, 1e-6]])


def test_points_on_the_edge_are_in_the_box_and_turns_are_heeded() -> None:
    third = np.full((1, 3), 1 / 3, dtype=np.float32)
    check_boxes(third, [[0.0, 0.0, 0.0, *[2 / 3] * 3]])
    point, long = np.array([[0.0, 1.9, 0.0]]), [0, 0, 0, 4, 0.1, 1]
    check_boxes(point, [[*long, math.pi / 2]])
    with pytest.raises(ValueError, match="holds no point"):
        check_boxes(point, [long])
