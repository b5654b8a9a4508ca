"""Generated point clouds of the quickstart: objects in Cap3D's layout, rooms in that of ScanRefer on ScanNet.

`generate_clouds(root, seed=..., ...)` writes under `root`

    objects/<id>/<id>_8192.npz                arr_0 [P, 3] float32, y up: one object (P is `OBJECT_POINTS`)
    rooms/<scene>_aligned_vert.npy            [P, 9] float32: x, y, z in metres, z up; colour and normal columns are 0
    rooms/<scene>_aligned_bbox.npy            [4, 8]: cx, cy, cz, dx, dy, dz, label, object id
    annotations/cap3d_{train,test}.txt        a line "<id>,<caption>" per caption, two per object
    annotations/ScanRefer_{train,test}.json   [{"scene_id", "object_id", "object_name", "description"}], three per object
    annotations/objects_{train,test}.json     the truth: [{"id", "kind", "proportion", "posture"}]
    annotations/rooms_{train,test}.json       the truth: [{"scene", "objects": [{"id", "kind", "proportion", "box"}]}]

Captions of an object
    "a tall chair lying on its side" | "this tall chair is lying on its side"
Descriptions of an object in a room
    "tall chair" | "the tall chair" | "a tall chair" (two of them), "there is a tall chair here"

A room is a floor with four standing things. Kinds and proportions are drawn independently; then one thing takes the
proportion of a second and the kind of a third, so that no word alone tells a thing. Every object is drawn anew: no test
object has the measures of a training object.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis.quickstart.objects import KINDS, POSTURES, PROPORTIONS, Thing3D, draw_object, random_thing

log = logging.getLogger(__name__)

OBJECT_POINTS, ROOM_POINTS = 2048, 6000  # points of a file
CELL = 1.35  # metres a side of the quarter of a room that one thing stands in
THINGS = 4  # things in a room
UNIT = (0.62, 0.72)  # metres of the unit box of a kind in a room, both ends
FLOOR_SHARE = 0.25  # of a room's points
PHRASES = {"standing": "standing upright", "leaning": "leaning to one side", "lying": "lying on its side"}
_FIRST_TEST_ID = 900_001


def object_captions(thing: Thing3D) -> list[str]:
    """The two captions of an object."""
    phrase = PHRASES[thing.posture]
    return [f"a {thing.name} {phrase}", f"this {thing.name} is {phrase}"]


def room_descriptions(thing: Thing3D, *, rng: np.random.RandomState) -> list[str]:
    """Three different descriptions of an object of a room, in random order."""
    first, second = rng.choice(("", "the ", "a "), 2, replace=False)
    written = [f"{first}{thing.name}", f"{second}{thing.name}", f"there is a {thing.name} here"]
    return [written[i] for i in rng.permutation(len(written))]


def cloud_vocabulary() -> list[str]:
    """Every word that captions and descriptions of clouds use, sorted."""
    phrases = {word for phrase in PHRASES.values() for word in phrase.split()}
    return sorted({"a", "the", "this", "is", "there", "here", *phrases, *KINDS, *PROPORTIONS})


def cloud_texts() -> tuple[list[str], list[str]]:
    """All captions of objects and all descriptions of objects in rooms that there are."""
    things = [Thing3D(k, p, posture) for k in KINDS for p in PROPORTIONS for posture in POSTURES]
    captions = [caption for thing in things for caption in object_captions(thing)]
    names = sorted({thing.name for thing in things})
    return captions, [text for name in names for text in (name, f"the {name}", f"a {name}", f"there is a {name} here")]


def draw_room(rng: np.random.RandomState, *, count: int = ROOM_POINTS) -> tuple[NDArray[np.float64], list[Thing3D], NDArray[Any]]:
    """Points [N, 3] in metres, z up; the things; and the thing that each point is of, [N] (-1: the floor)."""
    things = draw_things(rng)
    share = rng.dirichlet(np.full(THINGS, 60.0)) * (1 - FLOOR_SHARE)
    numbers = np.floor(share * count).astype(int)
    parts, owners = [], []
    for index, (thing, number) in enumerate(zip(things, numbers, strict=True)):
        points = draw_object(thing, int(number), rng) * rng.uniform(*UNIT)
        room = np.maximum(0.0, (CELL - np.ptp(points[:, :2], axis=0)) / 2)
        middle = (np.array([index % 2, index // 2]) - 0.5) * CELL + rng.uniform(-room, room)
        parts.append(points + np.array([*middle, 0.0]))
        owners.append(np.full(number, index))
    rest = count - int(numbers.sum())
    floor = np.concatenate([rng.uniform(-CELL, CELL, (rest, 2)), rng.normal(0, 0.005, (rest, 1))], axis=1)
    return np.concatenate([*parts, floor]), things, np.concatenate([*owners, np.full(rest, -1)])


def draw_things(rng: np.random.RandomState) -> list[Thing3D]:
    """Names of a room's four things by the module's rules, in random order; no two alike."""
    kinds, proportions = list(KINDS), list(PROPORTIONS)
    while True:
        kind = [kinds[i] for i in rng.randint(len(kinds), size=THINGS)]
        proportion = [proportions[i] for i in rng.randint(len(proportions), size=THINGS)]
        one, second, third = rng.choice(THINGS, 3, replace=False)
        proportion[one], kind[one] = proportion[second], kind[third]
        if len(set(zip(kind, proportion, strict=True))) == THINGS:
            return [Thing3D(k, p, "standing") for k, p in zip(kind, proportion, strict=True)]


def tight_boxes(points: NDArray[np.float64], owners: NDArray[Any]) -> NDArray[np.float64]:
    """Boxes [4, 8] as ScanNet's files hold them: centre and extents of every thing's points, a label of 0, its id."""
    rows = []
    for index in range(THINGS):
        low, high = points[owners == index].min(axis=0), points[owners == index].max(axis=0)
        rows.append([*(low + high) / 2, *(high - low), 0, index])
    return np.array(rows)


def y_up(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """From z up to y up, as Objaverse's clouds are."""
    return points[:, [0, 2, 1]] * np.array([1.0, 1.0, -1.0])


def _write_object(root: Path, name: str, rng: np.random.RandomState) -> dict[str, Any]:
    thing = random_thing(rng)
    folder = root / "objects" / name
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}_8192.npz", y_up(draw_object(thing, OBJECT_POINTS, rng)).astype(np.float32))
    return {"id": name, "kind": thing.kind, "proportion": thing.proportion, "posture": thing.posture}


def _write_room(root: Path, scene: str, rng: np.random.RandomState) -> dict[str, Any]:
    points, things, owners = draw_room(rng)
    boxes = tight_boxes(points, owners)
    (root / "rooms").mkdir(parents=True, exist_ok=True)
    columns = np.zeros((len(points), 9), dtype=np.float32)
    columns[:, :3] = points
    np.save(root / "rooms" / f"{scene}_aligned_vert.npy", columns)
    np.save(root / "rooms" / f"{scene}_aligned_bbox.npy", boxes)
    objects = [
        {"id": index, "kind": thing.kind, "proportion": thing.proportion, "box": boxes[index, :6].tolist()}
        for index, thing in enumerate(things)
    ]
    return {"scene": scene, "objects": objects}


def _thing(row: dict[str, Any]) -> Thing3D:
    return Thing3D(row["kind"], row["proportion"], row.get("posture", "standing"))


def _descriptions(rooms: Sequence[dict[str, Any]], rng: np.random.RandomState) -> list[dict[str, str]]:
    return [
        {"scene_id": room["scene"], "object_id": str(row["id"]), "object_name": row["kind"], "description": text}
        for room in rooms
        for row in room["objects"]
        for text in room_descriptions(_thing(row), rng=rng)
    ]


def generate_clouds(
    root: str | Path, *, seed: int, train_objects: int, test_objects: int, train_rooms: int, test_rooms: int
) -> None:
    """Write the data set (files: see the module text). The same arguments write the same arrays; object i of a split
    depends on (seed, split, i) only."""
    counts = {"train": (train_objects, train_rooms), "test": (test_objects, test_rooms)}
    if min(train_objects, test_objects, train_rooms, test_rooms) < 1 or max(train_objects, train_rooms) >= _FIRST_TEST_ID:
        raise ValueError(f"objects and rooms {counts}; accepted: 1..{_FIRST_TEST_ID - 1} of each")
    root = Path(root)
    annotations = root / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    for number, (split, (objects, rooms)) in enumerate(counts.items()):
        first = 1 if split == "train" else _FIRST_TEST_ID
        draws = [np.random.RandomState([seed, 3, first, index]) for index in range(objects)]
        things = [_write_object(root, f"object{first + index:06d}", rng) for index, rng in enumerate(draws)]
        draws = [np.random.RandomState([seed, 4, first, index]) for index in range(rooms)]
        scenes = [_write_room(root, f"scene{first + index:06d}_00", rng) for index, rng in enumerate(draws)]
        lines = [f"{row['id']},{caption}\n" for row in things for caption in object_captions(_thing(row))]
        (annotations / f"cap3d_{split}.txt").write_text("".join(lines), encoding="utf-8")
        described = _descriptions(scenes, np.random.RandomState([seed, 5, number]))
        for stem, content in (("ScanRefer", described), ("objects", things), ("rooms", scenes)):
            (annotations / f"{stem}_{split}.json").write_text(json.dumps(content), encoding="utf-8")
        log.info("%d objects and %d rooms of split %s written under %s", objects, rooms, split, root)
