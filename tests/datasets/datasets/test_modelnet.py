from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.datasets.datasets.base_dataset import AnnotationError
from lavis.datasets.datasets.modelnet import ShapeDataset, ShapeEvalDataset
from tests.datasets.files import cloud_options

CLASSES = ["airplane", "bathtub", "night_stand"]


def cloud(seed: int, points: int = 8) -> np.ndarray:
    return np.random.RandomState(seed).randn(points, 6).astype(np.float32)


def write(folder: Path, content: Any, *, protocol: int | None = None, name: str = "modelnet40_test_8192pts_fps.dat") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modelnet40_shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    path = folder / name
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def dataset(cls: type[ShapeDataset], path: Path, **kwargs: Any) -> ShapeDataset:
    names = path.parent / "modelnet40_shape_names.txt"
    return cls(**cloud_options(path.parent, path, split="test", class_names=names, **kwargs))


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(tmp_path: Path, protocol: int) -> None:
    clouds = [cloud(0), cloud(1, 12)]
    labels = [np.array([2], dtype=np.int32), np.int64(1)]
    test = dataset(ShapeEvalDataset, write(tmp_path, [clouds, labels], protocol=protocol))
    assert test.classnames == CLASSES and test.templates == []
    batch = test.collater([test[0], test[1]])
    assert batch["pointcloud"].shape == (2, 8, 3) and batch["label"] == [2, 1] and batch["image_id"] == [0, 1]
    assert batch["text_input"] == ["night_stand", "bathtub"]
    expected = clouds[1][:8, :3] - clouds[1][:8, :3].mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1).max()
    np.testing.assert_allclose(batch["pointcloud"][1], expected, atol=1e-6)
    assert torch.equal(test[(3, 0)]["pointcloud"], test[0]["pointcloud"]), "the order of the file"


def test_pickles_of_older_numpy(tmp_path: Path) -> None:
    data = pickle.dumps([[cloud(0)], [np.int64(1)]], protocol=2)
    assert b"numpy._core.multiarray" in data
    path = write(tmp_path, 0)
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert dataset(ShapeEvalDataset, path)[0]["label"] == 1


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([[Malicious()], [0]], "which is not plain data; it is not run"),
        ([np.array([Malicious()], dtype=object), [0]], "it is not run"),
        ([[cloud(0)], [0, 1]], "1 clouds, but 2 labels"),
        ([[cloud(0)]], "holds a list; accepted"),
        (3, "holds a int; accepted"),
        ([[cloud(0)], [3]], r"label 3 of .*\[0\]; accepted: a whole number below 3"),
        ([[cloud(0)], ["chair"]], "label 'chair'"),
        ([[cloud(0)], [0.5]], "label 0.5"),
        ([[], []], "it has no rows"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, content)
    with pytest.raises(AnnotationError, match=message) as caught:
        dataset(ShapeEvalDataset, path)
    assert str(path) in str(caught.value) and not Path("touched").exists()


def test_broken_and_missing_files(tmp_path: Path) -> None:
    path = write(tmp_path, [[cloud(0)], [0]])
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(AnnotationError, match="cannot be read as a pickle of data"):
        dataset(ShapeEvalDataset, path)
    for text, message in (("", "0 class names"), ("a\na\n", "2 class names, 1 different")):
        (tmp_path / "modelnet40_shape_names.txt").write_text(text)
        with pytest.raises(AnnotationError, match=message):
            dataset(ShapeEvalDataset, path)


def test_clouds_that_cannot_be_used(tmp_path: Path) -> None:
    bad = [np.full((8, 3), np.nan), np.ones((8, 3)), cloud(0, 7), "text"]
    path = write(tmp_path, [[cloud(0), *bad], [1, 0, 1, 2, 0]])
    train = dataset(ShapeDataset, path)
    kinds = [reason.split(":")[0] for _, reason in train.dropped]
    assert kinds == ["not finite", "one repeated point", "too few points", "malformed point cloud"] and len(train) == 1
    assert not torch.equal(train[(0, 0)]["pointcloud"], train[(1, 0)]["pointcloud"]), "random order in training"
    test = dataset(ShapeEvalDataset, path)
    batch = test.collater([test[i] for i in range(len(test))])
    assert batch["readable"] == [True, False, False, False, False]
    assert batch["label"] == [1, 0, 1, 2, 0] and len(batch["skipped"]) == 4


def test_builder_reads_the_published_layout(tmp_path: Path) -> None:
    write(tmp_path / "modelnet", [[cloud(0)], [1]])
    block = {
        "point_processor": {"train": {"name": "base_point_cloud"}},
        "build_info": {"pointcloud": {"storage": str(tmp_path / "modelnet"), "npoints": 8}},
    }
    builder = registry.get_builder_class("mobilenet40")
    test = builder(block).build_datasets()["test"]
    assert (test.modality, len(test), test.classnames, test.templates) == ("pointcloud", 1, CLASSES, [])
    ensemble = builder({**block, "type": "ensemble"}).build_datasets(splits=["test"])["test"]
    assert len(ensemble.templates) > 1 and all("{}" in template for template in ensemble.templates)
    with pytest.raises(ConfigError, match=r"datasets\.mobilenet40\.templates: 'a thing' has no \{\}"):
        builder({**block, "templates": ["a thing"]}).build_datasets()
    block["build_info"]["pointcloud"]["class_names"] = "gone.txt"
    with pytest.raises(ConfigError, match=r"pointcloud\.class_names: no file at .*modelnet/gone\.txt"):
        builder(block).build_datasets()
    with pytest.raises(ConfigError, match=r"annotations\.test\.storage: no file at .*modelnet40_test_8192pts_fps\.dat"):
        builder({}).build_datasets()
