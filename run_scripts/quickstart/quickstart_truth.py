"""The truth of the quickstart's generated data: what every test sample holds, how it looks, what training texts say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lavis.datasets.cloud_geometry import object_region_id
from lavis.datasets.datasets.cap3d import read_lines
from lavis.datasets.geometry import region_id
from lavis.evaluation.attributes import Thing, Vocabulary
from lavis.quickstart import objects as quickstart_objects
from lavis.quickstart import things as quickstart_things
from lavis.report.cloud_pictures import render_cloud


def read(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text("utf-8"))


class Truth:
    """Test samples that hold one thing each."""

    vocabulary: Vocabulary
    things: dict[str, Thing]  # sample id -> its words, one per group of the vocabulary
    scene_of: dict[str, str]  # sample id -> the picture or room that it is a part of; empty where it is a whole
    training_things: list[Thing]
    training_texts: list[str]

    def picture(self, key: str) -> dict[str, Any]:
        """How the report shows a sample: "image" or "image_path", and "box_xyxy" where a box is to be drawn on it."""
        raise NotImplementedError

    def words(self, thing: Mapping[str, Any]) -> Thing:
        """A thing of an annotation as a word per group."""
        return tuple(thing[name] for name in self.vocabulary.groups)


class ImageRegions(Truth):
    """Boxes of the scenes; their whole pictures are in `whole`."""

    vocabulary = Vocabulary(colour=quickstart_things.COLOURS, kind=quickstart_things.KINDS)

    def __init__(self, data: Path) -> None:
        self.images = data / "images"
        self.scenes = {scene["image_id"]: scene for scene in read(data / "annotations/scenes_test.json")}
        self.things, self.scene_of, self.boxes = {}, {}, {}
        for image_id, scene in self.scenes.items():
            for thing in scene["things"]:
                key = region_id(image_id, thing["bbox"])
                self.things[key], self.scene_of[key], self.boxes[key] = self.words(thing), image_id, thing["bbox"]
        training = read(data / "annotations/scenes_train.json")
        self.training_things = [self.words(thing) for scene in training for thing in scene["things"]]
        self.training_texts = [row["caption"] for row in read(data / "annotations/Refcoco_train.json")]

    @property
    def whole(self) -> dict[str, list[Thing]]:
        """The things of every test picture."""
        return {str(image_id): [self.words(thing) for thing in scene["things"]] for image_id, scene in self.scenes.items()}

    def picture(self, key: str) -> dict[str, Any]:
        x, y, w, h = self.boxes[key]
        return {"image_path": self.images / self.scenes[self.scene_of[key]]["image"], "box_xyxy": [x, y, x + w, y + h]}


class Objects(Truth):
    """Objects as point clouds."""

    vocabulary = Vocabulary(
        kind=quickstart_objects.KINDS, proportion=quickstart_objects.PROPORTIONS, posture=quickstart_objects.POSTURES
    )

    def __init__(self, data: Path) -> None:
        self.clouds = data / "objects"
        self.things = {row["id"]: self.words(row) for row in read(data / "annotations/objects_test.json")}
        self.scene_of = {}
        self.training_things = [self.words(row) for row in read(data / "annotations/objects_train.json")]
        self.training_texts = [text for _, _, text in read_lines(data / "annotations/cap3d_train.txt") if text]

    def picture(self, key: str) -> dict[str, Any]:
        with np.load(self.clouds / key / f"{key}_8192.npz") as file:
            return {"image": render_cloud(file["arr_0"], up="y")}


class RoomObjects(Truth):
    """Boxes of the rooms."""

    vocabulary = Vocabulary(kind=quickstart_objects.KINDS, proportion=quickstart_objects.PROPORTIONS)

    def __init__(self, data: Path) -> None:
        self.rooms = data / "rooms"
        self.things, self.scene_of, self.boxes = {}, {}, {}
        for room in read(data / "annotations/rooms_test.json"):
            for thing in room["objects"]:
                key = object_region_id(room["scene"], thing["id"])
                self.things[key], self.scene_of[key], self.boxes[key] = self.words(thing), room["scene"], thing["box"]
        training = read(data / "annotations/rooms_train.json")
        self.training_things = [self.words(thing) for room in training for thing in room["objects"]]
        self.training_texts = [row["description"] for row in read(data / "annotations/ScanRefer_train.json")]

    def picture(self, key: str) -> dict[str, Any]:
        points = np.load(self.rooms / f"{self.scene_of[key]}_aligned_vert.npy")[:, :3]
        return {"image": render_cloud(points, boxes=self.boxes[key], elevation=40.0)}
