"""The smoke run gives the losses that it gave before.

Bitwise where torch, Pillow, processor and threads are those of the recording; within 1e-4 where only the machine differs. Another
torch may draw other hard negatives from the same seed; there what contains ITM is not compared, and the rest within 2 %. Another
Pillow makes other pictures (12.3 and 13.0 differ by up to 4 %, in a gradient norm); there 10 % are allowed.

To record again after a change that is meant to alter them: RECORD_SMOKE=1 python -m pytest tests/test_smoke.py, and say in the
commit by how much and why.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import PIL
import pytest
import torch
import transformers

from lavis.quickstart.scenes import generate

ROOT = Path(__file__).parents[1]
EXPECTED = Path(__file__).parent / "fixtures" / "smoke_log.jsonl"
TOLERANCE, OTHER_TORCH, OTHER_PILLOW = 1e-4, 2e-2, 1e-1


def machine() -> dict[str, Any]:
    """What must be equal for numbers to be equal bit by bit."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,  # it draws, compresses and resizes the pictures
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": platform.machine(),
        "threads": 1,
    }


def run_smoke(folder: Path) -> list[dict[str, Any]]:
    """The step lines of a fresh smoke run, without what depends on the clock."""
    generate(folder / "data", seed=7, num_train=48, num_test=8)
    options = ["--options", f"run.output_dir={folder / 'run'}"]
    command = [sys.executable, "train.py", "--cfg-path", "run_scripts/train/smoke.yaml", *options]
    environment = {**os.environ, "SMOKE_DATA": str(folder / "data"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment.pop("QUICKSTART_BASE", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (folder / "run" / "log.txt").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines if "modality" in line]


def test_smoke_run_gives_the_expected_log(tmp_path: Path) -> None:
    found = run_smoke(tmp_path)
    if os.environ.get("RECORD_SMOKE"):
        EXPECTED.parent.mkdir(exist_ok=True)
        EXPECTED.write_text("".join(json.dumps(line) + "\n" for line in [{"machine": machine()}, *found]))
    header, *expected = [json.loads(line) for line in EXPECTED.read_text().splitlines()]
    assert len(found) == len(expected) >= 38
    assert {line["modality"] for line in found} == {"image", "image_region"}
    exact = header["machine"] == machine()
    same_torch = header["machine"]["torch"] == torch.__version__
    same_pictures = header["machine"]["pillow"] == PIL.__version__
    tolerance = (TOLERANCE if same_torch else OTHER_TORCH) if same_pictures else OTHER_PILLOW
    for line, before in zip(found, expected, strict=True):
        assert line.keys() == before.keys()
        for key, value in before.items():
            if not same_torch and line["loss_itm"] and key in ("loss", "loss_itm", "grad_norm"):
                continue
            if exact or not isinstance(value, float):
                assert line[key] == value, f"step {before['step']}: {key}"
            else:
                assert line[key] == pytest.approx(value, rel=tolerance, abs=tolerance), f"step {before['step']}: {key}"


def test_smoke_losses_fall() -> None:
    """The recorded run itself learned: region losses at the end are below those of the start."""
    _, *lines = [json.loads(line) for line in EXPECTED.read_text().splitlines()]
    region = [line["loss_llm"] for line in lines if line["modality"] == "image_region"]
    assert sum(region[-5:]) < sum(region[:5])
