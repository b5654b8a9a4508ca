from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.datasets.datasets.base_dataset import AnnotationError
from lavis.datasets.datasets.objaverse import ObjectCaptionDataset, ObjectCaptionEvalDataset
from tests.datasets.files import cloud_options, write_object
from tests.parity import count_records, parity_dir

POINTS = np.random.RandomState(0).randn(8, 3)


def captions(tmp_path: Path, *lines: str, name: str = "Cap3D_automated_Objaverse_train.txt") -> Path:
    path = tmp_path / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("key", ["pccap_aug0", "pccap_aug1"])
def test_recorded_items(tmp_path: Path, key: str) -> None:
    folder = parity_dir() / "regionblip"
    record = json.loads((folder / "data_items.json").read_text())[key]
    arrays = load_file(folder / "data_items.safetensors")
    write_object(tmp_path, record["obj_name"], arrays["pccap/in"])
    ann = captions(tmp_path, f"{record['obj_name']},A tall green plant, with pot.")
    dataset = ObjectCaptionDataset(**cloud_options(tmp_path, ann, num_points=128, augment=key == "pccap_aug1"))
    sample = dataset.load(0, np.random.RandomState(record["np_seed"]))
    np.testing.assert_allclose(sample["pointcloud"], arrays[f"{key}/out"], atol=1e-6, rtol=0)
    assert str(sample["pointcloud"].dtype) == f"torch.{record['out_dtype']}"
    assert (sample["text_input"], sample["image_id"]) == (record["caption"], record["obj_name"])
    count_records(1)


def test_the_last_caption_wins_or_each_counts(tmp_path: Path) -> None:
    for object_id in "ab":
        write_object(tmp_path, object_id, POINTS)
    ann = captions(tmp_path, "a,first", "b,a chair, red", "", "a, Last one.", "a,", "no comma", ",nothing")
    train = ObjectCaptionDataset(**cloud_options(tmp_path, ann))
    assert [(train[i]["image_id"], train[i]["text_input"]) for i in range(len(train))] == [
        ("a", "last one"),
        ("b", "a chair, red"),
    ]
    reasons = {label.partition(":")[2]: reason.split(":")[0] for label, reason in train.dropped}
    assert reasons == {"5": "empty caption", "6": "malformed line", "7": "empty object_id"}
    each = ObjectCaptionDataset(**cloud_options(tmp_path, ann, all_captions=True))
    assert [each[i]["text_input"] for i in range(len(each))] == ["first", "a chair, red", "last one"]

    test = ObjectCaptionEvalDataset(**cloud_options(tmp_path, ann, split="test", all_captions=True))
    assert [test[i]["image_id"] for i in range(len(test))] == ["a", "b"]
    assert test.references() == [("a", "first"), ("a", " Last one."), ("a", ""), ("b", "a chair, red")]


def test_samples(tmp_path: Path) -> None:
    write_object(tmp_path, "a", np.c_[POINTS, np.full((8, 3), 0.5)])
    write_object(tmp_path, "more", np.random.RandomState(1).randn(50, 6))
    ann = captions(tmp_path, "a,x", "more,y")
    train = ObjectCaptionDataset(**cloud_options(tmp_path, ann, augment=True))
    sample = train[0]
    assert sample["pointcloud"].shape == (8, 3) and sample["pointcloud"].dtype == torch.float32
    assert (sample["modality"], sample["cloud_key"]) == ("pointcloud", "a")
    assert train[1]["pointcloud"].shape == (8, 3)
    assert torch.equal(train[(1, 0)]["pointcloud"], train[(1, 0)]["pointcloud"])
    assert not torch.equal(train[(1, 0)]["pointcloud"], train[(2, 0)]["pointcloud"])
    test = ObjectCaptionEvalDataset(**cloud_options(tmp_path, ann, split="test", augment=True, use_color=True))
    cloud = test[0]["pointcloud"]
    assert cloud.shape == (8, 6) and (cloud[:, 3:] == 0.5).all(), "colours are not scaled"
    assert cloud[:, :3].norm(dim=1).max() == pytest.approx(1)


def test_clouds_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    bad = {
        "few": POINTS[:7],
        "nan": np.where(np.arange(24).reshape(8, 3) == 5, np.nan, POINTS),
        "one": np.ones((8, 3)),
        "flat": POINTS[:, :2],
        "objects": np.array([{}]),
    }
    for object_id, points in {"good": POINTS, **bad}.items():
        write_object(tmp_path, object_id, points)
    write_object(tmp_path, "other_key", POINTS, key="points")
    write_object(tmp_path, "cut", POINTS)
    whole = tmp_path / "cut" / "cut_8192.npz"
    whole.write_bytes(whole.read_bytes()[:100])
    ids = ["good", *bad, "other_key", "cut", "gone"]
    ann = captions(tmp_path, *(f"{object_id},caption" for object_id in ids))
    train = ObjectCaptionDataset(**cloud_options(tmp_path, ann))
    reasons = [train[i]["skipped"][0][1].split(":")[0] for i in range(1, len(ids))]
    assert reasons == [
        *("too few points", "not finite", "one repeated point", "malformed point cloud", "broken point cloud"),
        *("no arr_0", "broken point cloud", "missing point cloud"),
    ]
    assert {train[i]["image_id"] for i in range(len(ids))} == {"good"}
    test = ObjectCaptionEvalDataset(**cloud_options(tmp_path, ann, split="test"))
    batch = test.collater([test[i] for i in range(len(ids))])
    assert batch["readable"] == [True] + [False] * 8 and batch["image_id"] == ids
    assert batch["pointcloud"].shape == (9, 8, 3) and bool(batch["pointcloud"].isfinite().all())
    assert str(tmp_path / "gone" / "gone_8192.npz") in batch["skipped"][-1][1]
    coloured = ObjectCaptionDataset(**cloud_options(tmp_path, ann, use_color=True))
    with pytest.raises(AnnotationError, match="no usable row among 9; .*no colour: "):
        coloured.check_usable()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"a,\xff\xff\n")
    for path, message in ((tmp_path / "bytes.txt", "UTF-8"), (tmp_path / "none.txt", "cannot be read")):
        with pytest.raises(AnnotationError, match=message):
            ObjectCaptionDataset(**cloud_options(tmp_path, path))
    with pytest.raises(AnnotationError, match="it has no rows"):
        ObjectCaptionDataset(**cloud_options(tmp_path, captions(tmp_path, "")))
    with pytest.raises(ConfigError, match="the number of points is 0; accepted: an integer of 1 or more"):
        ObjectCaptionDataset(**cloud_options(tmp_path, tmp_path / "none.txt", num_points=0))


def test_builder_reads_the_published_layout(tmp_path: Path) -> None:
    write_object(tmp_path / "clouds", "a", POINTS)
    ann = captions(tmp_path, "a,One", "a,two")
    clouds = {"storage": str(tmp_path / "clouds"), "num_points": 8, "pc_augmentation": False}
    block: dict[str, Any] = {
        "task_name": "task_alignLLM_3d_cloudtext",
        "text_processor": {"train": {"name": "blip_caption", "max_words": 3}, "eval": {"name": "blip_caption"}},
        "build_info": {"annotations": {"train": {"storage": str(ann)}, "test": {"storage": str(ann)}}, "pointcloud": clouds},
    }
    builder = registry.get_builder_class("pointcloud_caption")
    datasets = builder(block).build_datasets()
    train, test = datasets["train"], datasets["test"]
    assert (train.modality, len(train), train.augment, test.training) == ("pointcloud", 1, False, False)
    assert torch.linalg.norm(train[0]["pointcloud"], dim=1).max() == pytest.approx(1)
    clouds.update(all_captions=True, pc_augmentation=True)
    train = builder({**block, "task_name": "pointcloud"}).build_datasets(splits=["train"])["train"]
    assert (len(train), train.augment) == (2, True)
    with pytest.raises(ConfigError, match="num_pints.*num_points"):
        builder({"build_info": {"pointcloud": {"num_pints": 3}}})
