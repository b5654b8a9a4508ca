"""Whole files or none, and a reason for every file that is refused."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lavis.common import checkpoint
from lavis.common.checkpoint import (
    CheckpointError,
    MissingCheckpointError,
    content_hash,
    file_hash,
    find_latest,
    list_checkpoints,
    load_checkpoint_file,
    load_weights,
    save_checkpoint,
    save_weights,
    unwrap,
)


def state() -> dict[str, Any]:
    table = torch.arange(12.0).reshape(3, 4)
    return {
        "model": {
            "a": table,
            "view": table[:, 1],
            "half": table.bfloat16(),
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(3),
        },
        "optimizer": {"state": {0: {"step": 1.5}}, "betas": (0.9, 0.999)},
        "none": None,
        "list": [1, "x", True],
    }


def test_round_trip(tmp_path: Path) -> None:
    path = save_checkpoint(state(), tmp_path / "new" / "checkpoint_0.pth")
    loaded = load_checkpoint_file(path)
    assert loaded.pop("content_hash") == content_hash(state()) == content_hash(loaded)
    assert loaded["optimizer"] == state()["optimizer"] and loaded["none"] is None
    assert loaded["model"]["view"].untyped_storage().nbytes() == 3 * 4  # a view does not drag its table along
    assert [item.name for item in path.parent.iterdir()] == ["checkpoint_0.pth"]


def test_the_hash_sees_every_change() -> None:
    base = content_hash(state())
    assert content_hash(dict(reversed(state().items()))) == base
    for change in (
        lambda s: s["model"]["a"].view(-1)[3].add_(1e-6),
        lambda s: s["model"].update(a=s["model"]["a"].reshape(4, 3)),
        lambda s: s["model"].update(scalar=torch.tensor(3.0)),
        lambda s: s["model"].update(b=s["model"].pop("a")),
        lambda s: s.update(none=0),
        lambda s: s["optimizer"].update(betas=[0.9, 0.999]),
    ):
        changed = state()
        change(changed)
        assert content_hash(changed) != base


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state.config.x\[0\] is a Namespace"):
        save_checkpoint({"config": {"x": [argparse.Namespace()]}}, tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint({"a": 1}, tmp_path / "a.pth")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint({"a": 2}, path)
    monkeypatch.undo()
    assert load_checkpoint_file(path)["a"] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_refusals_say_why(tmp_path: Path) -> None:
    with pytest.raises(MissingCheckpointError, match="does not exist"):
        load_checkpoint_file(tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_checkpoint_file(tmp_path)
    good = save_checkpoint(state(), tmp_path / "good.pth")
    data = good.read_bytes()
    cases = {
        "empty": b"",
        "web page": b"\n<!DOCTYPE html><html>404</html>",
        "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "may be truncated": data[: len(data) // 2],
        "cannot be read": b"some text that is no checkpoint at all",
    }
    for words, content in cases.items():
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint_file(tmp_path / "bad.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"12345678")
    with pytest.raises(CheckpointError, match="bad.safetensors"):
        load_checkpoint_file(tmp_path / "bad.safetensors")
    torch.save({"model": argparse.Namespace()}, tmp_path / "objects.pth")
    with pytest.raises(CheckpointError, match="holds Python objects"):
        load_checkpoint_file(tmp_path / "objects.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint_file(tmp_path / "list.pth")
    changed = torch.load(good, weights_only=True)
    changed["model"]["a"][0, 0] = 7
    torch.save(changed, tmp_path / "changed.pth")
    with pytest.raises(CheckpointError, match="does not match its own hash"):
        load_checkpoint_file(tmp_path / "changed.pth")
    assert load_checkpoint_file(tmp_path / "changed.pth", verify=False)["none"] is None


def test_other_formats(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(load_checkpoint_file(tmp_path / "a.safetensors")["a"], torch.ones(2))
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "theirs.pth")  # without a hash of its own
    assert "model" in load_checkpoint_file(tmp_path / "theirs.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_in_both_formats(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared and strided tensors too; a failed write leaves the old file and no other."""
    table = torch.arange(12.0).reshape(3, 4)
    weights = {"a": table, "tied": table, "column": table[:, 1], "half": table.bfloat16()}
    path = save_weights(weights, tmp_path / f"a{suffix}", beside={"epoch": 3})
    found = unwrap(load_weights(path))
    assert set(found) == set(weights) and all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    if suffix == ".pth":
        assert load_checkpoint_file(path)["epoch"] == 3
    else:
        with safe_open(path, framework="pt") as file:
            assert json.loads(file.metadata()["epoch"]) == 3

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_weights({"a": table + 1}, path)
    monkeypatch.undo()
    assert torch.equal(unwrap(load_weights(path))["a"], table) and len(list(tmp_path.iterdir())) == 1


def test_shards_of_a_folder(tmp_path: Path) -> None:
    save_file({"llm.a": torch.ones(1), "vit.a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    save_file({"llm.b": torch.ones(3)}, tmp_path / "model-2.safetensors")
    shards = {"llm.a": "model-1.safetensors", "vit.a": "model-1.safetensors", "llm.b": "../elsewhere/model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    said: list[str] = []
    assert set(load_weights(tmp_path, progress=said.append)) == {"llm.a", "vit.a", "llm.b"}, "a shard is one of the folder's own"
    assert [line.split(",")[0] for line in said] == ["reading model-1.safetensors (1 of 2", "reading model-2.safetensors (2 of 2"]
    assert set(load_weights(tmp_path, prefix="llm.")) == {"llm.a", "llm.b"}
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(MissingCheckpointError, match="lacks the shard model-2.safetensors"):
        load_weights(tmp_path)


def test_the_furthest_good_file_is_the_latest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    places = {
        "checkpoint_best_image": (3, 500),
        "checkpoint_best": (2, 400),
        "checkpoint_10": (11, 1000),
        "checkpoint_10_step90": (10, 90),
        "checkpoint_10_step700": (10, 700),
        "checkpoint_9": (10, 10),
    }
    for name, (epoch, step) in places.items():
        save_checkpoint({"progress": {"epoch": epoch, "step": step}}, tmp_path / f"{name}.pth")
    ordered = [path.stem for path in list_checkpoints(tmp_path)]
    assert ordered == ["checkpoint_10", "checkpoint_10_step700", "checkpoint_10_step90", "checkpoint_9"]
    assert find_latest(tmp_path) == tmp_path / "checkpoint_10.pth"
    (tmp_path / "checkpoint_10.pth").write_bytes(b"")
    assert find_latest(tmp_path) == tmp_path / "checkpoint_10_step700.pth"
    assert "passed over" in caplog.text and "checkpoint_10.pth is empty" in caplog.text
    assert find_latest(tmp_path / "nowhere") is None


def test_file_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert file_hash(tmp_path / "a") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    folder = file_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert file_hash(tmp_path) != folder


def test_names_tell_progress() -> None:
    assert checkpoint.progress_of(Path("x/checkpoint_3_step12.pth")) == (3, 12)
    assert checkpoint.progress_of(Path("checkpoint_3.pth")) == (3, float("inf"))
    assert checkpoint.progress_of(Path("checkpoint_best.pth")) is None
