"""Pictures of clouds: what is near covers what is far, what is high is above, boxes mark what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis.report.cloud_pictures import BACKGROUND, render_cloud

RED, GREEN, BLUE = np.eye(3)


def draw(*args: Any, **options: Any) -> np.ndarray:
    """The pixels [S, S, 3] of a picture, 0..1."""
    picture = render_cloud(*args, **options)
    assert isinstance(picture, Image.Image) and picture.mode == "RGB"
    return np.asarray(picture) / 255


def where(pixels: np.ndarray, channel: int) -> tuple[float, float]:
    """Mean column and row of the pixels in which one channel is by far the strongest."""
    others = pixels[:, :, [c for c in range(3) if c != channel]].max(axis=2)
    rows, columns = np.nonzero(pixels[:, :, channel] > others + 0.3)
    assert len(rows), "nothing of this colour"
    return float(columns.mean()), float(rows.mean())


def ball(centre: tuple[float, float, float], *, count: int = 400) -> np.ndarray:
    points = np.random.RandomState(0).normal(size=(count, 3))
    return np.array(centre) + 0.2 * points / np.linalg.norm(points, axis=1, keepdims=True)


def two(first: tuple[float, float, float], second: tuple[float, float, float], **options: Any) -> np.ndarray:
    """A red and a blue ball."""
    first_points, second_points = ball(first), ball(second)
    colours = np.repeat([RED, BLUE], [len(first_points), len(second_points)], axis=0)
    return draw(np.concatenate([first_points, second_points]), colours=colours, size=120, **options)


def test_axes_point_where_they_should() -> None:
    front = {"azimuth": -90.0, "elevation": 0.0}  # the camera is on the negative y side
    high, low = two((0, 0, 1), (0, 0, -1), **front), two((-1, 0, 0), (1, 0, 0), **front)
    assert where(high, 0)[1] < where(high, 2)[1] - 40
    assert where(low, 0)[0] < where(low, 2)[0] - 40
    y_up = two((0, 1, 0), (0, -1, 0), up="y", **front)
    assert where(y_up, 0)[1] < where(y_up, 2)[1] - 40


def test_up_only_renames_the_axes() -> None:
    cloud, box = np.random.RandomState(1).uniform(size=(300, 3)), np.array([0.3, 0.4, 0.5, 0.2, 0.3, 0.4])
    turned = np.stack([cloud[:, 0], cloud[:, 2], -cloud[:, 1]], axis=1)  # z up to y up
    turned_box = [box[0], box[2], -box[1], box[3], box[5], box[4]]
    assert (draw(cloud, boxes=box, size=90) == draw(turned, up="y", boxes=turned_box, size=90)).all()


@pytest.mark.parametrize("azimuth", [-90.0, 90.0])
def test_near_covers_far_whatever_the_order(azimuth: float) -> None:
    pixels = two((0, -1, 0), (0, 1, 0), azimuth=azimuth, elevation=0.0)
    middle = pixels[55:65, 55:65].mean(axis=(0, 1))
    near, far = (0, 2) if azimuth < 0 else (2, 0)
    assert middle[near] > 0.3 and middle[far] < 0.12  # of the background, seen between the points


def test_it_fills_the_picture_and_keeps_inside() -> None:
    pixels = draw(np.random.RandomState(2).uniform(size=(3000, 3)) * [3, 1, 1], size=200)
    drawn = pixels.max(axis=2) > 0.45
    columns = np.nonzero(drawn.any(axis=0))[0]
    assert 4 < columns[0] < 24 and 176 < columns[-1] < 196
    assert not drawn[:4].any() and not drawn[-4:].any()


def test_boxes_mark_what_they_hold() -> None:
    cloud = np.concatenate([ball((-1, 0, 0)), ball((1, 0, 0))])
    options: dict[str, Any] = {"size": 160, "azimuth": -90.0, "elevation": 20.0}
    box = [-1, 0, 0, 0.41, 0.41, 0.41]
    plain, marked = draw(cloud, **options), draw(cloud, boxes=[box], **options)
    warm = (marked[:, :, 0] > marked[:, :, 2] + 0.2).sum(axis=0)  # orange pixels of every column
    assert warm[:80].sum() > 300 and warm[80:].sum() == 0
    assert (plain[:, :, 0] <= plain[:, :, 2] + 0.2).all()
    bright = (marked.min(axis=2) > 0.7).sum()
    assert bright > 30 and (plain.min(axis=2) > 0.7).sum() == 0  # the wires
    both = draw(cloud, boxes=[box, [1, 0, 0, 0.41, 0.41, 0.41]], **options)
    assert (both[:, 80:, 0] > both[:, 80:, 2] + 0.2).sum() > 300


def test_wires_that_face_the_camera_lie_over_all_and_others_are_fainter() -> None:
    box = [0, 0, 0, 1, 1, 1]
    options: dict[str, Any] = {"size": 240, "azimuth": -90.0, "elevation": 0.0, "point_size": 6.0}
    ends = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.8, 0.8) for z in (-0.5, 0.5)])  # so that both look alike
    screen = np.concatenate([ends, np.random.RandomState(3).uniform(-0.5, 0.5, (6000, 3)) * [1, 0, 1] - [0, 0.8, 0]])
    open_box = draw(ends, boxes=box, colours=np.zeros((8, 3)), **options).min(axis=2)
    covered = draw(screen, boxes=box, colours=np.zeros((len(screen), 3)), **options).min(axis=2)
    seen = open_box > 0.4  # the square of the front; the back's is smaller and fainter
    assert seen.sum() > 1000 and not seen[40:200, 40:200].any()
    assert (covered[seen] > 0.4).mean() > 0.99
    inner = open_box[40:200, 40:200] > 0.24
    assert 400 < inner.sum() < 3000
    assert (covered[40:200, 40:200][inner] < 0.15).mean() > 0.95


def test_colours() -> None:
    floor = np.random.RandomState(4).uniform(size=(3000, 3)) * [1, 1, 0.01]
    tower = np.random.RandomState(5).uniform(size=(3000, 3)) * [0.1, 0.1, 1]
    by_height = draw(np.concatenate([floor, tower]), elevation=15.0, size=120)
    top, bottom = by_height[:40].reshape(-1, 3), by_height[90:].reshape(-1, 3)
    assert (top[:, 1] > 0.5).any() and not (bottom[:, 1] > 0.5).any() and (bottom[:, 2] > 0.4).any()
    own = draw(floor, colours=np.tile(GREEN, (3000, 1)), size=120)
    assert (own[:, :, 1] > 0.6).sum() > 1000 and where(own, 1)
    light = draw(floor, background=(0.9, 0.9, 0.9), size=64)
    assert light[0, 0].min() > 0.85
    assert np.abs(draw(floor, size=64)[0, 0] - BACKGROUND).max() < 0.03


@pytest.mark.filterwarnings("error")
def test_odd_clouds_are_drawn() -> None:
    cloud = np.random.RandomState(6).uniform(size=(50, 3))
    for points in ([[0, 0, 0]], np.zeros((5, 3)), cloud * 1e-6 + 1000, cloud.astype(np.float32), cloud * [1, 1, 0]):
        pixels = draw(points, size=48)
        assert pixels.shape == (48, 48, 3) and pixels.max() > 0.3
    assert draw([[1, 2, 3]], size=16, point_size=40, elevation=90).shape == (16, 16, 3)
    assert draw(cloud, boxes=[[9, 9, 9, 1, 1, 1]], size=48).max() > 0.7  # far from all points


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": np.zeros((4, 6))}, r"points float64 \(4, 6\); accepted: numbers \[N, 3\]"),
        ({"points": np.zeros((0, 3))}, r"points .*\(0, 3\)"),
        ({"points": [["a", "b", "c"]]}, "points"),
        ({"points": [[0, 0, np.nan], [0, 0, 0]]}, "points: 1 of 2 have NaN"),
        ({"boxes": [0, 0, 0, 1, 1]}, r"boxes .*\(5,\); accepted: numbers \[..., 6\]"),
        ({"boxes": 3.0}, "boxes"),
        ({"boxes": [0, 0, np.inf, 1, 1, 1]}, "boxes: 1 of 1 have NaN or infinity"),
        ({"boxes": [[0, 0, 0, 1, 0, 1]]}, r"boxes: \[0.0, .*no volume"),
        ({"colours": [[0, 0, 0]]}, r"colours \(1, 3\); accepted: \[5, 3\]"),
        ({"colours": np.full((5, 3), 255)}, "colours from 255 to 255; accepted: 0..1"),
        ({"colours": np.full((5, 3), np.nan)}, "colours"),
        ({"up": "x"}, "up 'x'; accepted: z, y"),
        ({"size": 8}, "size 8"),
        ({"elevation": 91.0}, "elevation 91"),
        ({"point_size": 0.0}, "point_size 0"),
    ],
)
def test_what_cannot_be_drawn(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_cloud(**{"points": np.eye(5, 3), **changes})
