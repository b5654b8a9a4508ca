"""JSON lines that survive a restart, meters, the console."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from lavis.common.logger import JsonlLog, MetricLogger, SmoothedValue, clock, jsonable


def test_lines_are_appended_cut_and_set_aside(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path / "log.txt")
    for number in range(3):
        log.write({"n": number, "text": "grün"})
    with (tmp_path / "log.txt").open("a") as stream:
        stream.write('{"n": 3, "half a li')
    again = JsonlLog(tmp_path / "log.txt")
    assert again.lines == 3
    again.truncate(2)
    again.write({"n": 9})
    assert [json.loads(line)["n"] for line in (tmp_path / "log.txt").read_text().splitlines()] == [0, 1, 9]
    again.set_aside()
    again.write({"n": 0})
    again.set_aside()
    assert {path.name for path in tmp_path.iterdir()} == {"log.1.txt", "log.2.txt"}


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path / "log.txt", enabled=False)
    log.write({"a": 1})
    log.truncate(0)
    log.set_aside()
    assert list(tmp_path.iterdir()) == []


def test_values_that_json_does_not_know() -> None:
    row = {"a": torch.tensor(1.5), "b": np.float32(2), "c": float("nan"), "d": Path("x"), 3: (torch.ones(2), None)}
    assert jsonable(row) == {"a": 1.5, "b": 2.0, "c": "nan", "d": "x", "3": [[1.0, 1.0], None]}


def test_smoothed_value() -> None:
    meter = SmoothedValue(window_size=2, fmt="{median:.1f} {avg:.1f} {global_avg:.1f} {max:.1f} {value:.1f}")
    assert str(meter) == "0.0 0.0 0.0 0.0 0.0"
    for value in (1.0, 2.0, 6.0):
        meter.update(value)
    assert str(meter) == "2.0 4.0 3.0 6.0 6.0"
    meter.synchronize_between_processes()
    assert meter.count == 3


def test_metric_logger(caplog: pytest.LogCaptureFixture) -> None:
    meters = MetricLogger(delimiter=" | ")
    meters.add_meter("lr", SmoothedValue(fmt="{value:.3f}"))
    with caplog.at_level(logging.INFO, "lavis"):
        for value in meters.log_every([1.0, 2.0, 3.0], 2, "epoch"):
            meters.update(loss=torch.tensor(value), lr=0.1)
    assert [record.message.split(" | ")[0] for record in caplog.records] == ["epoch [1/3]", "epoch [3/3]"]
    assert "lr: 0.100" in str(meters) and meters.global_avg() == "lr: 0.1000 | loss: 2.0000"


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 61.9, 3600 * 30 + 5)] == ["0:00:00", "0:01:01", "30:00:05"]
