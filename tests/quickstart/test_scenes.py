"""The generated data of the quickstart: real formats, rules of a scene, disjoint scans, same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lavis.quickstart import scenes as quickstart
from lavis.quickstart.things import (
    CELL,
    COLOURS,
    DIGITS,
    GRID,
    KINDS,
    PICTURE,
    CutOuts,
    split_scans,
    thing_mask,
)

NUM_TRAIN, NUM_TEST = 60, 100


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quickstart")
    quickstart.generate(root, seed=3, num_train=NUM_TRAIN, num_test=NUM_TEST)
    return root


def read(root: Path, stem: str):
    return json.loads((root / "annotations" / f"{stem}.json").read_text("utf-8"))


def test_scenes_follow_the_rules(data: Path) -> None:
    for scene in read(data, "scenes_train") + read(data, "scenes_test"):
        things = scene["things"]
        assert len(things) == quickstart.THINGS
        assert len({t["place"] for t in things}) == len(things)
        assert len({t["colour"] for t in things}) < len(things)
        assert len({t["kind"] for t in things}) < len(things)
        assert len({(t["colour"], t["kind"]) for t in things}) == len(things)


def test_boxes_lie_in_their_places_and_hold_the_thing(data: Path) -> None:
    for scene in read(data, "scenes_test")[:30]:
        picture = np.asarray(Image.open(data / "images" / scene["image"]).convert("RGB"), dtype=float)
        assert picture.shape == (PICTURE, PICTURE, 3)
        cells = set()
        for thing in scene["things"]:
            x, y, w, h = thing["bbox"]
            cell = quickstart.PLACES.index(thing["place"])
            assert cell % GRID * CELL <= x and x + w <= (cell % GRID + 1) * CELL
            assert cell // GRID * CELL <= y and y + h <= (cell // GRID + 1) * CELL
            distance = np.abs(picture[y : y + h, x : x + w] - COLOURS[thing["colour"]]).max(axis=2)
            assert (distance < 40).mean() > 0.1, thing
            cells.add(cell)
        for cell in set(range(GRID**2)) - cells:
            row, column = cell // GRID * CELL, cell % GRID * CELL
            assert picture[row : row + CELL, column : column + CELL].max() < 170


def test_digit_scans_of_train_and_test_do_not_overlap(data: Path) -> None:
    used = {
        split: {t["scan"] for s in read(data, f"scenes_{split}") for t in s["things"]} - {None} for split in ("train", "test")
    }
    assert used["train"] and used["test"] and not used["train"] & used["test"]
    scans = split_scans()
    assert used["train"] <= set(scans["train"].index) and used["test"] <= set(scans["test"].index)
    assert len(scans["train"].index) + len(scans["test"].index) == 1797
    for thing in (t for s in read(data, "scenes_test") for t in s["things"]):
        assert (thing["scan"] is None) == (thing["kind"] not in DIGITS)


def test_captions_name_every_thing_and_its_place(data: Path) -> None:
    scenes = {s["image"]: s["things"] for s in read(data, "scenes_test")}
    rows = read(data, "coco_karpathy_test")
    assert len(rows) == NUM_TEST and len({row["caption"][0] for row in rows}) >= 30
    words = set(read(data, "vocabulary"))
    for row in rows:
        for caption in row["caption"]:
            assert len(caption.split()) <= quickstart.MAX_WORDS and set(caption.split()) <= words
            assert not set(caption) & set('.!"()*#:;~') and caption == caption.lower()
        for thing in scenes[row["image"]]:
            name = f"a {thing['colour']} {thing['kind']}"
            assert f"{name} at {thing['place']}" in row["caption"][0]
            assert f"{thing['place']} {name}" in row["caption"][1]


def test_training_captions_are_one_row_per_phrasing(data: Path, tmp_path: Path) -> None:
    rows = read(data, "coco_karpathy_train")
    assert len(rows) == NUM_TRAIN * len(quickstart.PHRASINGS) and set(rows[0]) == {
        "image",
        "caption",
        "image_id",
    }
    quickstart.generate(tmp_path, seed=3, num_train=2, num_test=1, phrasings=("place_first",))
    assert [row["caption"] for row in read(tmp_path, "coco_karpathy_train")] == [
        rows[1]["caption"],
        rows[3]["caption"],
    ]


def test_region_rows_are_refcoco_rows(data: Path) -> None:
    rows = read(data, "Refcoco_test")
    assert len(rows) == NUM_TEST * quickstart.THINGS * quickstart.EXPRESSIONS
    regions: dict[tuple, set[str]] = {}
    for row in rows:
        assert set(row) == {"image", "image_id", "bbox", "caption"} and isinstance(row["image_id"], str)
        regions.setdefault((row["image_id"], *row["bbox"]), set()).add(row["caption"])
    assert len(regions) >= 300
    for scene in read(data, "scenes_test"):
        for thing in scene["things"]:
            texts = regions[(scene["image_id"], *thing["bbox"])]
            assert len(texts) == quickstart.EXPRESSIONS
            assert all(f"{thing['colour']} {thing['kind']}" in text for text in texts)
            assert sum(text.endswith(f" at the {thing['place']}") for text in texts) == 1


def test_image_ids_are_the_digits_of_the_file_name(data: Path) -> None:
    for split in ("train", "test"):
        for scene in read(data, f"scenes_{split}"):
            digits = "".join(filter(str.isdigit, Path(scene["image"]).name))
            assert int(digits) == int(scene["image_id"])


def test_same_seed_same_bytes_another_seed_other_scenes(data: Path, tmp_path: Path) -> None:
    quickstart.generate(tmp_path / "a", seed=3, num_train=4, num_test=2)
    quickstart.generate(tmp_path / "b", seed=4, num_train=4, num_test=2)
    image = read(data, "scenes_train")[3]["image"]
    first, again, other = ((root / "images" / image).read_bytes() for root in (data, tmp_path / "a", tmp_path / "b"))
    assert first == again != other
    assert read(data, "scenes_train")[:4] == read(tmp_path / "a", "scenes_train")


def test_collages_and_crops_carry_their_labels() -> None:
    bank = CutOuts(160, seed=0)
    pictures, colours, kinds = bank.collages(8, rng=np.random.RandomState(1), filled=0.5)
    assert pictures.shape == (8, PICTURE, PICTURE, 3) and pictures.dtype == np.uint8
    assert colours.shape == kinds.shape == (8, GRID, GRID)
    assert ((colours < 0) == (kinds < 0)).all() and 0 < (kinds >= 0).mean() < 1
    palette = list(COLOURS.values())
    for b, row, column in np.argwhere(kinds >= 0):
        cell = pictures[b, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL].astype(float)
        distance = np.abs(cell - palette[colours[b, row, column]]).max(axis=2)
        assert (distance < 40).sum() > 20
    crops, colour, kind = bank.crops(20, rng=np.random.RandomState(2))
    assert crops.shape == (20, CELL, CELL, 3) and colour.min() >= 0 and kind.max() < len(KINDS)


def test_bad_arguments_say_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_test at least 1"):
        quickstart.generate(tmp_path, seed=0, num_train=1, num_test=0)
    with pytest.raises(ValueError, match="thing_first"):
        quickstart.generate(tmp_path, seed=0, num_train=1, num_test=1, phrasings=())
    with pytest.raises(ValueError, match="thing_first, place_first"):
        quickstart.caption([], "backwards")
    with pytest.raises(ValueError, match="'moon'; accepted: zero"):
        thing_mask("moon", size=20, rng=np.random.RandomState(0), scans=split_scans()["train"])
