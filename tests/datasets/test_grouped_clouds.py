"""Groups of points that loader workers find: what run.group_in_workers does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from lavis.common.config import merge_dataset_config
from lavis.common.errors import ConfigError
from lavis.datasets.datasets import clouds
from lavis.datasets.datasets.objaverse import ObjectCaptionDataset
from lavis.datasets.datasets.scanrefer import ScanReferEvalDataset
from lavis.models import load_model_from_config
from lavis.processors import point_groups
from lavis.tasks.base_task import BaseTask
from tests import tiny
from tests.datasets.files import cloud_options, write_json, write_object, write_scene

SIZES = {"num_group": 8, "group_size": 4}  # of the tiny point encoder
BOXES = np.array([[0, 0, 1, 1, 2, 3, 5, 3], [1, 1, 1, 1, 1, 1, 5, 7]], dtype=np.float64)


def objects(folder: Path, **changes: Any) -> ObjectCaptionDataset:
    rng = np.random.RandomState(0)
    for name in "abc":
        write_object(folder, name, rng.randn(48, 3))
    ann = folder / "captions.txt"
    ann.write_text("a,one\nb,two\nc,three\n")
    return ObjectCaptionDataset(**cloud_options(folder, ann, num_points=48, **changes))


def scenes(folder: Path) -> ScanReferEvalDataset:
    rng = np.random.RandomState(0)
    for name in "st":
        write_scene(folder / "scenes", name, np.concatenate([rng.randn(90, 3), rng.rand(90, 6)], axis=1), BOXES)
    rows = [{"scene_id": scene, "object_id": number, "description": "A table."} for scene in "st" for number in ("3", "7")]
    ann = write_json(folder / "ann.json", rows)
    return ScanReferEvalDataset(
        **cloud_options(folder, ann, split="val", vis_root=folder / "scenes", num_points=60, modality="pointcloud_region")
    )


def test_evaluation_is_bitwise_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = load_model_from_config(tiny.model_config(tmp_path / "model", "regionblip_opt")).eval()
    dataset = scenes(tmp_path)
    plain = dataset.collater([dataset[i] for i in range(4)])
    calls: list[int] = []
    monkeypatch.setattr(clouds, "point_groups", lambda *args, **kw: (calls.append(1), point_groups.point_groups(*args, **kw))[1])
    dataset.group_clouds(**SIZES)
    grouped = dataset.collater([dataset[i] for i in range(4)])
    assert len(calls) == 2, "objects of one scene share its groups"
    assert grouped["point_groups"].shape == (2, 8, 5) and "point_groups" not in plain
    with torch.no_grad():
        expected = model(plain)
        monkeypatch.setattr("lavis.models.encoders.point_ops.farthest_points", lambda *args, **kw: pytest.fail("sampled again"))
        found = model(grouped)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_training_draws_the_start_for_the_sample(tmp_path: Path) -> None:
    plain, dataset = objects(tmp_path), objects(tmp_path)
    dataset.group_clouds(**SIZES)
    starts = set()
    for key in [(epoch, index) for epoch in range(4) for index in range(3)]:
        sample = dataset[key]
        assert torch.equal(sample["pointcloud"], plain[key]["pointcloud"]), "no other draw changes"
        assert torch.equal(sample["point_groups"], dataset[key]["point_groups"])
        start = int(sample["point_groups"][0, 0])
        expected = point_groups.point_groups(sample["pointcloud"].numpy(), *SIZES.values(), start=start)
        assert sample["point_groups"].tolist() == expected.tolist()
        starts.add(start)
    assert len(starts) > 8
    dataset.set_seed(1)
    assert int(dataset[3, 2]["point_groups"][0, 0]) != start, "the seed decides"


def test_a_placeholder_leaves_grouping_to_the_model(tmp_path: Path) -> None:
    dataset = scenes(tmp_path)
    (tmp_path / "scenes" / "t_aligned_vert.npy").unlink()
    dataset.group_clouds(**SIZES)
    batch = dataset.collater([dataset[i] for i in range(4)])
    assert batch["readable"] == [True, True, False, False] and "point_groups" not in batch


def test_small_clouds_are_named(tmp_path: Path) -> None:
    dataset = objects(tmp_path)
    dataset.group_clouds(num_group=64, group_size=4)
    with pytest.raises(ConfigError, match="dataset tiny: a cloud has 48 points, too few for 64 groups of 4; accepted: larger"):
        dataset[0]


@pytest.mark.parametrize("wanted", [True, False])
def test_the_run_asks_for_it(tmp_path: Path, wanted: bool) -> None:
    objects(tmp_path)
    given = {"annotations": {"train": {"storage": str(tmp_path / "captions.txt")}}}
    info = {**given, "pointcloud": {"storage": str(tmp_path), "num_points": 48}}
    block = {"build_info": info, "text_processor": {"train": {"name": "blip_caption"}}}
    cfg: Any = SimpleNamespace(
        datasets_cfg={"pointcloud_caption": merge_dataset_config("pointcloud_caption", block)},
        env_cfg=OmegaConf.create({"cache_root": None}),
        run_cfg=OmegaConf.create({"group_in_workers": wanted}),
        model_cfg=OmegaConf.create({"pointbert": SIZES}),
    )
    train = BaseTask(cfg.run_cfg).build_datasets(cfg, splits=["train"])["pointcloud_caption"]["train"]
    assert ("point_groups" in train[0]) == wanted
