"""Generated data of the quickstart: scenes of digits and shapes, written as COCO-caption and RefCOCO files.

`generate(root, seed=..., num_train=..., num_test=...)` writes under `root`

    images/{train,test}/COCO_quickstart_<12 digits>.jpg   84 x 84 pixels
    annotations/coco_karpathy_train.json   [{"image", "caption", "image_id"}], one row per caption
    annotations/coco_karpathy_test.json    [{"image", "caption": [...]}]; the file name's digits are the id
    annotations/Refcoco_{train,test}.json  [{"image", "image_id", "bbox": [x, y, w, h] pixels, "caption"}]
    annotations/scenes_{train,test}.json   the truth: [{"image", "image_id", "things": [{"colour", "kind",
                                           "place", "bbox", "scan"}]}], for attribute metrics and tests
    annotations/vocabulary.json            every word the captions can use

A scene has four things. Colour, kind and place (one of nine, no two alike) of each are drawn independently;
then one thing is given the colour of a second and the kind of a third, so that two things share a colour and
two a kind, and no attribute alone tells a region. No two things of a scene share both. Digits of train and
test scenes are different handwritten scans. Image names begin with `train/` or `test/`, relative to
`root/images`.

Captions of a whole image (at most 27 words, commas counted; read from the top left, row by row)
    thing first   "a red seven at top left , a blue star at right , ..."
    place first   "top left a red seven , right a blue star , ..."
Expressions of a region (three per thing, all different: two plain ones, one with the place, in random order)
    "red seven" | "the red seven" | "a red seven"
    "red seven at the top left" | "the red seven at the top left" | "a red seven at the top left"
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavis.quickstart.things import (
    CELL,
    COLOURS,
    GRID,
    KINDS,
    SIZES,
    Scans,
    background,
    finish,
    place_in_cell,
    shade,
    split_scans,
    thing_mask,
)

log = logging.getLogger(__name__)

PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
THINGS = 4  # things in a scene
EXPRESSIONS = 3  # expressions per thing
PHRASINGS = ("thing_first", "place_first")
MAX_WORDS = 27  # words of the longest caption, commas counted
_FIRST_TEST_ID = 900_001


@dataclass(frozen=True)
class Thing:
    """One thing of a scene: words for what and where, and its tight box [x, y, w, h] in pixels."""

    colour: str
    kind: str
    place: str
    bbox: tuple[int, int, int, int]
    scan: int | None  # row of scikit-learn's digits; None for a shape

    @property
    def name(self) -> str:
        """Colour and kind, e.g. "red seven"."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """An image and its things, in reading order."""

    image: str
    image_id: str
    things: tuple[Thing, ...]


def draw_attributes(rng: np.random.RandomState) -> list[tuple[str, str, int]]:
    """Colour, kind and cell (0..8) of one scene's things in reading order, by the module's rules."""
    colours, kinds = list(COLOURS), list(KINDS)
    cells = np.sort(rng.choice(GRID**2, THINGS, replace=False))
    while True:
        colour = [colours[i] for i in rng.randint(len(colours), size=THINGS)]
        kind = [kinds[i] for i in rng.randint(len(kinds), size=THINGS)]
        one, second, third = rng.choice(THINGS, 3, replace=False)
        colour[one], kind[one] = colour[second], kind[third]
        if len(set(zip(colour, kind, strict=True))) == THINGS:
            return list(zip(colour, kind, (int(cell) for cell in cells), strict=True))


def draw_scene(image: str, image_id: str, *, rng: np.random.RandomState, scans: Scans) -> tuple[np.ndarray, Scene]:
    """Picture [S, S, 3] uint8 and truth of one random scene."""
    picture = background(1, rng=rng)[0]
    things = []
    for colour, kind, cell in draw_attributes(rng):
        mask, scan = thing_mask(kind, size=rng.randint(SIZES[0], SIZES[1] + 1), rng=rng, scans=scans)
        x, y = place_in_cell(mask, rng=rng)
        x, y = x + cell % GRID * CELL, y + cell // GRID * CELL
        height, width = mask.shape
        region = picture[y : y + height, x : x + width]
        region += (shade(colour, rng=rng) - region) * mask[..., None]
        things.append(Thing(colour, kind, PLACES[cell], (x, y, width, height), scan))
    return finish(picture, rng=rng), Scene(image, image_id, tuple(things))


def caption(things: Iterable[Thing], phrasing: str) -> str:
    """Caption of a whole image that names every thing and its place."""
    if phrasing == "thing_first":
        return " , ".join(f"a {thing.name} at {thing.place}" for thing in things)
    if phrasing == "place_first":
        return " , ".join(f"{thing.place} a {thing.name}" for thing in things)
    raise ValueError(f"unknown phrasing {phrasing!r}; accepted: {', '.join(PHRASINGS)}")


def expressions(thing: Thing, *, rng: np.random.RandomState) -> list[str]:
    """Different expressions for one thing in random order: two plain ones and one that says the place."""
    first, second = rng.choice(("", "the ", "a "), 2, replace=False)
    placed = f"{rng.choice(('', 'the ', 'a '))}{thing.name} at the {thing.place}"
    written = [f"{first}{thing.name}", f"{second}{thing.name}", placed]
    return [written[i] for i in rng.permutation(EXPRESSIONS)]


def vocabulary() -> list[str]:
    """Every word (and the comma) that captions and expressions use, sorted."""
    places = {word for place in PLACES for word in place.split()}
    return sorted({"a", "at", "the", ",", *places, *COLOURS, *KINDS})


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _region_rows(scenes: Iterable[Scene], *, rng: np.random.RandomState) -> list[dict[str, Any]]:
    """RefCOCO rows, one per expression."""
    return [
        {"image": scene.image, "image_id": scene.image_id, "bbox": list(thing.bbox), "caption": text}
        for scene in scenes
        for thing in scene.things
        for text in expressions(thing, rng=rng)
    ]


def _draw_split(root: Path, split: str, count: int, *, seed: int) -> list[Scene]:
    """Draw and write the pictures of one split; scene i depends on (seed, split, i) only."""
    (root / "images" / split).mkdir(parents=True, exist_ok=True)
    scans = split_scans()[split]
    first = 1 if split == "train" else _FIRST_TEST_ID
    scenes = []
    for index in range(count):
        rng = np.random.RandomState([seed, first, index])
        image = f"{split}/COCO_quickstart_{first + index:012d}.jpg"
        picture, scene = draw_scene(image, str(first + index), rng=rng, scans=scans)
        Image.fromarray(picture).save(root / "images" / image, quality=95, subsampling=0)
        scenes.append(scene)
    log.info("%d %s scenes written under %s", count, split, root)
    return scenes


def generate(
    root: str | Path,
    *,
    seed: int,
    num_train: int,
    num_test: int,
    phrasings: Sequence[str] = PHRASINGS,
) -> dict[str, Path]:
    """Write the data set (files: see the module text) and return the paths of its annotation files by stem.

    `phrasings` are the captions a training image gets, one row each; a test image gets all of `PHRASINGS` as
    references. The same arguments write the same bytes. 1,625 scenes took 4.3 s on 2 cores.
    """
    if not 1 <= num_train < _FIRST_TEST_ID or num_test < 1:
        accepted = f"num_train 1..{_FIRST_TEST_ID - 1} and num_test at least 1"
        raise ValueError(f"num_train {num_train}, num_test {num_test}; accepted: {accepted}")
    if not phrasings:
        raise ValueError(f"phrasings is empty; accepted: one or more of {', '.join(PHRASINGS)}")
    root = Path(root)
    scenes = {split: _draw_split(root, split, count, seed=seed) for split, count in (("train", num_train), ("test", num_test))}
    contents: dict[str, Any] = {
        "coco_karpathy_train": [
            {"image": s.image, "caption": caption(s.things, phrasing), "image_id": f"coco_{s.image_id}"}
            for s in scenes["train"]
            for phrasing in phrasings
        ],
        "coco_karpathy_test": [
            {"image": s.image, "caption": [caption(s.things, phrasing) for phrasing in PHRASINGS]} for s in scenes["test"]
        ],
        "vocabulary": vocabulary(),
    }
    for number, (split, drawn) in enumerate(scenes.items()):
        contents[f"Refcoco_{split}"] = _region_rows(drawn, rng=np.random.RandomState([seed, number]))
        contents[f"scenes_{split}"] = [asdict(scene) for scene in drawn]
    paths = {stem: root / "annotations" / f"{stem}.json" for stem in contents}
    for stem, content in contents.items():
        _write_json(paths[stem], content)
    return paths
