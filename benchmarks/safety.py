"""What it costs a run to be safe: checkpoints, and the look whether a step was finite.

Run:  python benchmarks/safety.py [--steps 60] [--every 20] [--output results.json]

Trains the smoke run (run_scripts/train/smoke.yaml, on data made on the spot). A step is timed with what it does for
safety inside it; the parts for safety are timed by themselves within the same steps, so that both see the same machine. Prints
medians: a step, a save (state, hash, write, fsync, rename), the share of saving every N steps, the share of the finite check.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lavis.common.config import Config
from lavis.quickstart.scenes import generate
from lavis.runners.faults import SkippedSteps
from lavis.runners.launch import build_runner
from lavis.runners.runner_base import RunnerBase
from lavis.runners.step import TrainStep

ROOT = Path(__file__).resolve().parents[1]


class Clock:
    """Seconds spent in calls of some functions, per step."""

    def __init__(self) -> None:
        self.spent = 0.0

    def around(self, owner: type, name: str) -> None:
        """Count the time of every call of a method."""
        original: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **keywords)
            finally:
                self.spent += time.perf_counter() - start

        setattr(owner, name, timed)

    def take(self) -> float:
        spent, self.spent = self.spent, 0.0
        return spent


def measure(folder: Path, *, steps: int, every: int) -> dict[str, Any]:
    """Medians over `steps` steps, a save after every `every` of them."""
    generate(folder / "data", seed=7, num_train=max(steps, 48), num_test=8)
    os.environ["SMOKE_DATA"] = str(folder / "data")
    options = [f"run.output_dir={folder / 'run'}", f'run.save_freq="{every} steps"', "run.log_freq=10"]
    cfg = Config.from_file(ROOT / "run_scripts" / "train" / "smoke.yaml", options=options)
    runner = build_runner(cfg, splits=["train"], config_name="config")
    check, saving = Clock(), Clock()
    check.around(TrainStep, "_mark_if_not_finite")
    check.around(SkippedSteps, "add_batch")
    check.around(SkippedSteps, "watch")
    check.around(SkippedSteps, "settle")
    saving.around(RunnerBase, "save")
    rows: list[tuple[float, float, float]] = []
    original = runner.train_step

    def train_step(*args: Any, **keywords: Any) -> None:
        start = time.perf_counter()
        original(*args, **keywords)
        rows.append((time.perf_counter() - start, check.take(), saving.take()))
        if len(rows) == steps:
            raise StopIteration

    runner.train_step = train_step
    try:
        runner.train()
    except (StopIteration, RuntimeError):
        if len(rows) < steps:
            raise
    norm = torch.tensor(1.0)
    start = time.perf_counter()
    for _ in range(1000):
        bool(~torch.isfinite(norm))
    flag = (time.perf_counter() - start) / 1000  # the test of the norm, inside the update
    plain = statistics.median(total - saved for total, _, saved in rows[1:])
    checks = statistics.median(spent for _, spent, _ in rows[1:]) + flag
    save = statistics.median([saved for *_, saved in rows if saved] or [float("nan")])
    size = max(path.stat().st_size for path in (folder / "run").glob("checkpoint_*.pth"))
    return {
        "steps": len(rows),
        "step_seconds": plain,
        "save_seconds": save,
        "checkpoint_mb": size / 1e6,
        "saving_share": save / (every * plain + save),
        "finite_check_seconds": checks,
        "finite_check_share": checks / plain,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What checkpoints and the finite check cost.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=20, help="steps between saves")
    parser.add_argument("--output", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), steps=args.steps, every=args.every)
    for name, value in found.items():
        print(f"{name:22} {value:.5f}" if isinstance(value, float) else f"{name:22} {value}")
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
