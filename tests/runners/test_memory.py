"""The account of a process's memory: sums by hand, precisions, and a real process's memory."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavis.common.errors import ConfigError
from lavis.common.optims import build_optimizer
from lavis.models import load_model_from_config
from lavis.models.public_sizes import T5, llm_stand_in
from lavis.runners.memory import GATHERED, GIB, RESERVE, account, shard_bytes, table
from lavis.runners.sharding import place
from tests import tiny
from tests.distributed import run_distributed
from tests.runners.fakes import config
from tests.runners.test_sharding import needs_fsdp

MIB = 2**20


class TwoLayers(nn.Module):
    """A frozen language model of two layers and an embedding, and a trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.llm = nn.Module()
        self.llm.embed = nn.Embedding(10, 7, dtype=torch.bfloat16)
        self.llm.layers = nn.ModuleList(nn.Linear(7, 7, dtype=torch.bfloat16) for _ in range(2))
        self.llm.requires_grad_(False)
        self.head = nn.Linear(7, 5)
        self.register_buffer("seen", torch.zeros(3))


def test_a_sum_by_hand() -> None:
    """A linear layer of 7 x 7 and 7 in 4 shards: 2 rows of 7 and 2, two bytes each."""
    weight = 7 * 7 + 7
    layer, in_shards = 2 * weight, 2 * (2 * 7 + 2)
    found = account(TwoLayers(), world_size=4, shard="llm")
    assert found.frozen == 2 * 70 + 2 * in_shards and found.gathered == GATHERED * layer
    head = 4 * (5 * 7 + 5)
    assert (found.trained, found.gradients, found.bucket, found.moments) == (head, head, head, 2 * head)
    assert found.buffers == 12 and found.while_building == 2 * 70 + 2 * layer + head + 12
    always = found.frozen + 3 * head + 12
    assert (found.in_pass, found.in_update) == (always + head + GATHERED * layer, always + 2 * head)
    alone = account(TwoLayers(), world_size=1, shard="llm", learning={})
    assert alone.frozen == 2 * 70 + 2 * layer and alone.gathered == alone.gradients == alone.moments == alone.bucket == 0
    assert alone.most == alone.frozen + head + 12


def test_gradients_of_tasks() -> None:
    """One task after the other: the most of one. Accumulated: those of all. AdamW has moments for all in either case."""
    learning = {"image": ["head.weight"], "image_region": ["head.bias", "head.weight"], "pointcloud": ["head.bias"]}
    for accumulate, tasks, expected in ((False, learning, 160), (False, {"image": ["head.weight"]}, 140), (True, learning, 160)):
        found = account(TwoLayers(), world_size=2, shard="none", learning=tasks, accumulate=accumulate)
        assert found.gradients == found.bucket == expected
        assert found.moments == 2 * expected
    apart = {"image": ["head.weight"], "pointcloud": ["head.bias"]}
    found = [account(TwoLayers(), world_size=2, shard="none", learning=apart, accumulate=value) for value in (False, True)]
    assert [one.gradients for one in found] == [140, 160] and [one.moments for one in found] == [320, 320]


def test_shards_of_few_rows_are_padded() -> None:
    assert shard_bytes(nn.Parameter(torch.zeros(3, 4)), 8) == 4 * 4
    assert shard_bytes(nn.Parameter(torch.zeros(9, 4)), 8) == 2 * 4 * 4


def test_the_table_says_what_fits() -> None:
    found = account(TwoLayers(), world_size=2, shard="llm")
    found.activations = 39 * GIB - RESERVE
    found.notes.append("a note")
    text = table(found, world_size=2)
    assert "24 GB card no, 40 GB card yes, 80 GB card yes" in text and text.endswith("a note")
    assert any(line.startswith("activations") and line.endswith("37.00") for line in text.splitlines())
    found.activations += GIB
    assert "40 GB card no" in table(found, world_size=2)


@pytest.mark.parametrize("arch", ["regionblip_opt", "regionblip_t5"])
def test_on_a_gpu_frozen_parts_are_small_and_what_learns_is_float32(tmp_path: Path, arch: str) -> None:
    model = load_model_from_config(tiny.model_config(tmp_path, arch, vit=_vit(tmp_path, arch, "fp16")), device="cuda")
    kinds: dict[str, set[torch.dtype]] = {}
    for name, param in model.named_parameters():
        kinds.setdefault("trained" if param.requires_grad else name.split(".")[0], set()).add(param.dtype)
    adapters = {param.dtype for name, param in model.llm.named_parameters() if ".lora_" in name}
    base = {param.dtype for name, param in model.llm.named_parameters() if ".lora_" not in name}
    assert kinds["visual_encoder"] == {torch.float16} and base == {torch.bfloat16}
    assert kinds["trained"] == adapters == {torch.float32}
    optimizer = build_optimizer(model, config(tmp_path / "out").run_cfg)
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.zeros_like(param)
    optimizer.step()
    assert {state["exp_avg"].dtype for state in optimizer.state.values()} == {torch.float32}
    rows = account(model, world_size=1, shard="none").weights
    assert {row.dtype for row in rows if row.part == "visual_encoder"} == {"float16"}
    assert {row.dtype for row in rows if row.trained} == {"float32"}


def _vit(folder: Path, arch: str, precision: str) -> dict[str, Any]:
    return {**tiny.model_config(folder, arch)["vit"], "vit_precision": precision}


def test_trained_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    model: Any = load_model_from_config(tiny.model_config(tmp_path, "regionblip_opt"))
    model.pc_adapter.bfloat16()
    with pytest.raises(ConfigError, match="pc_adapter.weight is trainable and bfloat16"):
        build_optimizer(model, config(tmp_path / "out").run_cfg)


def resident() -> int:
    """Bytes of this process in main memory, free pieces given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def build_and_place(folder: str, shard: str) -> tuple[int, int]:
    """What the account says of frozen weights, and what placing the model changed."""
    changes = {"t5_model": f"{folder}/llm", "llm_dropout": False}
    model = load_model_from_config(tiny.model_config(Path(folder) / "tiny", "regionblip_t5", **changes))
    said, built = account(model, world_size=2, shard=shard).frozen, resident()
    place(model, shard=shard, device=torch.device("cpu"))
    return said, resident() - built


@needs_fsdp
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_process_is_as_much_smaller_as_the_account_says(tmp_path: Path) -> None:
    """A language model of 141 million numbers, made on the spot, in two processes."""
    sizes = {"d_model": 768, "d_ff": 2048, "num_heads": 12, "num_layers": 8, "num_decoder_layers": 8, "vocab_size": 4000}
    llm_stand_in(tmp_path / "llm", {**T5, **sizes})
    tiny.model_config(tmp_path / "tiny", "regionblip_t5")
    runs = {
        shard: run_distributed(build_and_place, str(tmp_path), shard, folder=tmp_path / f"returned_{shard}")
        for shard in ("none", "llm")
    }
    for (whole, _), (sharded, change) in zip(runs["none"], runs["llm"], strict=True):
        assert whole - sharded > 200 * MIB
        assert -change == pytest.approx(whole - sharded, rel=0.1)
    assert all(abs(change) < 20 * MIB for _, change in runs["none"])
