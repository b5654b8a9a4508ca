from __future__ import annotations

import math

import numpy as np
import pytest

from lavis.datasets import cloud_geometry as geometry


def draws(seed: int = 0) -> np.random.RandomState:
    return np.random.RandomState(seed)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros(3), r"^malformed point cloud: float64 \(3,\)"),
        (np.zeros((4, 2)), "^malformed point cloud"),
        (np.zeros((0, 3)), "^malformed point cloud"),
        (np.array([["a", "b", "c"]]), "^malformed point cloud"),
        ([[1, 2, 3], [1, math.nan, 3], [math.inf, 2, 3]], "^not finite: 2 of 3 points"),
        (np.ones((5, 3)), r"^one repeated point: all 5 points are \[1.0, 1.0, 1.0\]"),
    ],
)
def test_clouds_that_cannot_be_used(points: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        geometry.as_cloud(points)


def test_columns() -> None:
    points = np.arange(18).reshape(2, 9)
    assert geometry.as_cloud(points).tolist() == [[0, 1, 2], [9, 10, 11]]
    assert geometry.as_cloud(points, use_color=True).shape == (2, 6)
    assert geometry.as_cloud(points).dtype == np.float32
    points = points.astype(float)
    points[0, 8] = math.nan
    geometry.as_cloud(points, use_color=True)  # what is not read may be anything
    with pytest.raises(ValueError, match=r"^no colour: a cloud of shape \(2, 5\)"):
        geometry.as_cloud(points[:, :5], use_color=True)


def test_choice_of_points() -> None:
    points = np.arange(30).reshape(10, 3)
    order = geometry.shuffled(points, 10, draws())
    assert sorted(order[:, 0]) == sorted(points[:, 0]) and order.tolist() != points.tolist()
    assert geometry.shuffled(points, 4, draws()).tolist() == order[:4].tolist()
    with pytest.raises(ValueError, match="^too few points: 10, a sample takes 11"):
        geometry.shuffled(points, 11, draws())
    assert len({tuple(row) for row in geometry.sampled(points, 10, draws())}) == 10
    assert geometry.sampled(points, 25, draws()).shape == (25, 3)


def test_unit_sphere() -> None:
    points = np.c_[draws().rand(50, 3) * 7 + 100, np.arange(50)]
    cloud = geometry.unit_sphere(points)
    np.testing.assert_allclose(cloud[:, :3].mean(axis=0), 0, atol=1e-12)
    assert np.linalg.norm(cloud[:, :3], axis=1).max() == pytest.approx(1)
    assert cloud[:, 3].tolist() == list(range(50)), "what is no coordinate stays"
    with pytest.raises(ValueError, match="^one repeated point: all 1 points"):
        geometry.unit_sphere(points[:1])


@pytest.mark.parametrize(("axis", "vector", "turned"), [("x", 1, 2), ("y", 2, 0), ("z", 0, 1)])
def test_rotation(axis: str, vector: int, turned: int) -> None:
    matrix = geometry.rotation(axis, math.pi / 2)
    np.testing.assert_allclose(matrix @ np.eye(3)[vector], np.eye(3)[turned], atol=1e-15)
    np.testing.assert_allclose(geometry.rotation(axis, 0.3) @ geometry.rotation(axis, 0.3).T, np.eye(3), atol=1e-15)


def test_objects_are_augmented_within_bounds() -> None:
    points = np.c_[geometry.unit_sphere(draws(1).randn(400, 3)), np.arange(400)]
    kept, scales = [], []
    for seed in range(30):
        cloud = geometry.augment_object(points, draws(seed))
        assert cloud.shape == (400, 4)
        index = cloud[:, 3].astype(int)
        assert set(np.flatnonzero(index != np.arange(400))) == set(np.flatnonzero(index == 0)[1:])
        kept.append(len(set(index)) / 400)
        span = np.linalg.norm(cloud[index == index[-1], :3] - cloud[0, :3], axis=1).max()
        scales.append(span / np.linalg.norm(points[index[-1], :3] - points[0, :3]) if index[-1] else 1.0)
    assert min(kept) > 0.05 and max(kept) > 0.9
    assert 0.8 <= min(scales) < max(scales) <= 1.25 and points[0, 3] == 0
    np.testing.assert_array_equal(geometry.augment_object(points, draws(3)), geometry.augment_object(points, draws(3)))


def test_scenes_turn_with_their_boxes() -> None:
    box = np.array([1.0, 2.0, 3.0, 2.0, 1.0, 0.5])
    corners = box[:3] + np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * box[3:] / 2
    seen = set()
    for seed in range(20):
        points, hull = geometry.augment_scene(np.c_[corners, np.arange(8)], box, draws(seed))
        np.testing.assert_allclose(hull[:3], points[:, :3].mean(axis=0))
        np.testing.assert_allclose(hull[3:], np.ptp(points[:, :3], axis=0))
        assert points[:, 3].tolist() == list(range(8))
        assert math.hypot(*hull[:2]) == pytest.approx(math.hypot(*box[:2]))
        seen.add((hull[0] > 0, hull[1] > 0))
    assert len(seen) == 4, "both mirrors occur"


def test_corners_in_the_published_order() -> None:
    corners = geometry.box_corners([10, 20, 30, 2, 4, 6])
    assert corners.dtype == np.float32
    assert corners[0].tolist() == [11, 23, 32], "the extents of y and z change places"
    assert (corners - [10, 20, 30]).tolist() == [
        *([1, 3, 2], [1, 3, -2], [-1, 3, -2], [-1, 3, 2]),
        *([1, -3, 2], [1, -3, -2], [-1, -3, -2], [-1, -3, 2]),
    ]
    for bad in ([0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 1], [0, 0, 0, 1, -1, 1], [0, math.nan, 0, 1, 1, 1], np.ones((2, 6))):
        with pytest.raises(ValueError, match="empty or malformed box"):
            geometry.box_corners(bad)


def test_id_of_an_object() -> None:
    assert geometry.object_region_id("scene0011_00", 4) == "scene0011_00_4"


def test_corners_of_a_box_and_the_box_of_corners() -> None:
    box = [1.0, 2.0, 3.0, 0.2, 0.4, 0.8]
    corners = geometry.corners_of(box)
    np.testing.assert_allclose(np.ptp(corners, axis=0), [0.2, 0.4, 0.8], atol=1e-6)
    np.testing.assert_allclose(np.ptp(geometry.box_corners(box), axis=0), [0.2, 0.8, 0.4], atol=1e-6)
    np.testing.assert_allclose(geometry.box_of(corners[::-1]), box, atol=1e-6)
    for bad in ([1, 2, 3], [1, 2, 3, 0, 1, 1], [1, 2, 3, 1, 1, math.nan]):
        with pytest.raises(ValueError, match="empty or malformed box"):
            geometry.corners_of(bad)
    turned = (corners - corners.mean(axis=0)) @ geometry.rotation("z", 0.3)
    twice = corners[[0, 0, 1, 2, 3, 4, 5, 6]]
    flat = corners * [1, 1, 0]
    for wrong in (turned, twice, flat):
        with pytest.raises(ValueError, match="not the 8 of a box"):
            geometry.box_of(wrong)
    for malformed in (corners[:7], np.full((8, 3), math.nan)):
        with pytest.raises(ValueError, match="malformed corners"):
            geometry.box_of(malformed)


def test_colours_where_there_are_any() -> None:
    points = draws().randn(5, 3)
    shares = draws(1).uniform(size=(5, 3))
    np.testing.assert_allclose(geometry.with_colours(np.c_[points, shares])[:, 3:], shares, rtol=1e-6)
    np.testing.assert_allclose(geometry.with_colours(np.c_[points, np.round(255 * shares)])[:, 3:], shares, atol=0.01)
    for none in (points, np.c_[points, np.zeros((5, 3))], np.c_[points, draws(2).randn(5, 3)], np.c_[points, 1000 * shares]):
        assert geometry.with_colours(none).shape == (5, 3)
    with pytest.raises(ValueError, match="malformed point cloud"):
        geometry.with_colours(np.zeros((4, 2)))
