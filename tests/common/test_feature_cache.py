"""Features on disk: whole or not there, the same whoever wrote them, never more than the bound."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common.errors import ConfigError
from lavis.common.feature_cache import LEFT_BEHIND, FeatureCache, FeatureStore, Found

SHAPE = (5, 8)
LARGE = 10**9
fork = multiprocessing.get_context("fork")


def store_at(root: Path, *, limit: int = LARGE, **identity: Any) -> FeatureStore:
    store = FeatureStore(root, {"weights": "w", **identity}, shape=SHAPE, limit=limit)
    store.open()
    return store


def features(number: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(number)).to(dtype)


def name(number: int) -> str:
    return f"{number * 7919 % 65536:04x}".ljust(64, "0")


def entries(store: FeatureStore) -> list[Path]:
    return sorted(store.folder.glob("*/*.safetensors"))


def entry_size(root: Path) -> int:
    store = store_at(root)
    store.write(name(0), features(0), (9, 9))
    return entries(store)[0].stat().st_size


def run(function: Callable[..., None], *args: Any) -> Any:
    process = fork.Process(target=function, args=args)
    process.start()
    return process


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_read_is_what_was_written(tmp_path: Path, dtype: torch.dtype) -> None:
    store = store_at(tmp_path)
    assert store.read(name(1)) == Found()
    assert store.write(name(1), features(1, dtype), (640, 427)) is True
    assert store.write(name(1), features(1, dtype), (640, 427)) is False, "it is there"
    found = store_at(tmp_path).read(name(1))
    assert found.features is not None and found.features.dtype == dtype and torch.equal(found.features, features(1, dtype))
    assert found.size == (640, 427) and not found.damaged
    assert store_at(tmp_path, weights="others").read(name(1)).features is None


def test_names_follow_from_content_and_preparation(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    names = {store.name_of(content, how) for content in (b"a", b"b") for how in ("square 224", "square 364")}
    assert len(names) == 4 and store.name_of(b"a", "square 224") in names


def spoil_tail(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def spoil_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_shape(path: Path) -> None:
    other = FeatureStore(path.parents[2], {"weights": "w"}, shape=(2, 3), limit=LARGE)
    path.unlink()
    other.write(path.stem, torch.ones(2, 3), (1, 1))


@pytest.mark.parametrize("damage", [spoil_tail, spoil_bit, empty, other_shape])
def test_damage_is_found_and_made_good(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = store_at(tmp_path)
    store.write(name(3), features(3), (4, 5))
    damage(entries(store)[0])
    assert store.read(name(3)) == Found(damaged=True)
    assert store.read(name(3)) == Found(), "it was removed"
    assert store.write(name(3), features(3), (4, 5)) and store.read(name(3)).size == (4, 5)


def fill(root: Path, limit: int, numbers: range) -> None:
    store = store_at(root, limit=limit)
    for number in numbers:
        store.write(name(number), features(number), (number, 1))
        store.read(name(number))


def test_two_jobs_fill_one_folder_and_keep_the_bound(tmp_path: Path) -> None:
    size = entry_size(tmp_path / "measured")
    limit = 40 * size
    jobs = [run(fill, tmp_path / "shared", limit, range(low, low + 60)) for low in (0, 30)]
    for job in jobs:
        job.join(120)
        assert job.exitcode == 0
    store = store_at(tmp_path / "shared", limit=limit)
    assert store.measure() <= limit and len(entries(store)) >= 35, "other files take the place of some"
    assert not list(store.folder.glob("*/.*"))
    for path in entries(store):
        number = next(n for n in range(90) if name(n) == path.stem)
        found = store.read(path.stem)
        assert found.features is not None and torch.equal(found.features, features(number)) and found.size == (number, 1)


def test_a_full_cache_says_so_once_and_goes_on_when_there_is_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    size = entry_size(tmp_path / "measured")
    store = store_at(tmp_path / "full", limit=5 * size)
    with caplog.at_level(logging.WARNING):
        written = [store.write(name(number), features(number), (1, 1)) for number in range(9)]
    assert sum(written) == 4 and written[:4] == [True] * 4 and store.read(name(0)).features is not None
    assert [record.message.count("is full") for record in caplog.records] == [1]
    entries(store)[0].unlink()
    assert store_at(tmp_path / "full", limit=5 * size).write(name(20), features(20), (1, 1))


def write_for_ever(root: Path) -> None:
    store = store_at(root)
    for number in range(10**9):
        store.write(name(number % 60_000), features(number), (1, 1))


def test_a_writer_that_is_killed_leaves_nothing_bad(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    job = run(write_for_ever, tmp_path)
    try:
        while len(entries(store)) < 100:
            assert job.is_alive()
    finally:
        os.kill(job.pid, signal.SIGKILL)
        job.join(60)
    there = entries(store)
    assert all(store.read(path.stem).features is not None for path in there)
    assert store.write("f" * 64, features(0), (1, 1)), "the lock went with the process"
    assert int((tmp_path / "bytes").read_text()) >= sum(path.stat().st_size for path in entries(store))


def die_before_the_name(root: Path) -> None:
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    store_at(root).write(name(1), features(1), (1, 1))


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    job = run(die_before_the_name, tmp_path)
    job.join(60)
    assert job.exitcode == -signal.SIGKILL and not entries(store)
    left = list(store.folder.glob("*/.*"))
    assert len(left) == 1
    store.open()
    assert left[0].exists(), "its writer may be at work"
    long_ago = left[0].stat().st_mtime - LEFT_BEHIND - 60
    os.utime(left[0], (long_ago, long_ago))
    store.open()
    assert not left[0].exists()
    assert store.write(name(1), features(1), (1, 1))


def test_a_disk_that_is_full_costs_no_more_than_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_at(tmp_path)

    def no_space(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with caplog.at_level(logging.WARNING):
        assert not any(store.write(name(number), features(number), (1, 1)) for number in range(3))
    assert [record.message for record in caplog.records] == [
        f"feature cache {tmp_path}: no more is written: [Errno 28] No space left on device"
    ]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.feature_cache: .*file cannot be written to or locked"):
        store_at(tmp_path / "file")


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    size = entry_size(tmp_path / "measured")
    store = store_at(tmp_path / "threads", limit=20 * size)
    threads = [threading.Thread(target=fill, args=(store.root, store.limit, range(low, low + 30))) for low in (0, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.measure() <= store.limit and len(entries(store)) >= 15


def test_a_process_writes_when_its_step_is_done_and_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = FeatureCache(store_at(tmp_path))
    about = {"hits": 2, "names": [name(1), "", name(3)], "sizes": [(1, 2), (0, 0), (3, 4)], "damaged": [name(3)]}
    batch = {"image_cache": about}
    cache.add(batch["image_cache"], torch.stack([features(number) for number in (1, 2, 3)]))
    cache.add(None, features(7)[None])  # a batch that nothing is known of
    assert not entries(cache.store)
    with caplog.at_level(logging.WARNING):
        cache.finish_batch(batch)
    assert f"{name(3)} was damaged" in caplog.text
    assert [path.stem for path in entries(cache.store)] == sorted([name(1), name(3)]), "a stand-in has no name"
    assert cache.take_counts() == {"hits": 2, "misses": 3, "damaged": 1, "written": 2}
    cache.finish_batch(batch)
    assert cache.take_counts()["written"] == 0 and cache.take_counts() == dict.fromkeys(
        ("hits", "misses", "damaged", "written"), 0
    )
