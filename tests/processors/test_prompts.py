"""Masks, points and scribbles as boxes, on pictures and in clouds, and regions as JSON writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from lavis.processors.prompts import (
    click_to_box_3d,
    mask_to_box,
    point_mask_to_corners,
    point_to_box,
    read_region,
    read_region_3d,
    scribble_to_box,
    scribble_to_box_3d,
)

SIZE = (40, 30)
MASK = np.zeros((30, 40), dtype=np.uint8)
MASK[5:12, 10:25] = 1
MASK[20, 7] = 1
BOX = [7.0, 5.0, 25.0, 21.0]


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32])
def test_a_mask_gives_its_tight_box(kind: Any) -> None:
    assert mask_to_box(MASK.astype(kind)) == BOX
    assert mask_to_box(np.ones((3, 5), dtype=kind)) == [0, 0, 5, 3]
    with pytest.raises(ValueError, match="the mask of 5 x 3 pixels is empty"):
        mask_to_box(np.zeros((3, 5), dtype=kind))
    with pytest.raises(ValueError, match=r"\(3, 5, 3\); accepted: \[H, W\]"):
        mask_to_box(np.zeros((3, 5, 3), dtype=kind))


def test_a_scribble_gives_the_box_around_it() -> None:
    assert scribble_to_box([[10, 10], [20, 15]], *SIZE, margin=2) == [8, 8, 22, 17]
    assert scribble_to_box([[1, 1], [39, 29], [60, -9]], *SIZE) == pytest.approx([0.2, 0, 40, 29.8])
    assert scribble_to_box([[10, 10]], *SIZE) == pytest.approx([9.2, 9.2, 10.8, 10.8])  # a dot has an area too
    with pytest.raises(ValueError, match=r"scribble \[\[50.0, 10.0\]\] has no point in a picture of 40 x 30"):
        scribble_to_box([[50, 10]], *SIZE)
    with pytest.raises(ValueError, match="margin is -1"):
        scribble_to_box([[10, 10]], *SIZE, margin=-1)


def test_a_point_gives_a_square_inside_the_picture() -> None:
    assert point_to_box(20, 15, *SIZE) == [15.5, 10.5, 24.5, 19.5]
    assert point_to_box(0, 30, *SIZE, size=10) == [0, 20, 10, 30]
    assert point_to_box(20, 15, *SIZE, size=100) == [0, 0, 40, 30]
    for x, y in ((-1, 5), (5, 31), (41, 5)):
        with pytest.raises(ValueError, match=r"lies outside a picture of 40 x 30 pixels"):
            point_to_box(x, y, *SIZE)
    with pytest.raises(ValueError, match="size is 0; accepted: a number above 0"):
        point_to_box(5, 5, *SIZE, size=0)


def packed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def lengths(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": counts if flat[0] == 0 else [0, *counts]}


def test_every_way_to_write_a_region(tmp_path: Path) -> None:
    Image.fromarray(MASK * 255).save(tmp_path / "grey.png")
    Image.fromarray(MASK.astype(bool)).save(tmp_path / "bits.png")
    palette = Image.fromarray(MASK).convert("P")
    palette.putdata(MASK.reshape(-1).tolist())
    palette.save(tmp_path / "palette.png")
    layer = np.concatenate([np.zeros((30, 40, 3), np.uint8), MASK[..., None] * 255], axis=2)
    Image.fromarray(layer).save(tmp_path / "layer.png")
    for name in ("grey", "bits", "palette", "layer"):
        assert read_region({"mask": f"{name}.png"}, SIZE, folder=tmp_path) == BOX, name
    for mask, box in ((MASK, BOX), (1 - MASK, [0, 0, 40, 30])):
        for run_lengths in (packed(mask), lengths(mask)):
            assert read_region({"mask": json.loads(json.dumps(run_lengths))}, SIZE) == box
    assert read_region([1, 2, 3.5, 4], SIZE) == read_region({"box": (1, 2, 3.5, 4)}, SIZE) == [1, 2, 3.5, 4]
    assert read_region({"point": [20, 15], "size": 4}, SIZE) == [18, 13, 22, 17]
    assert read_region({"scribble": [[10, 10], [20, 15]], "margin": 2}, SIZE) == [8, 8, 22, 17]


def test_random_masks_as_run_lengths() -> None:
    rng = np.random.RandomState(0)
    for _ in range(50):
        height, width = rng.randint(1, 60, 2)
        mask = (rng.uniform(size=(height, width)) < rng.uniform(0.01, 0.99)).astype(np.uint8)
        mask[rng.randint(height), rng.randint(width)] = 1
        for spec in (packed(mask), lengths(mask)):
            assert read_region({"mask": spec}, (int(width), int(height))) == mask_to_box(mask)


@pytest.mark.parametrize(
    "spec, message",
    [
        ([1, 2, 3], r"box \[1, 2, 3\] is not 4 finite numbers"),
        ("1,2,3,4", "box '1,2,3,4' is not 4 finite numbers"),
        ({"box": [1, 2, 3, float("nan")]}, "is not 4 finite numbers"),
        ({"box": [[1, 2], [3]]}, "box"),
        ({"point": [1]}, r"point \[1\] is not 2 finite numbers"),
        ({"point": [1, 2], "size": "big"}, "size 'big' is not one finite number"),
        ({"scribble": []}, r"scribble \[\] is not N x 2 finite numbers"),
        ({"boxes": [1, 2, 3, 4]}, "has 0 of the keys box, point, scribble, mask; accepted: one of them"),
        ({"box": [1, 2, 3, 4], "point": [1, 2]}, "has 2 of the keys"),
        ({"point": [1, 2], "sise": 3}, r"has the key 'sise'\. Did you mean 'size'\? Accepted here: point, size"),
        ({"mask": "away.png"}, r"mask .*away\.png: no such file"),
        ({"mask": "text.png"}, r"text\.png is no picture that can be read"),
        ({"mask": "small.png"}, r"mask 'small.png' has 3 x 2 pixels, the picture 40 x 30"),
        ({"mask": 3}, "mask 3 is no path and no run lengths"),
        ({"mask": {"size": [40, 30], "counts": [1200]}}, r"has size \[40, 30\]; the picture has \[height, width\] \[30, 40\]"),
        ({"mask": {"size": [30, 40], "counts": [5, 5]}}, r"run lengths \[5, 5\] is not 1200 pixels"),
        ({"mask": {"size": [30, 40], "counts": "zzzz"}}, "run lengths 'zzzz' is not 1200 pixels"),
        ({"mask": {"size": [30, 40], "counts": "P"}}, "run lengths 'P' is not 1200 pixels"),
        ({"mask": {"size": [30, 40], "counts": [1200]}}, "the mask of 40 x 30 pixels is empty"),
    ],
)
def test_bad_regions_are_named(spec: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (3, 2), 1).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=message):
        read_region(spec, SIZE, folder=tmp_path)


CLOUD = np.random.RandomState(0).uniform(-2, 2, (100, 6))


def test_regions_of_clouds(tmp_path: Path) -> None:
    mask = CLOUD[:, 0] > 0
    corners = point_mask_to_corners(CLOUD, mask)
    taken = CLOUD[mask, :3]
    assert corners.shape == (8, 3) and len({tuple(corner) for corner in corners}) == 8
    np.testing.assert_allclose(corners.min(axis=0), taken.min(axis=0), rtol=1e-6)
    np.testing.assert_allclose(corners.max(axis=0), taken.max(axis=0), rtol=1e-6)
    numbers = np.flatnonzero(mask)
    np.save(tmp_path / "mask.npy", mask)
    for value in ("mask.npy", numbers.tolist()):
        assert np.array_equal(read_region_3d({"mask": value}, CLOUD, folder=tmp_path), corners.astype(np.float64))
    assert click_to_box_3d([1, 2, 3]) == [1, 2, 3, 1, 1, 1] and click_to_box_3d([1, 2, 3], [1, 2, 4]) == [1, 2, 3, 1, 2, 4]
    assert scribble_to_box_3d([[0, 0, 0], [2, 0, 1]], margin=0.5) == [1, 0, 0.5, 3, 1, 2]
    assert read_region_3d({"point": [1, 2, 3], "size": 0.5}, CLOUD).tolist() == [1, 2, 3, 0.5, 0.5, 0.5]
    assert read_region_3d({"scribble": [[0, 0, 0]]}, CLOUD).tolist() == [0, 0, 0, 0.2, 0.2, 0.2]
    assert read_region_3d([1, 2, 3, 4, 5, 6, 0.1], CLOUD).shape == (7,)
    assert read_region_3d({"corners": corners.tolist()}, CLOUD).shape == (8, 3)


@pytest.mark.parametrize(
    "spec, message",
    [
        ([1, 2, 3], r"box \[1, 2, 3\]; accepted: cx, cy, cz, dx, dy, dz, perhaps a heading, or 8 corners"),
        ({"point": [1, 2]}, "is not 3 finite numbers"),
        ({"point": [1, 2, 3], "size": -1}, "size is -1; accepted: numbers above 0"),
        ({"scribble": [[0, 0, 0]], "margin": 0}, "has no volume"),
        ({"mask": [5]}, "the 1 points of the mask enclose no volume"),
        ({"mask": [5, 100]}, "point numbers 5 to 100; the cloud has 0 to 99"),
        ({"mask": [True]}, "a mask of 1 values for 100 points"),
        ({"mask": [0.5]}, "a mask of float64"),
        ({"mask": "away.npy"}, r"away\.npy cannot be read as a \.npy file"),
        ({"where": 1}, "has 0 of the keys box, corners, point, scribble, mask"),
    ],
)
def test_bad_regions_of_clouds_are_named(spec: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_region_3d(spec, CLOUD, folder=tmp_path)
