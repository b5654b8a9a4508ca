"""A few small pictures and clouds to try the demos on, drawn by the quickstart's generator; the model has not seen them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from lavis.common.files import replacing
from lavis.quickstart.clouds import draw_room, tight_boxes, y_up
from lavis.quickstart.objects import Thing3D, draw_object
from lavis.quickstart.scenes import draw_scene
from lavis.quickstart.things import split_scans

SEED = 7000  # of no data set of the quickstart
OBJECTS = (Thing3D("chair", "tall", "standing"), Thing3D("table", "low", "leaning"))
OBJECT_POINTS = 2048


@dataclass(frozen=True)
class Example:
    """A file and what is in it: `boxes` (x1, y1, x2, y2 in pixels, or cx, cy, cz, dx, dy, dz in metres) with a name each, or none
    and one name for the whole."""

    path: Path
    kind: str  # "image", "object" or "room"
    names: tuple[str, ...]
    boxes: list[list[float]] = field(default_factory=list)


def examples(folder: str | Path) -> list[Example]:
    """Write two pictures with four things each, two objects and a room below `folder`, and `examples.json`, which says what is
    in them; files that are there are written anew, the same ones. Under a second."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = [*_pictures(folder), *_objects(folder), _room(folder)]
    rows = [{"file": e.path.name, "kind": e.kind, "names": list(e.names), "boxes": e.boxes} for e in made]
    with replacing(folder / "examples.json", durable=False) as stream:
        stream.write((json.dumps(rows, indent=1) + "\n").encode())
    return made


def _pictures(folder: Path) -> list[Example]:
    made = []
    for number in (1, 2):
        rng = np.random.RandomState([SEED, number])
        path = folder / f"scene_{number}.png"
        pixels, scene = draw_scene(path.name, str(number), rng=rng, scans=split_scans()["test"])
        Image.fromarray(pixels).save(path)
        boxes = [[float(x), float(y), float(x + w), float(y + h)] for x, y, w, h in (thing.bbox for thing in scene.things)]
        made.append(Example(path, "image", tuple(thing.name for thing in scene.things), boxes))
    return made


def _objects(folder: Path) -> list[Example]:
    made = []
    for number, thing in enumerate(OBJECTS, 1):
        path = folder / f"object_{number}.npy"
        points = y_up(draw_object(thing, OBJECT_POINTS, np.random.RandomState([SEED, 10, number])))
        np.save(path, points.astype(np.float32))
        made.append(Example(path, "object", (f"{thing.name} {thing.posture}",)))
    return made


def _room(folder: Path) -> Example:
    path = folder / "room_1.npy"
    points, things, owners = draw_room(np.random.RandomState([SEED, 20]))
    np.save(path, points.astype(np.float32))
    boxes = tight_boxes(points, owners)[:, :6].round(3).tolist()
    return Example(path, "room", tuple(thing.name for thing in things), boxes)
