"""Schedules against recorded values; the optimizer's groups."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from lavis.common.config import ConfigError
from lavis.common.optims import LinearWarmupCosineLR, build_optimizer
from lavis.common.registry import registry
from tests.parity import count_records, parity_dir

BASE = {"max_epoch": 10, "min_lr": 1e-5, "init_lr": 1e-4, "warmup_steps": 5000, "warmup_lr": 1e-6, "decay_rate": 0.5}
NO_WARMUP = {"max_epoch": 10, "min_lr": 0.0, "init_lr": 1e-5}


def test_schedules_of_lavis() -> None:
    recorded = json.loads((parity_dir() / "lavis" / "expected.json").read_text())["lr"]
    for name, values in recorded.items():
        if name == "args":
            continue
        if name == "cosine_no_warmup":
            schedule = LinearWarmupCosineLR(None, **NO_WARMUP)
        else:
            schedule = registry.get_lr_scheduler_class(name)(None, **BASE)
        for where, expected in values.items():
            epoch, step = map(int, where.split(","))
            assert schedule.lr(epoch, step) == pytest.approx(expected, rel=1e-12), (name, where)
        count_records(1)


def test_schedule_of_regionblip() -> None:
    recorded = json.loads((parity_dir() / "regionblip" / "data_items.json").read_text())["lr_schedule"]
    keys = ("max_epoch", "init_lr", "min_lr", "warmup_lr", "warmup_steps")
    schedule = registry.get_lr_scheduler_class(recorded["class"])(None, **{key: recorded[key] for key in keys})
    for epoch, step, expected in recorded["epoch_step_lr"]:
        assert schedule.lr(epoch, step) == pytest.approx(expected, rel=1e-12)
    count_records(1)


def test_no_warm_up_steps_means_no_warm_up() -> None:
    assert LinearWarmupCosineLR(None, max_epoch=2, init_lr=1.0, warmup_lr=0.1, warmup_steps=0).lr(0, 0) == 1.0


def test_a_warm_up_over_the_whole_run_goes_on_after_epoch_0() -> None:
    schedule = LinearWarmupCosineLR(None, max_epoch=4, init_lr=1.0, min_lr=0.0, warmup_lr=0.0, warmup_steps=10)
    rates = [schedule.lr(step // 4, step, whole_run=True) for step in range(16)]  # four steps per epoch
    cosine = [0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    ramp = [*(step / 10 for step in range(8)), *[cosine[2]] * 4, *[cosine[3]] * 4]  # 0.8 and 0.9 would be above epoch 2's 0.5
    assert rates == pytest.approx(ramp)
    assert schedule.lr(1, 3) == cosine[1], "a step of an epoch has no warm-up after epoch 0"


def test_groups_are_scaled() -> None:
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr_scale": 0.1}, {"params": [torch.zeros(1)]}], lr=1.0)
    schedule = LinearWarmupCosineLR(optimizer, max_epoch=2, init_lr=0.5)
    assert schedule.step(0, 0) == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]


class Model(nn.Module):
    def __init__(self, *, frozen: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2).to(dtype).requires_grad_(not frozen)

    def get_optimizer_params(self, weight_decay: float, lr_scale: float = 1.0) -> list[dict[str, object]]:
        params = [param for param in self.parameters() if param.requires_grad]
        return [{"params": params, "weight_decay": weight_decay, "lr_scale": lr_scale}]


class Run:
    lr_layer_decay, weight_decay, init_lr, beta2 = 0.5, 0.05, 1e-4, 0.98


def test_build_optimizer() -> None:
    group = build_optimizer(Model(), Run).param_groups[0]
    assert (group["weight_decay"], group["betas"], group["lr_scale"]) == (0.05, (0.9, 0.98), 0.5)
    with pytest.raises(ConfigError, match="every part is frozen"):
        build_optimizer(Model(frozen=True), Run)
    with pytest.raises(ConfigError, match="layer.weight is trainable and float16"):
        build_optimizer(Model(dtype=torch.float16), Run)
