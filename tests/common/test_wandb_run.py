"""Weights & Biases by a stand-in: what is sent, that a resumed run goes on with its own, and that nothing depends on it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lavis.common.config import ConfigError
from lavis.common.wandb_run import WandbRun, wandb_settings
from lavis.runners.checks import check_run
from lavis.runners.launch import build_runner
from tests.runners.fakes import config


class StandIn(ModuleType):
    """As much of wandb as is used; `runs` are those that were begun."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[Any] = []
        self.fails: tuple[str, ...] = ()

    def init(self, **options: Any) -> Any:
        if "init" in self.fails:
            raise RuntimeError("no API key")
        run = Run(self, options)
        self.runs.append(run)
        return run


class Run:
    def __init__(self, module: StandIn, options: dict[str, Any]) -> None:
        self.module, self.options = module, options
        self.id = options.get("id") or f"id{len(module.runs)}"
        self.project = options.get("project", "uncategorized")
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[Any] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, row: dict[str, Any]) -> None:
        if "log" in self.module.fails:
            raise ConnectionResetError("gone")
        self.rows.append(row)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def train(folder: Path, **options: Any) -> Any:
    runner = build_runner(config(folder, **options), splits=["train", "val"], config_name="config")
    runner.train()
    return runner


def test_a_run_sends_what_tensorboard_gets_and_is_gone_on_with(
    tmp_path: Path, wandb: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[dict[str, Any], int]] = []
    monkeypatch.setattr("lavis.common.logger.Scalars.write", lambda self, scalars, *, step: shown.append((dict(scalars), step)))
    options = {"valid_splits": "[val]", "wandb": "{project: regions, mode: offline}"}
    train(tmp_path / "mine", **options, max_epoch=1)
    (first,) = wandb.runs
    assert first.finished and first.metrics == [("step", None), ("*", "step")]
    assert {key: first.options[key] for key in ("project", "mode", "name", "dir")} == {
        **{"project": "regions", "mode": "offline", "name": "mine", "dir": str(tmp_path / "mine")},
    }
    assert "id" not in first.options and first.options["config"]["model"]["arch"] == "fake_model"
    numbers = [({name: value for name, value in row.items() if isinstance(value, (int, float))}, step) for row, step in shown]
    assert first.rows == [{**row, "step": step} for row, step in numbers] and len(first.rows) > 5
    assert {"image/loss_itc", "image_region/loss", "lr", "grad_norm", "timing/data_wait"} <= set().union(*first.rows)
    assert first.rows[-1].keys() >= {"fake_image/val/agg_metrics"} or first.rows[-1].keys() >= {"fake_region/val/agg_metrics"}

    train(tmp_path / "mine", **options, max_epoch=2, resume_ckpt_path="auto")
    second = wandb.runs[1]
    assert (second.options["id"], second.options["resume"], second.id) == ("id0", "allow", "id0")
    assert min(row["step"] for row in second.rows) == 12 and max(row["step"] for row in second.rows) == 20

    train(tmp_path / "mine", **options, max_epoch=1)
    assert wandb.runs[2].id == "id2" and "resume" not in wandb.runs[2].options, "a new run in the same folder is another"
    train(tmp_path / "mine", **options, max_epoch=2, resume_ckpt_path="auto")
    assert wandb.runs[3].id == "id2"


def test_nothing_is_sent_where_nobody_asks(tmp_path: Path, wandb: StandIn) -> None:
    for value in ("null", "false"):
        train(tmp_path / value, max_epoch=1, wandb=value)
    assert wandb.runs == []


def test_the_run_goes_on_without_wandb(
    tmp_path: Path, wandb: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "lavis")
    for fails, message in (("init", "could not be started (RuntimeError: no API key)"), ("log", "stopped taking scalars")):
        wandb.fails = (fails,)
        assert train(tmp_path / fails, max_epoch=1, wandb="true").progress.step == 10
        assert caplog.text.count(message) == 1
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    assert train(tmp_path / "none", max_epoch=1, wandb="true").progress.step == 10
    assert caplog.text.count("wandb is not installed (pip install wandb)") == 1


def test_a_lost_id_begins_a_new_run_and_says_so(tmp_path: Path, wandb: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wandb_run.json").write_text("{")
    run = WandbRun(tmp_path, settings={}, config={}, resumed=True)
    run.write({"loss": 1.0, "text": "no number"}, step=3)
    run.close()
    run.write({"loss": 2.0}, step=4)
    assert wandb.runs[0].rows == [{"loss": 1.0, "step": 3}] and "id" not in wandb.runs[0].options
    assert "wandb_run.json names no Weights & Biases run" in caplog.text


def test_settings() -> None:
    assert [wandb_settings(given) for given in (None, False, True, {"project": "x", "mode": None})] == [
        None,
        None,
        {},
        {"project": "x"},
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3", "run.wandb is 3; accepted: true, false, or a mapping"),
        ("{projekt: x}", "key of run.wandb 'projekt'. Did you mean 'project'"),
        ("{mode: off}", "run.wandb.mode must be text, not False"),
        ("{mode: onlin}", "run.wandb.mode 'onlin'. Did you mean 'online'"),
        ("{name: 3}", "run.wandb.name must be text, not 3"),
    ],
)
def test_mistakes_are_named_before_anything_is_built(tmp_path: Path, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_run(config(tmp_path / "out", wandb=value).run)
