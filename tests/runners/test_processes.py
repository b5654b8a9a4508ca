"""Two processes do what one does, and the commands do what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
import train
from lavis.runners.launch import build_runner
from tests.distributed import run_distributed
from tests.runners.fakes import config

ROOT = Path(train.__file__).resolve().parent
OPTIONS: dict[str, Any] = {
    "task_order": "round_robin",
    "valid_splits": "[val]",
    "save_freq": "3 steps",
    "model__dropout": 0,
    "grad_clip_norm": 1.0,
    "log_freq": 1,
}


def run(folder: str, batch_size: int, resume: str | None = None) -> dict[str, torch.Tensor]:
    cfg = config(Path(folder), batch_size_train=batch_size, **OPTIONS, resume_ckpt_path=resume or "null")
    runner = build_runner(cfg, splits=["train", "val"], config_name="config")
    runner.train()
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def losses(folder: Path, key: str = "step") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "timing"} for row in rows if key in row]


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """A global batch of 8 either way; then one process goes on where two had been."""
    one = run(str(tmp_path / "one"), 8)
    first, second = run_distributed(run, str(tmp_path / "two"), 4, folder=tmp_path / "returned")
    assert first.keys() == one.keys()
    for name in one:
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], one[name], rtol=1e-4, atol=1e-6)
    assert (
        one["shared.weight"] - torch.load(tmp_path / "one" / "checkpoint_0_step3.pth")["model"]["shared.weight"]
    ).abs().max() > 1e-3
    for mine, theirs in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert (mine["step"], mine["modality"], mine["lr"]) == (theirs["step"], theirs["modality"], theirs["lr"])
        for name in ("loss", "loss_itc", "loss_itm", "loss_reg", "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6)
    ends = zip(losses(tmp_path / "one", "mean"), losses(tmp_path / "two", "mean"), strict=True)
    assert all(mine["skipped"] == theirs["skipped"] for mine, theirs in ends)
    evaluated = [losses(tmp_path / name, "split") for name in ("one", "two")]
    assert [row["num_samples"] for row in evaluated[0]] == [row["num_samples"] for row in evaluated[1]] == [7] * 4

    resumed = run(str(tmp_path / "again"), 8, str(tmp_path / "two" / "checkpoint_0_step3.pth"))
    for name in one:
        torch.testing.assert_close(resumed[name], one[name], rtol=1e-4, atol=1e-6)
    last = losses(tmp_path / "again", "mean")[0]["mean"]["image"]
    assert last == pytest.approx(losses(tmp_path / "one", "mean")[0]["mean"]["image"], rel=1e-4)


def user_yaml(folder: Path) -> Path:
    path = folder / "user.yaml"
    path.write_text(
        f"imports: [{Path(__file__).with_name('fakes.py')}]\n"
        "model: {arch: fake_model}\n"
        "datasets: {fake_image: {size: 16}}\n"
        "run: {task: image_captioning_coco, report_metric: false, max_epoch: 1, batch_size_train: 4, num_workers: 0,\n"
        "      valid_splits: [val], test_splits: [test], output_dir: output/fake, tensorboard: false}\n"
    )
    return path


def test_the_commands_under_torchrun_and_alone(tmp_path: Path) -> None:
    """One YAML; train.py in two processes, evaluate.py in one."""
    path = user_yaml(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def command(*words: str) -> None:
        result = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-4000:]

    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command(*launcher, str(ROOT / "train.py"), "--cfg-path", str(path))
    out = tmp_path / "output" / "fake"
    assert {item.name for item in out.iterdir()} >= {
        "log.txt",
        "evaluate.txt",
        "config.yaml",
        "checkpoint_0.pth",
        "checkpoint_best.pth",
    }
    trained = json.loads((out / "result" / "test_epochbest.json").read_text())
    assert sorted(row["image_id"] for row in trained) == [0, 1, 2, 3, 4]
    (out / "result" / "test_epochbest.json").unlink()
    options = ["--options", "run.resume_ckpt_path=output/fake/checkpoint_best.pth"]
    command(str(ROOT / "evaluate.py"), "--cfg-path", str(path), *options)
    assert json.loads((out / "result" / "test_epochbest.json").read_text()) == trained
    last = json.loads((out / "evaluate.txt").read_text().splitlines()[-1])
    assert last == {"test": {"num_samples": 5, "num_unreadable": 1, "agg_metrics": 0.0}, "epoch": "best", "dataset": "fake_image"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run.max_epok=1"], "Unknown key 'run.max_epok'"),
        (["run.runner=runner_bass"], "Unknown runner 'runner_bass'"),
        (["model.random_base=true"], "loaded from nowhere"),
        (["run.test_splits=[]"], "run.test_splits is empty"),
    ],
)
def test_mistakes_are_told_in_one_message(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = user_yaml(tmp_path)
    path.write_text("\n".join(path.read_text().splitlines()[1:]))  # the fakes are registered here already
    for command in (evaluate,) if "test_splits" in options[0] else (train, evaluate):
        assert command.main(["--cfg-path", str(path), "--options", *options]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0]
    assert not list(tmp_path.glob("output/fake/*.pth"))


def test_train_evaluates_only_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = user_yaml(tmp_path)
    path.write_text("\n".join(path.read_text().splitlines()[1:]))
    assert train.main(["--cfg-path", str(path), "--options", "run.evaluate=true", "run.runner=runner_regionblip"]) == 0
    assert (tmp_path / "output" / "fake" / "evaluate.txt").is_file()
    assert not (tmp_path / "output" / "fake" / "log.txt").exists()
