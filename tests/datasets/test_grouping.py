"""Rows of one picture next to each other: orders, what a batch shares, which rows are no negatives of each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis.common.errors import ConfigError
from lavis.datasets.datasets.captions import CaptionDataset
from lavis.datasets.datasets.regions import RegionDataset
from lavis.datasets.datasets.scanrefer import ScanReferDataset
from lavis.datasets.loaders import TaskLoader
from lavis.datasets.orders import group_numbers, grouped_permutation
from lavis.datasets.wrappers.joined import join
from lavis.processors import load_processor
from tests.datasets.files import cloud_options, options, write_images, write_json, write_scene

BOXES = ([1, 2, 10, 9], [5, 4, 20, 12], [0, 0, 30, 20])


def regions(folder: Path, *, images: int = 6, expressions: int = 4, name: str = "train.json", **kwargs: Any) -> RegionDataset:
    """`expressions` rows of each picture, of three boxes in turn."""
    write_images(folder, [f"{i}.png" for i in range(images)])
    rows = [
        {"image": f"{i}.png", "image_id": str(i), "bbox": BOXES[e % 3], "caption": f"thing {e} of {i}"}
        for e in range(expressions)
        for i in range(images)
    ]
    return RegionDataset(**options(folder, write_json(folder / name, rows), **{"modality": "image_region", **kwargs}))


def runs(values: list[Any]) -> int:
    """Stretches of equal neighbours."""
    return 1 + sum(a != b for a, b in zip(values, values[1:], strict=False))


@pytest.mark.parametrize("repeat", [1, 2])
def test_groups_are_neighbours_and_every_sample_comes_once(repeat: int) -> None:
    names = list("abacabadb")
    groups = group_numbers(names, repeat=repeat)
    orders = [grouped_permutation(groups, seed=seed, epoch=epoch).tolist() for seed, epoch in ((1, 0), (1, 1), (2, 0), (1, 0))]
    for order in orders:
        assert sorted(order) == list(range(9 * repeat))
        assert runs([groups[i] for i in order]) == 4 * repeat
    assert orders[0] == orders[3] and orders[0] != orders[1] != orders[2]
    within = {tuple(i for i in grouped_permutation(groups, seed=1, epoch=e).tolist() if groups[i] == 0) for e in range(8)}
    assert len(within) > 1, "the samples of a group change places too"
    assert grouped_permutation(np.array([0, 1, 0, 1]), seed=5, epoch=0).tolist() == [0, 2, 3, 1], "saved positions rely on it"


def test_a_batch_holds_few_pictures_and_says_what_is_one_thing(tmp_path: Path) -> None:
    plain = regions(tmp_path)
    grouped = join([regions(tmp_path)], grouped=True)
    assert "positive_key" not in plain[0] and plain.draws_of(5) == 5 and plain.epoch_order(seed=0, epoch=0) is None
    batches = list(TaskLoader(grouped, batch_size=8, seed=0).epoch(0))
    assert [len(batch["text_input"]) for batch in batches] == [8] * 3
    assert [len(batch["image"]) for batch in batches] == [2] * 3
    for batch in batches:
        rows = list(zip(batch["image_id"], map(tuple, batch["box"].tolist()), batch["positive_key"], strict=True))
        for image, box, key in rows:
            assert [other[2] == key for other in rows] == [other[:2] == (image, box) for other in rows]
        assert len(set(batch["positive_key"])) == 6, "four expressions for three boxes of two pictures"
    seen = [text for batch in batches for text in batch["text_input"]]
    assert sorted(seen) == sorted(f"thing {e} of {i}" for e in range(4) for i in range(6))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_mid_epoch_with_other_workers_and_processes(tmp_path: Path, workers: int, world_size: int) -> None:
    def texts(batches: Any) -> list[str]:
        return [text for batch in batches for text in batch["text_input"]]

    dataset = join([regions(tmp_path)], grouped=True)
    whole = texts(TaskLoader(dataset, batch_size=8, seed=3).epoch(1))
    first = TaskLoader(dataset, batch_size=8, seed=3)
    batches = first.epoch(1)
    start = [next(batches)]
    state = first.state_dict()
    ranks = []
    for rank in range(world_size):
        sizes = {"batch_size": 8 // world_size, "num_workers": workers, "rank": rank, "world_size": world_size}
        loader = TaskLoader(dataset, seed=3, **sizes)
        loader.load_state_dict(state)
        ranks.append([batch["text_input"] for batch in loader.epoch(1)])
        for part in ranks[-1]:
            assert runs([text.split()[-1] for text in part]) == len({text.split()[-1] for text in part}) <= 2
    rest = [text for parts in zip(*ranks, strict=True) for part in parts for text in part]
    assert texts(start) + rest == whole
    ungrouped = TaskLoader(regions(tmp_path), batch_size=8, seed=3)
    with pytest.raises(ValueError, match="grouped True, this run False"):
        ungrouped.load_state_dict(state)
    del state["grouped"]  # as saved before there was such a thing
    ungrouped.load_state_dict(state)


def test_joined_datasets_keep_their_pictures_apart(tmp_path: Path) -> None:
    parts = [regions(tmp_path / name, images=2) for name in ("a", "b")]
    write_images(tmp_path / "b", ["0.png", "1.png"], size=(20, 50))  # the same names, other pictures
    plain, grouped = join(parts), join([regions(tmp_path / name, images=2) for name in ("a", "b")], grouped=True)
    for dataset in (plain, grouped):
        batch = dataset.collater([dataset[0, index] for index in range(16)])
        assert batch["image"].shape[0] == 4 and runs(batch["image_index"].tolist()) >= 4
    assert len(set(batch["positive_key"])) == 12
    order = grouped.epoch_order(seed=0, epoch=0).tolist()
    assert sorted(order) == list(range(16)) and runs([(index // 8, index % 2) for index in order]) == 4


def test_rows_of_a_scene_share_points_and_augmentation(tmp_path: Path) -> None:
    generator = np.random.RandomState(0)
    boxes = np.array([[0, 0, 1, 1, 1, 2, 0, 3], [1, 1, 1, 1, 2, 2, 0, 7]], dtype=np.float64)
    for name in "st":
        write_scene(tmp_path, name, generator.rand(30, 9).astype(np.float32), boxes)
    rows = [{"scene_id": s, "object_id": o, "description": f"{s} {o} {i}"} for i in range(2) for o in (3, 7, 99) for s in "st"]
    given = cloud_options(tmp_path, write_json(tmp_path / "rows.json", rows), augment=True, dataset_repeat_num=2)
    given["text_processor"] = load_processor("identity")
    dataset = join([ScanReferDataset(**given)], grouped=True)
    usable = [index for index in range(24) if "99" not in dataset.label_of(index)]
    samples = [dataset[0, index] for index in range(24)]
    good = [sample for sample in samples if not sample["skipped"]]
    assert len(good) == 16 < len(usable)
    batch = dataset.collater(samples)
    assert len(batch["pointcloud"]) == 4 + 8, "two scenes, twice each; a row that stands in for another has draws of its own"
    for sample, place in zip(samples, batch["pointcloud_index"].tolist(), strict=True):
        assert torch.equal(batch["pointcloud"][place], sample["pointcloud"])
    for first in good:
        same = [s for s in good if s["cloud_key"] == first["cloud_key"] and s["image_id"] == first["image_id"]]
        assert len(same) == 2 and torch.equal(same[0]["box_corners"], same[1]["box_corners"])
        assert same[0]["positive_key"] == same[1]["positive_key"]
    assert not torch.equal(dataset[1, 0]["pointcloud"], samples[0]["pointcloud"]), "another epoch, other draws"
    dataset.group_clouds(num_group=4, group_size=2)
    batch = dataset.collater([dataset[0, index] for index in range(24)])
    assert len(batch["point_groups"]) == len(batch["pointcloud"]) == 12
    assert torch.equal(batch["point_groups_index"], batch["pointcloud_index"])


def test_captions_of_a_picture_share_its_crop(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    rows = [{"image": f"{name}.png", "caption": f"{name} {number}"} for number in range(3) for name in "ab"]
    crop = load_processor("blip2_image_train", {"image_size": 16})
    dataset = join([CaptionDataset(**options(tmp_path, write_json(tmp_path / "c.json", rows), vis_processor=crop))], grouped=True)
    batch = dataset.collater([dataset[0, index] for index in dataset.epoch_order(seed=0, epoch=0).tolist()])
    assert batch["image"].shape[0] == 2 and len(set(batch["positive_key"])) == 2


def test_datasets_that_cannot_are_told(tmp_path: Path) -> None:
    class Rows:
        name = "rows"

    with pytest.raises(ConfigError, match=r"run\.group_by_image: dataset rows cannot tell .* accepted: false"):
        join([Rows()], grouped=True)
