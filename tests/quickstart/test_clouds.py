"""Generated objects and rooms: what the words say is in the points, files are in the real layouts, draws repeat."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lavis.datasets.datasets import cap3d
from lavis.datasets.datasets.scanrefer import read_scene
from lavis.quickstart.clouds import (
    OBJECT_POINTS,
    PHRASES,
    ROOM_POINTS,
    THINGS,
    cloud_texts,
    cloud_vocabulary,
    draw_room,
    draw_things,
    generate_clouds,
    object_captions,
    tight_boxes,
    y_up,
)
from lavis.quickstart.objects import KINDS, POSTURES, PROPORTIONS, Thing3D, block, disc, draw_object, surface, tube

SIZES = {"seed": 3, "train_objects": 4, "test_objects": 3, "train_rooms": 2, "test_rooms": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clouds")
    generate_clouds(folder, **SIZES)
    return folder


def test_points_are_even_over_the_area() -> None:
    rng = np.random.RandomState(0)
    box = surface(block(0, 0, 0, 2, 1, 1), 20_000, rng)
    on_top = np.isclose(box[:, 2], 1).mean()
    assert on_top == pytest.approx(2 / 10, abs=0.01)  # the top has 2 of 10 units of area
    cone = surface([tube(1.0, 0.0, 0, 1)], 20_000, rng)
    radius = np.hypot(cone[:, 0], cone[:, 1])
    assert np.allclose(radius + cone[:, 2], 1)
    assert (radius < 0.5).mean() == pytest.approx(0.25, abs=0.01)  # a quarter of a cone's side is above half its height
    ring = surface([disc(2.0, 1.0, 0.5)], 5000, rng)
    assert np.hypot(ring[:, 0], ring[:, 1]).min() >= 0.5 and (ring[:, 2] == 2).all()


@pytest.mark.parametrize("kind", KINDS)
def test_proportion_and_posture_are_in_the_points(kind: str) -> None:
    rng = np.random.RandomState(1)

    def extents(proportion: str, posture: str) -> np.ndarray:
        points = draw_object(Thing3D(kind, proportion, posture), 3000, rng)
        assert points[:, 2].min() == 0 and np.isfinite(points).all()
        level = points[:, :2] - points[:, :2].mean(axis=0)
        _, _, axes = np.linalg.svd(level, full_matrices=False)
        return np.array([*np.ptp(level @ axes.T, axis=0), np.ptp(points[:, 2])])

    tall, low, long = (extents(name, "standing") for name in PROPORTIONS)
    assert tall[2] > 1.2 * tall[:2].max()
    assert low[2] < 0.6 * low[0]
    assert long[0] > 1.8 * long[1] or long[0] > 1.6 * long[2]
    assert extents("tall", "lying")[2] < 0.75 * tall[2]
    assert extents("tall", "leaning")[2] < tall[2] * 1.15


def test_rooms_hold_what_their_boxes_say() -> None:
    points, things, owners = draw_room(np.random.RandomState(2))
    boxes = tight_boxes(points, owners)
    assert points.shape == (ROOM_POINTS, 3) and len(things) == THINGS and boxes.shape == (THINGS, 8)
    for index, (*box, _, number) in enumerate(boxes):
        centre, extent = np.array(box[:3]), np.array(box[3:])
        mine = points[owners == index]
        assert number == index and (np.abs(mine - centre) <= extent / 2 + 1e-9).all()
        others = points[(owners >= 0) & (owners != index)]
        assert (np.abs(others - centre) <= extent / 2).all(axis=1).mean() < 0.05
    assert (owners == -1).sum() >= ROOM_POINTS // 4


def test_no_word_alone_tells_a_thing() -> None:
    for seed in range(50):
        things = draw_things(np.random.RandomState(seed))
        assert len({thing.name for thing in things}) == THINGS
        assert max(Counter(thing.kind for thing in things).values()) >= 2
        assert max(Counter(thing.proportion for thing in things).values()) >= 2


def test_files_are_in_the_real_layouts(root: Path) -> None:
    truth = json.loads((root / "annotations" / "objects_test.json").read_text())
    lines = [(name, text) for _, name, text in cap3d.read_lines(root / "annotations" / "cap3d_test.txt")]
    things = {row["id"]: Thing3D(row["kind"], row["proportion"], row["posture"]) for row in truth}
    assert lines == [(name, text) for name, thing in things.items() for text in object_captions(thing)]
    for name in things:
        cloud = np.load(root / "objects" / name / f"{name}_8192.npz")["arr_0"]
        assert cloud.shape == (OBJECT_POINTS, 3) and cloud.dtype == np.float32 and abs(cloud[:, 1].min()) < 1e-6  # y is up
    rooms = json.loads((root / "annotations" / "rooms_train.json").read_text())
    for room in rooms:
        points, boxes = read_scene(root / "rooms", room["scene"], use_color=False, use_height=False)
        assert points.shape == (ROOM_POINTS, 3)
        np.testing.assert_allclose(boxes[:, :6], [row["box"] for row in room["objects"]])
    rows = json.loads((root / "annotations" / "ScanRefer_train.json").read_text())
    assert len(rows) == 3 * THINGS * len(rooms) and len({(r["scene_id"], r["object_id"], r["description"]) for r in rows}) == len(
        rows
    )


def test_the_same_seed_writes_the_same(root: Path, tmp_path: Path) -> None:
    generate_clouds(tmp_path, **SIZES)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.suffix in (".npy", ".json", ".txt"))
    assert len(files) == 2 * 2 * 2 + 2 * 4
    assert all((root / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)
    with pytest.raises(ValueError, match="accepted: 1.."):
        generate_clouds(tmp_path, **{**SIZES, "test_rooms": 0})


def test_the_language_is_closed(root: Path) -> None:
    captions, descriptions = cloud_texts()
    words = set(cloud_vocabulary())
    assert {word for text in [*captions, *descriptions] for word in text.split()} == words
    written = {text for _, _, text in cap3d.read_lines(root / "annotations" / "cap3d_train.txt")}
    assert written <= set(captions)
    rows = json.loads((root / "annotations" / "ScanRefer_test.json").read_text())
    assert {row["description"] for row in rows} <= set(descriptions)
    assert set(PHRASES) == set(POSTURES)


def test_up_is_y() -> None:
    assert y_up(np.array([[1.0, 2.0, 3.0]])).tolist() == [[1.0, 3.0, -2.0]]
