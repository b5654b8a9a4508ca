"""The profile (`parts.py`) adds up and leaves nothing behind; the run of real sizes goes through at toy sizes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, parts


def test_a_part_does_not_count_what_is_watched_within() -> None:
    time = iter([0.0, 1.0, 4.0, 9.0])
    watch = parts.Parts(lambda: next(time))
    thing: Any = SimpleNamespace(inner=lambda: "done")
    original = thing.inner
    watch.around(thing, "inner", "inner")
    watch.around(thing, "absent", "absent")
    with watch.part("outer"):
        assert thing.inner() == "done"
    assert dict(watch.spent) == {"inner": 3.0, "outer": 6.0}
    watch.restore()
    assert thing.inner is original


def test_a_method_of_a_class_comes_back() -> None:
    watch, tensor = parts.Parts(lambda: 0.0), torch.zeros(())
    before = torch.Tensor.backward
    watch.around(torch.Tensor, "backward", "backward")
    assert torch.Tensor.backward is not before
    watch.restore()
    assert torch.Tensor.backward is before and tensor.backward.__func__ is before


def test_the_table_lists_every_part() -> None:
    lines = parts.show({"published": {"ViT": 3.0, "backward": 1.0}, "float32": {"ViT": 1.0, "optimizer": 1.0}}).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["ViT", "backward", "optimizer", "all"]
    assert "75.0%" in lines[1] and "50.0%" in lines[1]


@pytest.mark.slow
def test_profile(capsys: pytest.CaptureFixture[str]) -> None:
    parts.main(["--small", "--calls", "1", "--work", "train_pointcloud", "caption_image"])
    said = capsys.readouterr().out
    for part in (
        "mini-PointNet",
        "sampling and grouping",
        "backward",
        "optimizer",
        "beams",
        "ViT",
        "Q-Former query_pass",
        "Q-Former passes_at_once",
    ):
        assert part in said


@pytest.mark.slow
def test_real_sizes_at_toy_size(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    gpu.main(
        ["--device", "cpu", "--toy", "--rows", "8", "--steps", "4", "--warm", "1", "--workers", "0", "--output", str(output)]
    )
    found = json.loads(output.read_text())
    for kind in ("opt", "t5"):
        for name in ("image_region", "mixture"):
            assert found[kind][name]["not_finite"] == found[kind][name]["left_out"] == 0
            assert 0 <= found[kind][name]["waiting_for_data"] < 1 and found[kind][name]["tflops"] > 0
        assert found[kind]["captions"]["ms_per_caption"] > 0
        assert found[kind]["mixture"]["gflop_trained"] > 0 and found[kind]["image_region"]["gflop_saved"] >= 0
