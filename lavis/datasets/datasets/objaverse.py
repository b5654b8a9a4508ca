"""Point clouds of objects with captions: the builder pointcloud_caption on Objaverse with Cap3D's captions.

Annotation: text files with a line `<object id>,<caption>`. Clouds: `<root>/<id>/<id>_8192.npz`, array `arr_0` [P, 3]
(or [P, 6] with colour). A sample is a random permutation of `num_points` points, centred and scaled into the unit
sphere; training may augment it. A file with fewer points is left out and counted. Layout after RegionBLIP (arXiv
2308.02299, code mightyzau/RegionBLIP). As published the last caption of an object is the one that is trained on;
`all_captions` trains on each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis.common.registry import registry
from lavis.datasets import cloud_geometry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets import cap3d
from lavis.datasets.datasets.base_dataset import AnnotationError, BadSample, Row, Sample
from lavis.datasets.datasets.captions import text_of
from lavis.datasets.datasets.clouds import CloudDataset, read_array


class ObjectCaptionDataset(CloudDataset):
    """Training: one sample per object, or per caption with `all_captions`."""

    source = "object_id"
    up = "y"
    spoken = -1
    needs = "<object id>,<caption>"

    def __init__(self, *, all_captions: bool = False, **kwargs: Any) -> None:
        self.all_captions = all_captions and self.training
        super().__init__(**kwargs)

    def read_file(self, path: Path) -> Iterator[tuple[str, Row]]:
        try:
            for number, object_id, caption in cap3d.read_lines(path):
                yield f"{path.name}:{number}", {"object_id": object_id, "caption": caption}
        except ValueError as error:
            raise AnnotationError(str(error)) from error

    def parse(self, row: Row, label: str) -> Row:
        if row["caption"] is None:
            raise BadSample(f"malformed line: {row['object_id'][:60]!r} has no comma")
        object_id = text_of(row, "object_id")
        caption = text_of(row, "caption") if self.training else row["caption"]
        return {"object_id": object_id, "image_id": object_id, "captions": [caption]}

    def arrange(self, rows: Iterator[Row]) -> Iterable[Row]:
        return rows if self.all_captions else self.merge(rows)

    def _read(self, object_id: str) -> tuple[NDArray[Any], Path]:
        path = self.vis_root / object_id / f"{object_id}_8192.npz"
        return read_array(path, what="point cloud"), path

    def load(self, index: int, rng: np.random.RandomState) -> Sample:
        row = self.rows[index]
        array, path = self._read(row["object_id"])
        try:
            cloud = cloud_geometry.as_cloud(array, use_color=self.use_color)
            points = cloud_geometry.unit_sphere(cloud_geometry.shuffled(cloud, self.num_points, rng))
        except ValueError as error:
            raise BadSample(f"{error} ({path})") from error
        if self.augment:
            points = cloud_geometry.augment_object(points, rng)
        return self.sample(row, points, rng)

    def cloud_of(self, index: int) -> tuple[NDArray[np.float32], None]:
        array, path = self._read(self.rows[index]["object_id"])
        try:
            return cloud_geometry.with_colours(array), None
        except ValueError as error:
            raise BadSample(f"{error} ({path})") from error


class ObjectCaptionEvalDataset(ObjectCaptionDataset):
    """Evaluation: one sample per object, every line of it a reference."""

    training = False


@registry.register_builder("pointcloud_caption")
class PointcloudCaptionBuilder(BaseDatasetBuilder):
    """Objaverse with Cap3D's captions, or any objects in their layout."""

    name = "pointcloud_caption"
    train_dataset_cls = ObjectCaptionDataset
    eval_dataset_cls = ObjectCaptionEvalDataset
    DATASET_CONFIG_DICT = {"default": "configs/datasets/pointcloud_caption.yaml"}

    def _sources(self, split: str) -> dict[str, Any]:
        clouds = self._node("build_info", self.config["data_type"])
        return {
            **super()._sources(split),
            "num_points": clouds.get("num_points"),
            "use_color": clouds.get("use_color"),
            "augment": clouds.get("pc_augmentation"),
            "all_captions": clouds.get("all_captions"),
        }
