"""Shapes with a class: the builder mobilenet40 (its published name), ModelNet40 for zero-shot classification.

Files, all in the folder `build_info.pointcloud.storage`: `modelnet40_shape_names.txt`, a class per line;
`modelnet40_{train,test}_8192pts_fps.dat`, a pickle of [list of clouds [P, 3 or more], list of labels], where a label
counts classes from 0. A sample is the first `npoints` points of a cloud (they lie in farthest-point order), in random
order in training, centred and scaled into the unit sphere. Layout after ULIP (code salesforce/ULIP) and RegionBLIP
(arXiv 2308.02299).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.datasets import cloud_geometry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.base_dataset import AnnotationError, BadSample, Row, Sample
from lavis.datasets.datasets.clouds import CloudDataset
from lavis.datasets.pickles import read_pickle


def read_clouds(path: Path) -> tuple[Sequence[Any], Sequence[Any]]:
    """The clouds and the labels of a pickle. AnnotationError for another layout, and for one that is more than data."""
    try:
        content = read_pickle(path, encoding="latin1")
    except ValueError as error:
        raise AnnotationError(str(error)) from error
    if not isinstance(content, (list, tuple)) or len(content) != 2 or not all(hasattr(part, "__len__") for part in content):
        raise AnnotationError(f"{path}: holds a {type(content).__name__}; accepted: [list of clouds, list of labels]")
    if len(content[0]) != len(content[1]):
        raise AnnotationError(f"{path}: {len(content[0])} clouds, but {len(content[1])} labels")
    return content[0], content[1]


def read_class_names(path: Path) -> list[str]:
    """The classes of a text file, one per line. AnnotationError for none, one twice, or what is no text."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if not names or len(set(names)) < len(names):
        raise AnnotationError(f"{path}: {len(names)} class names, {len(set(names))} different; accepted: a class per line")
    return names


class ShapeDataset(CloudDataset):
    """Training: a cloud and its class. `classnames`: the name of each label; `templates`: prompts of an ensemble, empty
    for the model's own prompt."""

    source = "image_id"
    up = "y"
    needs = "a cloud [P, 3 or more] of finite numbers"

    def __init__(self, *, class_names: Path, templates: Sequence[str] = (), **kwargs: Any) -> None:
        self.classnames, self.templates = read_class_names(class_names), list(templates)
        self._clouds: list[NDArray[np.float32]] = []
        super().__init__(**kwargs)

    def read_file(self, path: Path) -> Iterator[tuple[str, Row]]:
        clouds, labels = read_clouds(path)
        for number, (cloud, label) in enumerate(zip(clouds, labels, strict=True)):
            where = f"{path.name}[{number}]"
            value = np.asarray(label).reshape(-1)
            if value.dtype.kind not in "iuf" or len(value) != 1 or value[0] not in range(len(self.classnames)):
                accepted = f"a whole number below {len(self.classnames)}, the number of class names"
                raise AnnotationError(f"{path}: label {label!r} of {where}; accepted: {accepted}")
            yield where, {"cloud": cloud, "class": int(value[0])}

    def parse(self, row: Row, label: str) -> Row:
        self._clouds.append(self._points(row["cloud"]))
        return self._row(row, number=len(self._clouds) - 1)

    def _points(self, cloud: Any) -> NDArray[np.float32]:
        try:
            points = cloud_geometry.as_cloud(cloud)
            if len(points) < self.num_points:
                raise BadSample(f"too few points: {len(points)}, a sample takes {self.num_points}")
            return cloud_geometry.unit_sphere(points[: self.num_points]).astype(np.float32)
        except ValueError as error:
            raise BadSample(str(error)) from error

    def _row(self, row: Row, *, number: int) -> Row:
        return {"image_id": number, "class": row["class"], "captions": [self.classnames[row["class"]]]}

    def load(self, index: int, rng: np.random.RandomState) -> Sample:
        row = self.usable(self.rows[index])
        points = self._clouds[row["image_id"]]
        if self.training:
            points = points[rng.permutation(len(points))]
        return {**self.sample(row, points, rng), "label": row["class"]}

    def cloud_of(self, index: int) -> tuple[NDArray[np.float32], None]:
        return self._clouds[self.usable(self.rows[index])["image_id"]], None


class ShapeEvalDataset(ShapeDataset):
    """Evaluation: points in the order of the file. No cloud is left out."""

    training = False

    def parse(self, row: Row, label: str) -> Row:
        try:
            return super().parse(row, label)
        except BadSample as error:
            self._clouds.append(np.empty((0, 3), dtype=np.float32))
            return {**self._row(row, number=len(self._clouds) - 1), "problem": error.reason}

    def placeholder(self, index: int) -> Sample:
        return {**super().placeholder(index), "label": self.rows[index]["class"]}

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "classnames": self.classnames, "templates": self.templates}


@registry.register_builder("mobilenet40")
class ModelNet40Builder(BaseDatasetBuilder):
    """ModelNet40, or any shapes in its layout. Annotation files are looked for in the folder of the clouds."""

    name = "mobilenet40"
    train_dataset_cls = ShapeDataset
    eval_dataset_cls = ShapeEvalDataset
    DATASET_CONFIG_DICT = {
        "default": "configs/datasets/mobilenet40.yaml",
        "ensemble": "configs/datasets/mobilenet40_ensemble.yaml",
    }

    def _find(self, key: str, storage: Any, *, kind: str, hint: str = "") -> Path:
        if kind == "file" and isinstance(storage, str):
            storage = str(self._root() / storage)
        return super()._find(key, storage, kind=kind, hint=hint)

    def _sources(self, split: str) -> dict[str, Any]:
        data_type = self.config["data_type"]
        clouds = self._node("build_info", data_type)
        templates = self.config["templates"] or []
        for template in templates:
            if not isinstance(template, str) or "{}" not in template:
                raise ConfigError(f"{self._key('templates')}: {template!r} has no {{}} for the class name")
        return {
            **super()._sources(split),
            "num_points": clouds["npoints"],
            "class_names": self._find(self._key("build_info", data_type, "class_names"), clouds["class_names"], kind="file"),
            "templates": templates,
        }
