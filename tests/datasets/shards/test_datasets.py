"""Data in shards: every sample once, its bytes read once, and the same batches whoever reads them."""

from __future__ import annotations

import io
import itertools
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lavis.common.errors import ConfigError
from lavis.datasets.builders.base_dataset_builder import load_dataset
from lavis.datasets.checking import Depth, check_split
from lavis.datasets.datasets.base_dataset import AnnotationError, Batch
from lavis.datasets.datasets.captions import CaptionDataset
from lavis.datasets.findings import SplitCheck
from lavis.datasets.loaders import TaskLoader
from lavis.datasets.shards.datasets import (
    CaptionShardsBuilder,
    LaionBuilder,
    OpenFiles,
    RegionShardDataset,
    RegionShardsBuilder,
    ShardBuilder,
    ShardDataset,
)
from lavis.datasets.wrappers.joined import JoinedDataset, join
from tests.datasets.files import options, write_images, write_json
from tests.datasets.tars import captions, picture, regions, write_tar
from tests.datasets.test_loaders import same

COUNTS = [1, 3, 12, 2, 1, 5]  # regions of the pictures of each shard
SHARDS = 6


def config(storage: Any, **given: Any) -> dict[str, Any]:
    return {
        "vis_processor": {"train": {"name": "general_box_caption_img_trainval", "image_size": 16}},
        "text_processor": {"train": {"name": "blip_caption"}},
        "build_info": {"storage": storage},
        "shards_at_once": 2,
        "shuffle": 16,
        "index_workers": 1,
        **given,
    }


def build(storage: Any, *, builder: type[ShardBuilder] = RegionShardsBuilder, **given: Any) -> ShardDataset:
    dataset = builder(config(str(storage), **given)).build_datasets()["train"]
    assert isinstance(dataset, ShardDataset)
    return dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of regions, one picture of which is broken."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(SHARDS):
        members = regions(number * 10, COUNTS)
        if number == 2:
            members["000023.jpg"] = b"no picture"
        write_tar(folder / f"{number:03d}.tar", members)
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int, int]]]:
    """(shard, first byte, how many) of every read of a shard by this process."""
    log: list[tuple[str, int, int]] = []
    original = OpenFiles.read_bytes

    def read_bytes(self: OpenFiles, tar: Any, size: int) -> bytes:
        log.append((tar.name, tar.tell(), size))
        return original(self, tar, size)

    monkeypatch.setattr(OpenFiles, "read_bytes", read_bytes)
    yield log


def seen(batches: list[Batch]) -> list[str]:
    """The names of what was read, broken samples beside their replacements."""
    texts = []
    for batch in batches:
        texts += batch["instance_id"] + sorted({label for label, _ in batch["skipped"]})
    return texts


def test_samples(folder: Path) -> None:
    dataset = build(folder)
    assert len(dataset) == SHARDS * sum(COUNTS) and not dataset.dropped and dataset.rows_read == len(dataset)
    sample = dataset[2]
    assert sample["text_input"] == "region 1 of 1" and sample["image_id"] == "i1"
    assert sample["instance_id"] == "000.tar:000001[1]" and sample["modality"] == "image_region"
    assert sample["box"].tolist() == pytest.approx([1 / 40, 2 / 30, 11 / 40, 14 / 30])
    plain = dataset.vis_processor(Image.open(io.BytesIO(picture(1))).convert("RGB"))
    assert torch.equal(sample["image"], plain)
    broken = dataset[2 * sum(COUNTS) + 16]
    assert broken["skipped"][0][0] == "002.tar:000023[0]" and "broken image: picture 3 of " in broken["skipped"][0][1]
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[2]["image"], plain) and again.rows[-1] == dataset.rows[-1]
    with pytest.raises(IndexError):
        dataset.rows[len(dataset)]
    assert len(build(folder, build_info={"storage": str(folder), "annotations": {"train": {"dataset_repeat_num": 2}}})) == 288


@pytest.mark.parametrize("world_size, num_workers", [(1, 0), (3, 0), (2, 2)])
def test_every_sample_once_over_processes_and_workers(folder: Path, world_size: int, num_workers: int) -> None:
    dataset = build(folder)
    names = [dataset.label_of(index) for index in range(len(dataset))]
    parts = [
        list(
            TaskLoader(
                dataset, batch_size=5, seed=1, num_workers=num_workers, rank=rank, world_size=world_size, drop_last=False
            ).epoch(0)
        )
        for rank in range(world_size)
    ]
    counts = Counter(name for part in parts for batch in part for name in batch["instance_id"])
    replaced = {label for part in parts for batch in part for label, _ in batch["skipped"]}
    assert replaced == {"002.tar:000023[0]", "002.tar:000023[1]"}
    assert {name for name in names if name not in counts} <= replaced
    assert sum(counts.values()) == len(names) and sum(count - 1 for count in counts.values()) <= 2, "replacements only"


@pytest.mark.parametrize("together, batch_size", [(None, 24), (None, 5), (8, 5)])
def test_bytes_are_read_once(tmp_path: Path, reads: list[tuple[str, int, int]], together: int | None, batch_size: int) -> None:
    for number in range(SHARDS):
        write_tar(tmp_path / f"{number}.tar", regions(number * 10, COUNTS))
    builder = RegionShardsBuilder(config(str(tmp_path), together=together))
    dataset = builder.open_dataset("train", builder.annotation_files("train"))  # of which no picture was looked at
    loaders = [TaskLoader(dataset, batch_size=batch_size, seed=1, rank=rank, world_size=2, drop_last=False) for rank in (0, 1)]
    parts = [list(loader.epoch(0)) for loader in loaders]
    counts = Counter(reads)
    assert len(counts) == SHARDS * len(COUNTS), "every picture"
    batches = sum(map(len, parts))
    splits = SHARDS if together else 0  # a picture of 12 regions is two of up to 8
    assert sum(counts.values()) - len(counts) <= batches + splits, "again only where a batch ends within a picture"
    windows = [tar for tar, _, _ in reads[: len(reads) // 2]]
    last = {tar: len(windows) - windows[::-1].index(tar) for tar in windows}
    first = {tar: windows.index(tar) for tar in windows}
    assert all(sum(first[tar] < place < last[tar] for tar in first) <= 2 for place in range(len(windows))), "two shards at a time"


def test_single_captions_are_read_exactly_once(tmp_path: Path, reads: list[tuple[str, int, int]]) -> None:
    for number in range(4):
        write_tar(tmp_path / f"{number}.tar", captions(number * 10, 9))
    dataset = build(tmp_path, builder=CaptionShardsBuilder)
    reads.clear()
    for rank in range(3):
        list(TaskLoader(dataset, batch_size=4, seed=1, rank=rank, world_size=3, drop_last=False).epoch(0))
    assert len(reads) == len(set(reads)) == len(dataset) == 36
    by_shard = Counter[str]()
    for tar, _, size in reads:
        by_shard[tar] += size
    assert len(by_shard) == 4 and all(size < Path(tar).stat().st_size for tar, size in by_shard.items())


def test_workers_give_bitwise_the_same_batches(folder: Path) -> None:
    dataset = build(folder)
    straight = list(TaskLoader(dataset, batch_size=7, seed=2, drop_last=False).epoch(1))
    assert any(batch["skipped"] for batch in straight)
    assert max(len(batch["image_index"]) - len(batch["image"]) for batch in straight) > 2, "pictures are shared"
    for num_workers in (2, 3):
        assert same(
            list(TaskLoader(build(folder), batch_size=7, seed=2, num_workers=num_workers, drop_last=False).epoch(1)), straight
        )


def test_resume_in_mid_epoch_with_other_workers(folder: Path) -> None:
    expected = [list(TaskLoader(build(folder), batch_size=7, seed=3).epoch(epoch)) for epoch in range(2)]
    for first_workers, second_workers, done in ((2, 0, 5), (0, 3, 11), (3, 2, 1)):
        first = TaskLoader(build(folder), batch_size=7, seed=3, num_workers=first_workers)
        iterator = first.epoch(0)
        begun = [next(iterator) for _ in range(done)]
        second = TaskLoader(build(folder), batch_size=7, seed=3, num_workers=second_workers)
        second.load_state_dict(first.state_dict())
        assert same(begun + list(second.epoch(0)), expected[0])
        assert same(list(second.epoch(1)), expected[1])


@pytest.mark.parametrize("new_world", [1, 3])
def test_resume_with_another_number_of_processes(folder: Path, new_world: int) -> None:
    dataset = build(folder)

    def loaders(world_size: int) -> list[TaskLoader]:
        return [
            TaskLoader(dataset, batch_size=4, seed=3, rank=rank, world_size=world_size, drop_last=False)
            for rank in range(world_size)
        ]

    names: list[str] = []
    state: dict[str, int] = {}
    for loader in loaders(2):
        iterator = loader.epoch(0)
        names += seen([next(iterator) for _ in range(6)])
        state = loader.state_dict()
    for loader in loaders(new_world):
        loader.load_state_dict(state)
        names += seen(list(loader.epoch(0)))
    everything = Counter(dataset.label_of(index) for index in range(len(dataset)))
    counts = Counter(names)
    assert counts.keys() == everything.keys()
    assert sum(counts.values()) == len(dataset) + 2, "the two broken samples are named, and have replacements"


def test_joined_with_plain_files(folder: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", [f"{n}.jpg" for n in range(30)])
    rows = [{"image": f"{n}.jpg", "caption": f"plain {n}"} for n in range(30)]
    plain = CaptionDataset(**options(tmp_path / "images", write_json(tmp_path / "rows.json", rows)))
    for number in range(4):
        write_tar(tmp_path / f"{number}.tar", captions(number * 10, 10))
    joined = JoinedDataset([plain, build(tmp_path, builder=LaionBuilder)])
    straight = list(TaskLoader(joined, batch_size=7, seed=2).epoch(0))
    assert len({text for batch in straight for text in batch["text_input"]}) == 70
    plains = [sum(text.startswith("plain") for text in batch["text_input"]) for batch in straight]
    assert sum(plains) == 30 and 8 < sum(plains[:5]) < 22, "mixed throughout"
    assert same(list(TaskLoader(joined, batch_size=7, seed=2, num_workers=2).epoch(0)), straight)
    assert JoinedDataset([plain, plain]).epoch_order(seed=0, epoch=0) is None


def test_grouped_shards_keep_pictures_whole(folder: Path, tmp_path: Path) -> None:
    cut, grouped = build(folder, together=4), join([build(folder, together=4)], grouped=True)

    def pictures(dataset: ShardDataset) -> list[str]:
        order = dataset.epoch_order(seed=0, epoch=0)[0 : len(dataset)].tolist()
        return [name for name, _ in itertools.groupby(dataset.rows[index]["image"] for index in order)]

    assert len(pictures(cut)) > len(pictures(grouped)) == SHARDS * len(COUNTS)
    sample = grouped[0, 0]
    assert sample["positive_key"].startswith("0 0 [") and sample["image_key"] != build(folder)[0, 0]["image_key"]
    with pytest.raises(ConfigError, match=r"run\.group_by_image: dataset region_shards is read in the order of its shards"):
        join([build(folder), build(folder)], grouped=True)


def test_damage_is_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        write_tar(tmp_path / f"{number}.tar", captions(number * 10, 10))
    (tmp_path / "3.tar").write_bytes((tmp_path / "3.tar").read_bytes()[:20_000])
    (tmp_path / "4.tar").write_bytes((tmp_path / "0.tar").read_bytes())
    write_json(tmp_path / "manifest.json", {"shards": {f"{number}.tar": {"samples": 10} for number in range(6)}})
    dataset = build(tmp_path / "{0..5}.tar", builder=CaptionShardsBuilder)
    kept = len(dataset) - 30
    assert 0 < kept < 10 and dataset.rows_read == 60
    reasons = Counter(reason.partition(":")[0] for _, reason in dataset.dropped)
    assert reasons == {"cut short": 10 - kept, "duplicate shard": 10, "missing shard": 10}
    assert len(dataset.dropped) == 30 - kept and dataset.dropped[-1][0].startswith("3.tar")
    text = caplog.text
    assert f"10 rows of {tmp_path / '4.tar'} left out: duplicate shard: it holds what {tmp_path / '0.tar'} holds" in text
    assert f"10 rows of {tmp_path / '5.tar'} left out: missing shard" in text and "3.tar: cut short: " in text

    builder = CaptionShardsBuilder(config(str(tmp_path / "{0..5}.tar")))
    check = checked(builder)
    counts = {kind: finding.count for kind, finding in check.problems.kinds.items()}
    assert counts == reasons and (check.rows, check.samples, check.dropped) == (60, 30 + kept, 30 - kept)
    assert "cut short" in check.notes.kinds

    dataset[3]
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:100])  # while it is read
    assert "broken shard: picture 5 of " in dataset[5]["skipped"][0][1]
    with pytest.raises(AnnotationError, match="1.tar: no usable sample: 1.tar: not a tar"):
        (tmp_path / "1.tar").write_bytes(b"")
        (tmp_path / "manifest.json").unlink()
        build(tmp_path / "1.tar", builder=CaptionShardsBuilder)


def checked(builder: ShardBuilder) -> SplitCheck:
    return check_split(builder, "train", depth=Depth(), progress=lambda items, *_: items, also=lambda _: [])


def test_the_same_sample_in_two_shards_is_noted(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", captions(0, 5))
    write_tar(tmp_path / "1.tar", captions(4, 5))
    renumbered = {name: content for name, content in captions(0, 2).items() if name.endswith("jpg")}
    write_tar(tmp_path / "2.tar", {**renumbered, "000000.txt": "another", "000001.txt": "key of the same number"})
    check = checked(CaptionShardsBuilder(config(str(tmp_path))))
    assert {kind: finding.count for kind, finding in check.notes.kinds.items()} == {"the same row again": 1}
    assert check.notes.kinds["the same row again"].first == ["1.tar:000004, as 0.tar:000004"] and check.is_fine(0)


def test_a_shard_of_which_nothing_loads_is_told_before_a_run(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", captions(0, 2))
    write_tar(tmp_path / "1.tar", {"1.jpg": b"x", "1.txt": "a", "2.jpg": b"x", "2.txt": "b"})
    with pytest.raises(AnnotationError, match=r"1.tar: no usable row among 2; 1.tar:1: broken image: picture 0 of "):
        build(tmp_path, builder=CaptionShardsBuilder)


@pytest.mark.parametrize("storage, message", [
    ("s3://bucket/{0..3}.tar", "storage is 's3://bucket/{0..3}.tar'; accepted: paths of this machine"),
    ("pipe:curl http://x", "accepted: paths of this machine"),
    ("no/{0..3}.tar", "no shard at "),
    (None, "no split has a storage"),
])  # fmt: skip
def test_storages_that_cannot_be_read(storage: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RegionShardsBuilder(config(storage)).build_datasets()
    assert message in str(caught.value)


def test_patterns_and_options(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for storage in ("{000..001}.tar", "00[01].tar", ["000.tar", "001.tar", "000.tar"]):
        dataset = RegionShardsBuilder(config(storage)).build_datasets()["train"]
        assert [path.name for path in dataset.files] == ["000.tar", "001.tar"], storage
    monkeypatch.chdir(tmp_path)
    builder = RegionShardsBuilder(config("00*.tar"), cache_root=folder)
    assert len(builder.build_datasets()["train"].files) == SHARDS
    for key, value in (("shards_at_once", 0), ("shuffle", None), ("together", 0), ("index_workers", -1)):
        with pytest.raises(ConfigError, match=rf"datasets.region_shards.{key} is .*; accepted: an integer of 1 or more"):
            build(folder, **{key: value})
    with pytest.raises(ConfigError, match="annotations.val.*Accepted keys here: train"):
        info = {"annotations": {"val": {"storage": str(folder)}}}
        RegionShardsBuilder(config(None, build_info=info)).build_datasets()
    cropping = {"train": {"name": "blip2_image_train", "image_size": 16}}
    with pytest.raises(ConfigError, match="boxes would point"):
        build(folder, vis_processor=cropping)
    for name in ("regioncap_10m", "region_shards"):
        assert isinstance(load_dataset(name, vis_path=folder)["train"], RegionShardDataset)
