from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.numpy import load_file

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.datasets import load_dataset
from lavis.datasets.datasets.base_dataset import AnnotationError
from lavis.datasets.datasets.scanrefer import COLOR_SCALE, MEAN_COLOR, ScanReferDataset, ScanReferEvalDataset
from lavis.processors import load_processor
from tests.datasets.files import cloud_options, write_json, write_scene
from tests.parity import count_records, parity_dir

BOXES = np.array([[0, 0, 1, 2, 1, 1, 5, 3], [1, 1, 1, 1, 1, 1, 5, 7], [1, 1, 1, 0, 1, 1, 5, 9]], dtype=float)


def scene(seed: int, points: int = 20) -> np.ndarray:
    rng = np.random.RandomState(seed)
    return np.c_[rng.randn(points, 3), rng.randint(0, 256, (points, 3)), rng.randn(points, 3)].astype(np.float32)


def row(scene_id: object, object_id: object, description: object = "The chair.") -> dict[str, object]:
    return {"scene_id": scene_id, "object_id": object_id, "object_name": "chair", "ann_id": "0", "description": description}


def options(folder: Path, *rows: dict[str, object], split: str = "train", **kwargs: Any) -> dict[str, Any]:
    ann = write_json(folder / f"ScanRefer_filtered_{split}.json", list(rows))
    given = {"modality": "pointcloud_region", **kwargs}
    return cloud_options(folder / "scenes", ann, split=split, **given)


@pytest.mark.parametrize("key", ["scannet0", "scannet1", "scannet_aug"])
@pytest.mark.parametrize("use_color", [False, True])
def test_recorded_items(tmp_path: Path, key: str, use_color: bool) -> None:
    folder = parity_dir() / "regionblip"
    records = json.loads((folder / "data_items.json").read_text())
    arrays = load_file(folder / "data_items.safetensors")
    write_scene(tmp_path / "scenes", "scene0000_00", arrays["scannet/in_vert"], arrays["scannet/in_bbox"])
    rows = [row(*record["refer_box_id"].rsplit("_", 1), record["text"]) for record in (records["scannet0"], records["scannet1"])]
    as_it_is = load_processor("identity")
    given = {"num_points": 200, "augment": key == "scannet_aug", "use_color": use_color, "text_processor": as_it_is}
    dataset = ScanReferDataset(**options(tmp_path, *rows, **given))
    index = records[key].get("index", int(key[-1]) if key[-1].isdigit() else 0)
    sample = dataset.load(index, np.random.RandomState(records[key]["np_seed"]))
    np.testing.assert_allclose(sample["pointcloud"][:, :3], arrays[f"{key}/point_clouds"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(sample["box_corners"], arrays[f"{key}/refer_box_corners"], atol=1e-6, rtol=0)
    if key != "scannet_aug":
        assert (sample["image_id"], sample["text_input"]) == (records[key]["refer_box_id"], records[key]["text"])
        if use_color:
            colours = sample["pointcloud"][:, 3:].numpy() * COLOR_SCALE + np.array(MEAN_COLOR)
            np.testing.assert_allclose(colours, arrays[f"{key}/point_colors"], atol=1e-4, rtol=0)
    count_records(1 - use_color)


def test_a_missing_object_is_skipped(tmp_path: Path) -> None:
    """The published code raises here (record scannet_missing_object)."""
    write_scene(tmp_path / "scenes", "s", scene(0), BOXES)
    dataset = ScanReferDataset(**options(tmp_path, row("s", "3"), row("s", "99")))
    sample = dataset[1]
    assert sample["skipped"][0][1] == "missing object: 99 is not among the 3 boxes of s"
    assert sample["image_id"] == "s_3"
    count_records(1)


def test_training_rows(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes", "s", scene(0), BOXES)
    rows = [row("s", 3, "One"), row("s", "7", "two"), row("s", "9"), row("gone", 3)]
    bad = [row("s", "x"), row("s", None), row("s", True), row(4, 3), row("s", 3, " "), {"scene_id": "s", "description": "x"}]
    dataset = ScanReferDataset(**options(tmp_path, *rows, *bad, dataset_repeat_num=2))
    assert len(dataset) == 8
    assert [reason.split(":")[0] for _, reason in dataset.dropped] == [
        *["malformed object_id"] * 3,
        *("scene_id is not text", "empty description", "missing key"),
    ]
    sample = dataset[0]
    assert (sample["cloud_key"], sample["image_id"], sample["modality"]) == ("s", "s_3", "pointcloud_region")
    assert sample["pointcloud"].shape == (8, 3) and sample["box_corners"].shape == (8, 3)
    assert sample["box_corners"].dtype == torch.float32
    assert not torch.equal(sample["pointcloud"], dataset[1]["pointcloud"]), "draws of a training row are its own"
    assert [dataset[i]["skipped"][0][1].split(":")[0] for i in (2, 3)] == ["empty or malformed box", "missing scene"]
    assert "(object 9 of s)" in dataset[2]["skipped"][0][1]
    few = ScanReferDataset(**options(tmp_path, *rows, num_points=50))
    assert few[0]["pointcloud"].shape == (50, 3), "points repeat where a scene has too few"


def test_options_of_the_cloud(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes", "s", scene(0), BOXES)
    write_scene(tmp_path / "scenes", "plain", scene(0)[:, :3], BOXES)
    rows = [row("s", 3), row("plain", 3)]
    tall = ScanReferDataset(**options(tmp_path, *rows, num_points=20, use_color=True, use_height=True))
    cloud = tall[0]["pointcloud"]
    assert cloud.shape == (20, 7) and cloud[:, 3:6].abs().max() < 1
    np.testing.assert_allclose(cloud[:, 6] - cloud[:, 2], (cloud[:, 6] - cloud[:, 2]).mean().item(), atol=1e-6)
    heights = cloud[:, 6].sort().values
    assert heights[0] < 0 < heights[1], "the floor is at a low percentile"
    assert tall[1]["skipped"][0][1].startswith("no colour: ")
    turned = ScanReferDataset(**options(tmp_path, *rows, augment=True))
    shapes = {tuple(turned[(epoch, 0)]["box_corners"].flatten().tolist()) for epoch in range(4)}
    assert len(shapes) == 4
    calm = ScanReferEvalDataset(**options(tmp_path, *rows, augment=True))
    np.testing.assert_allclose(calm[0]["box_corners"].mean(dim=0), [0, 0, 1], atol=1e-6)


def test_evaluation_shares_the_scene(tmp_path: Path) -> None:
    for number, name in enumerate(("s", "t")):
        write_scene(tmp_path / "scenes", name, scene(number), BOXES)
    rows = [row("s", "3", "One"), row("t", "7", "two"), row("s", "7"), row("s", "3", ""), row("t", "3", "Three")]
    dataset = ScanReferEvalDataset(**options(tmp_path, *rows, split="val", dataset_repeat_num=2))
    samples = [dataset[i] for i in range(len(dataset))]
    assert [sample["image_id"] for sample in samples] == ["s_3", "s_7", "t_7", "t_3"], "objects of a scene are neighbours"
    assert dataset.references() == [("s_3", "One"), ("s_3", ""), ("s_7", "The chair."), ("t_7", "two"), ("t_3", "Three")]
    batch = dataset.collater(samples)
    assert batch["pointcloud"].shape == (2, 8, 3) and batch["pointcloud_index"].tolist() == [0, 0, 1, 1]
    assert batch["box_corners"].shape == (4, 8, 3) and batch["readable"] == [True] * 4
    assert torch.equal(batch["pointcloud"][batch["pointcloud_index"]], torch.stack([s["pointcloud"] for s in samples]))
    other = ScanReferEvalDataset(**options(tmp_path, row("t", "7"), split="val"))
    assert torch.equal(other[0]["pointcloud"], samples[2]["pointcloud"]), "whatever else the file holds"
    dataset.set_seed(1)
    assert not torch.equal(dataset[0]["pointcloud"], samples[0]["pointcloud"])


def test_evaluation_never_leaves_a_row_out(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes", "s", scene(0), BOXES)
    rows = [row("s", "3"), row("s", "99"), row("gone", "3"), row("s", "9"), row("s", "x"), {"object_id": 3, "description": "d"}]
    dataset = ScanReferEvalDataset(**options(tmp_path, *rows, split="val"))
    batch = dataset.collater([dataset[i] for i in range(len(dataset))])
    ids = dict(zip(batch["image_id"], batch["readable"], strict=True))
    assert ids == {
        **{"s_3": True, "s_99": False, "s_9": False, "s_x": False},
        **{"gone_3": False, "ScanRefer_filtered_val.json[5]_3": False},
    }
    assert {image_id for image_id, _ in dataset.references()} == set(ids)
    assert batch["pointcloud"].shape[0] == 2, "the unreadable ones share one cloud"
    assert batch["box_corners"].shape == (6, 8, 3) and len(batch["skipped"]) == 5


def test_broken_scenes(tmp_path: Path) -> None:
    good = scene(0)
    write_scene(tmp_path / "scenes", "good", good, BOXES)
    write_scene(tmp_path / "scenes", "boxes", good, BOXES[:, :7])
    write_scene(tmp_path / "scenes", "nan", np.where(good == good[3, 1], np.nan, good), BOXES)
    write_scene(tmp_path / "scenes", "cut", good, BOXES)
    write_scene(tmp_path / "scenes", "lost", good, BOXES)
    cut = tmp_path / "scenes" / "cut_aligned_vert.npy"
    cut.write_bytes(cut.read_bytes()[:50])
    (tmp_path / "scenes" / "lost_aligned_bbox.npy").unlink()
    rows = [row(name, 3) for name in ("good", "boxes", "nan", "cut", "lost")]
    dataset = ScanReferDataset(**options(tmp_path, *rows))
    reasons = [dataset[i]["skipped"][0][1].split(":")[0] for i in range(1, 5)]
    assert reasons == ["malformed boxes", "not finite", "broken scene", "missing boxes of a scene"]
    empty = ScanReferDataset(**options(tmp_path, row("nan", 3)))
    with pytest.raises(AnnotationError, match=r"no usable row among 1; .*not finite: 1 of 20 points"):
        empty.check_usable()


def block(tmp_path: Path, **split: Any) -> dict[str, Any]:
    """The published layout: a split's options stand in its own block."""
    write_scene(tmp_path / "scenes", "s", scene(0), BOXES)
    ann = write_json(tmp_path / "rows.json", [row("s", 3, "The LEFT chair!")])
    folders = {"scene_root_dir": str(tmp_path / "scenes"), "scanner_file": str(ann), "scannet_v2_tsv": "/not/read.tsv"}
    return {"annotations": {"train": {**folders, "num_points": 8, "random_cuboid_min_points": 30000, **split}}}


def test_builder_reads_the_published_layout(tmp_path: Path) -> None:
    builder = registry.get_builder_class("scannet_refer")
    train = builder(block(tmp_path)).build_datasets()["train"]
    assert (len(train), train.modality) == (2, "pointcloud_region"), "published: a training split goes twice through"
    assert train[0]["text_input"] == "The LEFT chair!", "published: read as it is"
    assert len(builder(block(tmp_path, dataset_repeat_num=3)).build_datasets()["train"]) == 3
    coloured = builder(block(tmp_path, use_color=True)).build_datasets(splits=["train"])["train"]
    assert coloured[0]["pointcloud"].shape == (8, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_random_cuboid": True}, r"annotations\.train\.use_random_cuboid is true; accepted: false"),
        ({"scene_root_dir": "/gone"}, r"annotations\.train\.scene_root_dir: no folder at /gone"),
        ({"scene_root_dir": None}, "scene_root_dir is None; accepted: the path of a folder"),
        ({"scanner_file": None}, r"datasets\.scannet_refer\.annotations: no split has a scanner_file"),
        ({"use_colour": True}, "use_colour.*use_color"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    builder = registry.get_builder_class("scannet_refer")
    with pytest.raises(ConfigError, match=message):
        builder(block(tmp_path, **change)).build_datasets()


def test_load_dataset_with_another_folder(tmp_path: Path) -> None:
    cfg = block(tmp_path, scene_root_dir=None)
    OmegaConf.save(OmegaConf.create({"datasets": {"scannet_refer": cfg}}), tmp_path / "my.yaml")
    datasets = load_dataset("scannet_refer", cfg_path=tmp_path / "my.yaml", vis_path=tmp_path / "scenes")
    assert datasets["train"][0]["image_id"] == "s_3"
