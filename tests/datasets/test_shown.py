"""What datasets show to people: pictures with pixel boxes, clouds with the corners where they really are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lavis.datasets.datasets.base_dataset import BadSample
from lavis.datasets.datasets.captions import CaptionEvalDataset
from lavis.datasets.datasets.crops import CropEvalDataset
from lavis.datasets.datasets.modelnet import ShapeEvalDataset
from lavis.datasets.datasets.objaverse import ObjectCaptionEvalDataset
from lavis.datasets.datasets.regions import RegionEvalDataset
from lavis.datasets.datasets.scanrefer import ScanReferEvalDataset
from lavis.models.regions.geometry import corners_in_space
from tests.datasets.datasets import test_modelnet
from tests.datasets.files import cloud_options, options, write_images, write_json, write_object, write_scene

BOX = [0.5, -0.5, 0.25, 1.0, 2.0, 0.5]


@pytest.mark.parametrize("cls", [CaptionEvalDataset, CropEvalDataset])
def test_whole_pictures(tmp_path: Path, cls: type[CaptionEvalDataset]) -> None:
    write_images(tmp_path, ["a_1.png", "a_2.png"])
    (tmp_path / "a_2.png").write_bytes(b"not a picture")
    rows = [{"image": name, "caption": ["a"]} for name in ("a_1.png", "a_2.png", "gone_3.png")] + [{"caption": ["b"]}]
    dataset = cls(**options(tmp_path, write_json(tmp_path / "test.json", rows), split="test"))
    picture, box = dataset.picture_of(0)
    assert (picture.size, picture.mode, box) == ((40, 30), "RGB", None)
    for index, reason in ((1, "broken image: .*a_2.png"), (2, "missing image: .*gone_3.png"), (3, "missing key: image")):
        with pytest.raises(BadSample, match=reason):
            dataset.picture_of(index)


def test_regions_are_shown_in_pixels_of_the_file(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    boxes = ([4, 3, 10, 20], [30, 20, 50.5, 50], [100, 100, 5, 5], "none")
    rows = [{"image": "a.png", "image_id": str(number), "bbox": box, "caption": "x"} for number, box in enumerate(boxes)]
    dataset = RegionEvalDataset(**options(tmp_path, write_json(tmp_path / "test.json", rows), split="test"))
    picture, box = dataset.picture_of(0)
    assert picture.size == (40, 30) and box == [4, 3, 14, 23]
    assert dataset.picture_of(1)[1] == [30, 20, 40, 30]
    with pytest.raises(BadSample, match="empty bbox: .* lies outside the picture of 40 x 30"):
        dataset.picture_of(2)
    with pytest.raises(BadSample, match="malformed bbox"):
        dataset.picture_of(3)


def test_objects(tmp_path: Path) -> None:
    points = np.random.RandomState(0).randn(20, 3)
    coloured = np.c_[points, np.random.RandomState(1).uniform(size=(20, 3))]
    write_object(tmp_path, "plain", points)
    write_object(tmp_path, "coloured", coloured)
    write_object(tmp_path, "broken", np.full((20, 3), np.nan))
    ann = tmp_path / "test.txt"
    ann.write_text("".join(f"{name},a thing\n" for name in ("plain", "coloured", "broken", "gone")))
    dataset = ObjectCaptionEvalDataset(**cloud_options(tmp_path, ann, split="test"))
    cloud, corners = dataset.cloud_of(0)
    np.testing.assert_allclose(cloud, points, rtol=1e-6)
    assert corners is None and dataset.up == "y"
    np.testing.assert_allclose(dataset.cloud_of(1)[0], coloured, rtol=1e-6)
    with pytest.raises(BadSample, match="not finite: .*broken_8192.npz"):
        dataset.cloud_of(2)
    with pytest.raises(BadSample, match="missing point cloud"):
        dataset.cloud_of(3)


def test_objects_of_rooms(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    points = np.c_[rng.randn(30, 3), rng.randint(0, 256, (30, 3)), rng.randn(30, 3)]
    write_scene(tmp_path / "scenes", "s", points, np.array([[*BOX, 5, 3], [0, 0, 0, 0, 1, 1, 5, 4]]))
    rows = [
        {"scene_id": scene, "object_id": number, "description": "x"} for scene, number in (("s", 3), ("s", 9), ("s", 4), ("t", 3))
    ]
    ann = write_json(tmp_path / "test.json", rows)
    given = {"modality": "pointcloud_region", "split": "test"}
    dataset = ScanReferEvalDataset(**cloud_options(tmp_path / "scenes", ann, **given))
    cloud, corners = dataset.cloud_of(0)
    np.testing.assert_allclose(cloud, np.c_[points[:, :3], points[:, 3:6] / 255], rtol=1e-6)
    assert corners is not None and dataset.up == "z"
    np.testing.assert_allclose(corners.min(axis=0), [0, -1.5, 0])
    np.testing.assert_allclose(corners.max(axis=0), [1, 0.5, 0.5])
    # what the model reads has the extents of y and z exchanged; the model's own mapping gives the same corners
    read = dataset.load(0, np.random.RandomState(0))["box_corners"]
    assert not np.allclose(read, corners)
    in_space = corners_in_space(read[None])[0].tolist()
    np.testing.assert_allclose(sorted(in_space), sorted(corners.tolist()), atol=1e-6)
    for index, reason in ((1, "missing object: 9"), (2, "without|volume"), (3, "missing boxes of a scene")):
        with pytest.raises(BadSample, match=reason):
            dataset.cloud_of(index)


def test_rooms_without_colours(tmp_path: Path) -> None:
    points = np.c_[np.random.RandomState(0).randn(30, 3), np.zeros((30, 6))]
    write_scene(tmp_path, "s", points, np.array([[*BOX, 5, 3]]))
    ann = write_json(tmp_path / "test.json", [{"scene_id": "s", "object_id": 3, "description": "x"}])
    dataset = ScanReferEvalDataset(**cloud_options(tmp_path, ann, split="test", modality="pointcloud_region"))
    assert dataset.cloud_of(0)[0].shape == (30, 3)


def test_shapes(tmp_path: Path) -> None:
    path = test_modelnet.write(tmp_path, [[test_modelnet.cloud(0)], [np.int64(1)]])
    dataset = test_modelnet.dataset(ShapeEvalDataset, path)
    cloud, corners = dataset.cloud_of(0)
    assert corners is None and dataset.up == "y"
    assert torch.equal(torch.from_numpy(cloud), dataset[0]["pointcloud"])


def test_a_grey_picture_is_shown_in_rgb(tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "1.png")
    rows = [{"image": "1.png", "caption": ["a"]}]
    dataset = CaptionEvalDataset(**options(tmp_path, write_json(tmp_path / "test.json", rows), split="test"))
    assert dataset.picture_of(0)[0].mode == "RGB"
