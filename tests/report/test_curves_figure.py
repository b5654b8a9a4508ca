"""The picture of a log: what is in it, and that it is drawn without a display."""

from __future__ import annotations

import builtins
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis.common.errors import ConfigError
from lavis.report.curves import RunLog, read_log
from lavis.report.curves_figure import draw, loss_rows, metric_rows, run_panels, write_curves
from tools.plot_log import main

ROOT = Path(__file__).parents[2]


def write_log(folder: Path, *, steps: int = 40, seed: int = 0, epochs: int = 2) -> Path:
    """A run of two modalities, one without ITM, with validation, a skipped step and a loss that is no number."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for epoch in range(epochs):
        for number in range(steps):
            step = epoch * steps + number + 1
            loss = {"loss": 5 / step + rng.random(), "loss_itm": rng.random() if number % 2 else 0.0, "loss_lm": rng.random()}
            timing = {"seconds_per_step": 0.1, "data_wait": 0.05, "samples_per_second": 30.0, "max_memory_gb": 1.5}
            rows.append({"step": step, "epoch": epoch, "modality": ("image_region", "image")[number % 2], **loss, "lr": 1e-4})
            rows[-1] |= {"grad_norm": 10 ** rng.uniform(-1, 2), "timing": timing}
        rows.append({"epoch": epoch, "steps": steps, "mean": {}, "skipped": {}})
        metrics = {"Bleu_1": 0.7, "Bleu_4": 0.2 + epoch, "CIDEr": 0.4, "agg_metrics": 0.6 + epoch, "num_samples": 9}
        rows.append({"epoch": epoch, "split": "val", "dataset": "coco", **metrics})
    rows.insert(7, {"step": 7, "epoch": 0, "skipped_step": True})
    rows[12]["loss_lm"] = "nan"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "log.txt"


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    return read_log(write_log(tmp_path / "mine"))


def test_every_curve_has_a_panel_and_unused_losses_none(log: RunLog) -> None:
    rows = {label: [panel.title for panel in panels] for label, panels in loss_rows([log])}
    assert rows == {"image_region": ["loss (total)", "loss_lm"], "image": ["loss (total)", "loss_itm", "loss_lm"]}
    panels = {panel.title: panel for panel in run_panels([log])}
    assert set(panels) == {
        *("learning rate", "gradient norm", "samples per second", "seconds per step"),
        *("waiting for data, %", "most memory, GB"),
    }
    assert panels["waiting for data, %"].points[0][0] == (1, 5.0)
    assert panels["gradient norm"].log_scale and not panels["samples per second"].log_scale
    assert panels["gradient norm"].skipped == {0: [7]}
    ((label, metrics),) = metric_rows([log])
    assert label == "coco\nval" and [panel.title for panel in metrics] == ["agg_metrics", "Bleu_4", "CIDEr"]


def test_lines_marks_and_legend_of_the_figure(log: RunLog, tmp_path: Path) -> None:
    other = read_log(write_log(tmp_path / "other", steps=10, seed=1, epochs=1))
    alone, both = draw([log]), draw([log, other])
    assert len(alone.axes) == len(both.axes) == 5 + 6 + 3
    total = alone.axes[0]
    raw, smooth = (line for line in total.lines if len(line.get_xdata()) == 40)
    assert np.ptp(raw.get_ydata()) > np.ptp(smooth.get_ydata()) and raw.get_alpha() < 0.3
    crosses = [line.get_xdata().tolist() for line in total.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert crosses == [[7]]
    triangles = [axes.get_title(loc="left") for axes in alone.axes for line in axes.lines
                 if line.get_marker() == "v" and len(line.get_xdata())]  # fmt: skip
    assert triangles == ["loss_lm"]
    said = [text.get_text() for text in both.legends[0].get_texts()]
    assert said[:2] == ["mine: 80 steps, 2 epochs, 1 skipped, not finished", "other: 10 steps, 1 skipped, not finished"]
    assert said[2:] == ["skipped step", "not a finite number"]
    assert {axes.get_xlim() for axes in both.axes if axes.get_xlabel() == "step"} == {(0.0, 80 * 1.02)}


def test_one_png_without_a_display(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "mine").parent
    (folder / "log.txt").open("a").write('{"torn')
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "MPLBACKEND": "TkAgg", "MPLCONFIGDIR": str(tmp_path)}  # no DISPLAY
    command = [sys.executable, str(ROOT / "tools/plot_log.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "curves.png") and "the last line (86) is not whole" in done.stderr
    with Image.open(folder / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    blue = (np.abs(pixels.astype(int) - [0x00, 0x72, 0xB2]).sum(axis=-1) < 30).mean()
    assert pixels.shape[1] > 900 and 0.001 < blue < 0.2
    assert not list(folder.glob(".*.tmp"))


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_log(tmp_path / "mine")
    assert main([str(tmp_path)]) == 1 and "holds no log.txt" in capsys.readouterr().err
    assert main([str(path), "--output", str(tmp_path / "x.pdf")]) == 1 and "ends in .png" in capsys.readouterr().err
    with path.open("a") as file:
        file.write('no json\n{"finished": true}\n')
    assert main([str(path)]) == 1 and f"error: {path}, line 86: not valid JSON" in capsys.readouterr().err
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        write_curves([RunLog(path, "x")], tmp_path / "x.png")
