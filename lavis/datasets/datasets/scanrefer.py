"""Captions of objects in rooms: the builder scannet_refer, ScanRefer's descriptions on ScanNet's scenes.

Annotation: JSON rows {"scene_id", "object_id", "description", ...}. Scenes, as arrays below `scene_root_dir`:
`<scene>_aligned_vert.npy` [P, 9] (x, y, z in metres, red, green, blue of 0 to 255, normal) and
`<scene>_aligned_bbox.npy` [K, 8] (cx, cy, cz, dx, dy, dz, label, object id). The id in results is
`<scene_id>_<object_id>`. Layout after RegionBLIP (arXiv 2308.02299, code mightyzau/RegionBLIP). What differs: an
object without a box is left out and counted; in evaluation all objects of a scene are asked for on the same points,
so that a batch encodes the scene once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.datasets import cloud_geometry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.base_dataset import BadSample, RecentlyUsed, Row, Sample
from lavis.datasets.datasets.captions import captions_of, text_of
from lavis.datasets.datasets.clouds import CloudDataset, read_array

KEPT_SCENES = 4  # scenes a process keeps for the next samples, which in evaluation often are of the same one
MEAN_COLOR = (109.8, 97.2, 83.8)  # red, green and blue of ScanNet's points
COLOR_SCALE = 256.0
FLOOR_PERCENTILE = 0.99  # the height below which less than one point in a hundred lies


def read_scene(root: Path, scene: str, *, use_color: bool, use_height: bool) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Points [P, C] and boxes [K, 8] of a scene. C: x, y, z in metres,
    then the colour less its mean, divided by 256, then the height above the floor in metres. BadSample says why not."""
    path, boxes_path = root / f"{scene}_aligned_vert.npy", root / f"{scene}_aligned_bbox.npy"
    try:
        points = cloud_geometry.as_cloud(read_array(path, what="scene"), use_color=use_color)
    except ValueError as error:
        raise BadSample(f"{error} ({path})") from error
    boxes = read_boxes(boxes_path)
    if use_color:
        points[:, 3:] = (points[:, 3:] - np.array(MEAN_COLOR)) / COLOR_SCALE
    if use_height:
        height = points[:, 2] - np.percentile(points[:, 2], FLOOR_PERCENTILE)
        points = np.concatenate([points, height[:, None].astype(np.float32)], axis=1)
    return points, boxes


def read_boxes(path: Path) -> NDArray[np.float64]:
    """The boxes [K, 8] of a scene. BadSample where the file is missing or holds something else."""
    boxes = read_array(path, what="boxes of a scene")
    if boxes.ndim != 2 or boxes.shape[1] != 8 or boxes.dtype.kind not in "iuf":
        raise BadSample(f"malformed boxes: {path} holds {boxes.dtype} {boxes.shape}, not [K, 8] numbers")
    return boxes.astype(np.float64)


def object_of(row: Row) -> int:
    """The object id of a row; BadSample unless it is a whole number, or its digits."""
    value = row.get("object_id")
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).isdecimal():
        raise BadSample(f"malformed object_id: {value!r}" if "object_id" in row else "missing key: object_id")
    return int(value)


def box_in(boxes: NDArray[np.float64], number: int, scene: str) -> NDArray[np.float64]:
    """The box [6] of an object among those of its scene [K, 8]; BadSample where it has none."""
    found = boxes[boxes[:, 7] == number]
    if not len(found):
        raise BadSample(f"missing object: {number} is not among the {len(boxes)} boxes of {scene}")
    box: NDArray[np.float64] = found[0, :6]
    return box


def scene_with_box(root: Path, scene: str, number: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """For people: the points of a scene, [P, 6] with red, green and blue of 0..1 ([P, 3] where the file has no colours), and
    the corners [8, 3] of an object where they really are. BadSample says why not."""
    path, boxes_path = root / f"{scene}_aligned_vert.npy", root / f"{scene}_aligned_bbox.npy"
    boxes = read_boxes(boxes_path)
    try:
        points = cloud_geometry.with_colours(read_array(path, what="scene"))
        return points, cloud_geometry.corners_of(box_in(boxes, number, scene))
    except ValueError as error:
        raise BadSample(f"{error} (object {number} of {path})") from error


class ScanReferDataset(CloudDataset):
    """Training: one row, one description of an object."""

    source = "scene"
    needs = "scene_id, object_id and description"

    def __init__(self, *, use_height: bool = False, **kwargs: Any) -> None:
        self.use_height = bool(use_height)
        self._kept = RecentlyUsed(KEPT_SCENES)
        super().__init__(**kwargs)

    @property
    def columns(self) -> int:
        return super().columns + self.use_height

    def parse(self, row: Row, label: str) -> Row:
        scene, number, description = text_of(row, "scene_id"), object_of(row), text_of(row, "description")
        image_id = cloud_geometry.object_region_id(scene, number)
        return {"scene": scene, "object": number, "image_id": image_id, "captions": [description]}

    def thing_of(self, row: Row) -> str:
        return f"{row['scene']} {row['object']}"

    def _read(self, scene: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        return read_scene(self.vis_root, scene, use_color=self.use_color, use_height=self.use_height)

    def load(self, index: int, rng: np.random.RandomState) -> Sample:
        row = self.usable(self.rows[index])
        scene, number = row["scene"], row["object"]
        points, boxes = self._kept.get(scene, lambda: self._read(scene))
        box, cloud = box_in(boxes, number, scene), cloud_geometry.sampled(points, self.num_points, rng)
        if self.augment:
            cloud, box = cloud_geometry.augment_scene(cloud, box, rng)
        try:
            corners = torch.from_numpy(cloud_geometry.box_corners(box))
        except ValueError as error:
            raise BadSample(f"{error} (object {number} of {scene})") from error
        return {**self.sample(row, cloud, rng), "box_corners": corners}

    def cloud_of(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        row = self.usable(self.rows[index])
        return scene_with_box(self.vis_root, row["scene"], row["object"])


class ScanReferEvalDataset(ScanReferDataset):
    """Evaluation: one sample per object, the objects of a scene next to each other. No row is left out."""

    training = False
    share_inputs = True

    def parse(self, row: Row, label: str) -> Row:
        parsed: Row = {"scene": "", "object": None, "captions": captions_of(row, key="description")}
        parsed["image_id"] = cloud_geometry.object_region_id(str(row.get("scene_id", label)), str(row.get("object_id", label)))
        try:
            parsed["scene"], parsed["object"] = text_of(row, "scene_id"), object_of(row)
        except BadSample as error:
            parsed["problem"] = error.reason
        return parsed

    def arrange(self, rows: Iterator[Row]) -> Iterable[Row]:
        return self.side_by_side(self.merge(rows))

    def draws_of(self, index: int) -> int:
        """One number per scene, whatever else the file holds: its objects share their points."""
        return zlib.crc32(self.rows[index]["scene"].encode())

    def placeholder(self, index: int) -> Sample:
        corners = torch.from_numpy(cloud_geometry.box_corners([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))
        return {**super().placeholder(index), "box_corners": corners}


@registry.register_builder("scannet_refer")
class ScanReferBuilder(BaseDatasetBuilder):
    """ScanRefer on ScanNet, or any captioned boxes of rooms in their layout. As published, a split's block holds the
    options of its clouds too."""

    name = "scannet_refer"
    train_dataset_cls = ScanReferDataset
    eval_dataset_cls = ScanReferEvalDataset
    DATASET_CONFIG_DICT = {"default": "configs/datasets/scannet_refer.yaml"}
    annotations_at = ("annotations",)
    storage_key = "scanner_file"
    options = ("num_points", "use_color", "use_height", "augment")
    split_keys = (
        *("scanner_file", "scene_root_dir", "scannet_v2_tsv", *options),
        *("use_random_cuboid", "random_cuboid_min_points", "dataset_repeat_num", "url", "md5"),
    )

    def use_root(self, folder: str | Path) -> None:
        for split in self._annotations():
            self.config["annotations"][split]["scene_root_dir"] = str(folder)

    def _sources(self, split: str) -> dict[str, Any]:
        entry = self._split(split)
        if entry["use_random_cuboid"]:
            raise ConfigError(
                f"{self._key('annotations', split, 'use_random_cuboid')} is true; accepted: false. The published crop picks "
                "its box before it sorts boxes out, so that a description may end up at another object"
            )
        key = self._key("annotations", split, "scene_root_dir")
        vis_processor, text_processor = self._processors(split)
        return {
            "vis_processor": vis_processor,
            "text_processor": text_processor,
            "vis_root": self._find(key, entry["scene_root_dir"], kind="folder"),
            **{option: entry[option] for option in self.options},
        }
