from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.datasets.datasets.base_dataset import Batch
from lavis.datasets.datasets.captions import CaptionDataset
from lavis.datasets.loaders import MixedLoader, TaskLoader, batch_bounds, eval_bounds, eval_loader, share
from lavis.datasets.orders import permutation
from lavis.processors import load_processor
from tests.datasets.files import options, write_images, write_json


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Rows(torch.utils.data.Dataset[Any]):
    """N samples that say which they are."""

    def __init__(self, size: int) -> None:
        self.size, self.name = size, "rows"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key

    def collater(self, samples: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return samples


@pytest.fixture
def dataset(tmp_path: Path) -> CaptionDataset:
    """11 rows of augmented pictures, one of which is missing."""
    write_images(tmp_path, [f"x_{i}.png" for i in range(10)])
    rows = [{"image": f"x_{i}.png", "caption": f"picture {i}"} for i in range(11)]
    processor = load_processor("blip_image_train", {"image_size": 16})
    return CaptionDataset(**options(tmp_path, write_json(tmp_path / "t.json", rows), vis_processor=processor))


def indices(batches: Any) -> list[list[int]]:
    return [[index for _, index in batch] for batch in batches]


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a["image"], b["image"])
        and all(a[key] == b[key] for key in ("text_input", "image_id", "instance_id", "skipped"))
        for a, b in zip(left, right, strict=True)
    )


def test_order_is_a_permutation_per_epoch() -> None:
    orders = [tuple(permutation(50, seed=s, epoch=e)) for s, e in ((1, 0), (1, 1), (2, 0), (2**40, 0))]
    assert len(set(orders)) == 4 and all(sorted(order) == list(range(50)) for order in orders)
    assert tuple(permutation(50, seed=1, epoch=1)) == orders[1]
    assert permutation(6, seed=42, epoch=0).tolist() == [4, 0, 2, 3, 5, 1], "saved positions rely on it"


@pytest.mark.parametrize(
    ("samples", "batch_size", "world_size", "sizes"),
    [
        (12, 2, 2, [4, 4, 4]),
        (14, 2, 2, [4, 4, 4, 2]),
        (13, 2, 2, [4, 4, 5]),
        (3, 2, 2, [3]),
        (1, 2, 2, []),
        (5, 3, 1, [3, 2]),
        (0, 3, 1, []),
    ],
)
def test_bounds(samples: int, batch_size: int, world_size: int, sizes: list[int]) -> None:
    bounds = list(batch_bounds(7, 7 + samples, batch_size=batch_size, world_size=world_size))
    assert [high - low for low, high in bounds] == sizes
    for bound in bounds:
        shares = [share(bound, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert shares[0][0] == bound[0] and shares[-1][1] == bound[1]
        assert all(high > low for low, high in shares)
        assert all(a[1] == b[0] for a, b in zip(shares, shares[1:], strict=False))


@pytest.mark.parametrize("drop_last", [True, False])
def test_epochs_cover_the_data_and_differ(drop_last: bool) -> None:
    loader = TaskLoader(Rows(11), batch_size=4, seed=0, drop_last=drop_last)
    epochs = [indices(loader.epoch(epoch)) for epoch in range(3)]
    for batches in epochs:
        flat = sum(batches, [])
        assert len(set(flat)) == len(flat) == (8 if drop_last else 11)
        assert len(batches) == len(loader) == (2 if drop_last else 3)
    assert epochs[0] != epochs[1] != epochs[2]
    assert indices(loader.epoch(1)) == epochs[1], "an epoch can be read again"


def test_small_sets() -> None:
    assert len(sum(indices(TaskLoader(Rows(3), batch_size=4, seed=0).epoch(0)), [])) == 3
    assert indices(TaskLoader(Rows(1), batch_size=4, seed=0).epoch(0)) == [[0]]
    assert [len(b) for b in indices(TaskLoader(Rows(5), batch_size=1, seed=0).epoch(0))] == [1] * 5
    with pytest.raises(ValueError, match="dataset rows has 1 samples, fewer than the 2 processes"):
        TaskLoader(Rows(1), batch_size=4, seed=0, world_size=2)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        TaskLoader(Rows(9), batch_size=4, seed=0, rank=2, world_size=2)


@pytest.mark.parametrize("world_size", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_processes(world_size: int) -> None:
    whole = indices(TaskLoader(Rows(37), batch_size=8, seed=0, drop_last=False).epoch(2))
    ranks = [
        indices(
            TaskLoader(
                Rows(37),
                batch_size=8 // world_size,
                seed=0,
                drop_last=False,
                rank=rank,
                world_size=world_size,
            ).epoch(2)
        )
        for rank in range(world_size)
    ]
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == whole


def test_workers_give_bitwise_the_same_batches(dataset: CaptionDataset) -> None:
    def batches(num_workers: int, epoch: int) -> list[Batch]:
        torch.manual_seed(num_workers)
        return list(TaskLoader(dataset, batch_size=3, seed=7, num_workers=num_workers).epoch(epoch))

    straight = batches(0, 1)
    assert any(batch["skipped"] for epoch in range(3) for batch in batches(0, epoch))
    assert same(batches(1, 1), straight) and same(batches(2, 1), straight)
    assert not same(batches(0, 2), straight)


def test_nothing_is_drawn_from_the_global_generators(dataset: CaptionDataset) -> None:
    for num_workers in (0, 1):
        state = torch.get_rng_state()
        loader = TaskLoader(dataset, batch_size=3, seed=7, num_workers=num_workers)
        list(loader.epoch(0))
        list(loader.epoch(1))
        assert torch.equal(torch.get_rng_state(), state)


def test_resume_in_mid_epoch_with_other_workers(dataset: CaptionDataset) -> None:
    straight = TaskLoader(dataset, batch_size=2, seed=3)
    expected = [list(straight.epoch(epoch)) for epoch in range(3)]
    first = TaskLoader(dataset, batch_size=2, seed=3, num_workers=2)
    list(first.epoch(0))
    iterator = first.epoch(1)
    seen = [next(iterator), next(iterator)]
    state = first.state_dict()
    assert state["epoch"] == 1 and state["samples_done"] == 4, "read-ahead of the workers does not count"
    second = TaskLoader(dataset, batch_size=2, seed=3, num_workers=1)
    second.load_state_dict(state)
    assert second.state_dict() == state and second.remaining == 3
    assert same(seen + list(second.epoch(1)), expected[1])
    assert same(list(second.epoch(2)), expected[2])
    assert same(list(first.epoch(2)), expected[2]), "workers kept from an unfinished epoch start clean"


@pytest.mark.parametrize("new_world", [1, 3, 4])
@pytest.mark.parametrize("drop_last", [True, False])
def test_resume_with_another_number_of_processes(new_world: int, drop_last: bool) -> None:
    def loaders(world_size: int) -> list[TaskLoader]:
        return [
            TaskLoader(Rows(53), batch_size=3, seed=3, rank=rank, world_size=world_size, drop_last=drop_last)
            for rank in range(world_size)
        ]

    whole = [sum(indices(loader.epoch(1)), []) for loader in loaders(2)]
    begun, states = [], []
    for loader in loaders(2):
        iterator = loader.epoch(1)
        begun += sum(indices([next(iterator), next(iterator), next(iterator)]), [])
        states.append(loader.state_dict())
    assert states[0] == states[1]
    rest, counts = [], set()
    for loader in loaders(new_world):
        loader.load_state_dict(states[0])
        batches = indices(loader.epoch(1))
        rest += sum(batches, [])
        counts.add(len(batches))
    assert sorted(begun + rest) == sorted(whole[0] + whole[1]), "every sample of the epoch once"
    assert len(counts) == 1, "every process has the same number of steps"


def test_state_at_the_end_of_an_epoch_and_of_another_run() -> None:
    loader = TaskLoader(Rows(8), batch_size=2, seed=0)
    fresh = loader.state_dict()
    list(loader.epoch(4))
    other = TaskLoader(Rows(8), batch_size=2, seed=0)
    other.load_state_dict(loader.state_dict())
    assert list(other.epoch(4)) == []
    assert len(list(other.epoch(5))) == 4
    other.load_state_dict(fresh)
    assert len(list(other.epoch(0))) == 4
    with pytest.raises(ValueError, match="dataset_size 8, this run 9"):
        TaskLoader(Rows(9), batch_size=2, seed=0).load_state_dict(fresh)
    with pytest.raises(ValueError, match="seed 0, this run 1"):
        TaskLoader(Rows(8), batch_size=2, seed=1).load_state_dict(fresh)


def mixture(order: str, *, rank: int = 0, world_size: int = 1, num_workers: int = 0) -> MixedLoader:
    sizes = {"b_image": 24, "a_region": 40, "c_cloud": 9}
    loaders = {
        key: TaskLoader(Rows(size), batch_size=2, seed=1, rank=rank, world_size=world_size, num_workers=num_workers)
        for key, size in sizes.items()
    }
    return MixedLoader(loaders, order=order, seed=1)


def keys(steps: Any) -> list[str]:
    return [key for key, _ in steps]


@pytest.mark.parametrize("order", ["sequential", "round_robin", "sampled"])
def test_mixtures_cover_everything(order: str) -> None:
    loader = mixture(order)
    steps = list(loader.epoch(0))
    assert len(steps) == len(loader) == 36 and loader.remaining == 0
    for key, size in (("a_region", 40), ("b_image", 24), ("c_cloud", 8)):
        flat = sum(indices(batch for name, batch in steps if name == key), [])
        assert len(set(flat)) == len(flat) == size
    assert keys(mixture(order, rank=1, world_size=2).epoch(0)) == keys(mixture(order, world_size=2).epoch(0)), (
        "every process takes the same loader at each step"
    )
    again = list(loader.epoch(1))
    assert steps != again and again == list(mixture(order).epoch(1))


def test_what_the_orders_are() -> None:
    assert keys(mixture("sequential").epoch(0)) == ["a_region"] * 20 + ["b_image"] * 12 + ["c_cloud"] * 4
    turns = keys(mixture("round_robin").epoch(0))
    assert turns[:12] == ["a_region", "b_image", "c_cloud"] * 4
    assert turns[12:28] == ["a_region", "b_image"] * 8 and turns[28:] == ["a_region"] * 8
    draws = keys(mixture("sampled").epoch(0))
    first_half = draws[:18]
    assert {key: first_half.count(key) > 0 for key in set(draws)} == dict.fromkeys(set(draws), True)
    assert sum(a != b for a, b in zip(draws, draws[1:], strict=False)) > 10, "they interleave"
    assert draws != keys(mixture("sampled").epoch(1))


@pytest.mark.parametrize("order", ["sequential", "round_robin", "sampled"])
@pytest.mark.parametrize("stop", [0, 1, 23, 36])
def test_mixtures_resume(order: str, stop: int) -> None:
    straight = mixture(order)
    expected = list(straight.epoch(3))
    first = mixture(order)
    iterator = first.epoch(3)
    seen = [next(iterator) for _ in range(stop)]
    state = first.state_dict()
    second = mixture(order)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert seen + list(second.epoch(3)) == expected
    assert list(second.epoch(4)) == list(straight.epoch(4))


def test_mixtures_resume_with_workers_and_another_number_of_processes() -> None:
    first = mixture("sampled", num_workers=1)
    iterator = first.epoch(0)
    seen = [next(iterator) for _ in range(7)]
    rest: list[Any] = []
    for rank in range(2):
        loader = mixture("sampled", rank=rank, world_size=2)
        loader.load_state_dict(first.state_dict())
        rest += list(loader.epoch(0))
    for key, size in (("a_region", 40), ("b_image", 24), ("c_cloud", 8)):
        flat = sum(indices(batch for name, batch in seen + rest if name == key), [])
        assert len(set(flat)) == len(flat) == size


def test_mixture_mistakes() -> None:
    loaders = {"a": TaskLoader(Rows(8), batch_size=2, seed=0)}
    with pytest.raises(ValueError, match="accepted: sequential, round_robin, sampled"):
        MixedLoader(loaders, order="random", seed=0)
    with pytest.raises(ValueError, match="at least one"):
        MixedLoader({}, seed=0)
    with pytest.raises(ValueError, match="order sequential, this run sampled"):
        MixedLoader(loaders, order="sampled", seed=0).load_state_dict(MixedLoader(loaders, seed=0).state_dict())


@pytest.mark.parametrize("size", [0, 2, 7, 10])
def test_evaluation_takes_every_sample_once(size: int) -> None:
    bounds = eval_bounds(size, batch_size=2)
    assert [high - low for low, high in bounds] == [2] * (size // 2) + [1] * (size % 2)
    whole = indices(eval_loader(Rows(size), batch_size=2))
    assert sum(whole, []) == list(range(size))
    chosen = list(range(1, len(bounds), 2))
    assert indices(eval_loader(Rows(size), batch_size=2, batches=chosen)) == [whole[number] for number in chosen]
    loader = eval_loader(Rows(size), batch_size=2, num_workers=1)
    assert indices(loader) == whole and indices(loader) == whole
    with pytest.raises(ValueError, match="batch_size 0; accepted: 1 or more"):
        eval_loader(Rows(size), batch_size=0)
