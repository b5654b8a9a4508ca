"""The quickstart: generate data, train RegionBLIP on regions, evaluate, report. What is done is kept.

    make quickstart        (python run_scripts/quickstart/quickstart.py --output output/quickstart)

Stages, each a command of its own that can be repeated by hand (the log shows it):
  data, cloud_data     scenes of digits and shapes, in COCO-caption and RefCOCO files; objects and rooms as point clouds
  region, ablation     train.py on regions of images, with and without their position (same data, steps and seed)
  image_before, image  evaluate.py on whole images: the BLIP-2 file alone, and the RegionBLIP checkpoint
  image_region, no_position   evaluate.py on regions with either checkpoint
  clouds, clouds_no_corners   train.py goes on from the region checkpoint with objects and rooms, with and without corners
  image_after, image_region_after, pointcloud, pointcloud_region, no_corners   evaluate.py with these checkpoints
  report               report.json and report.html
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lavis.common.checkpoint import file_hash, find_latest
from lavis.quickstart.clouds import generate_clouds
from lavis.quickstart.scenes import generate

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE))
from quickstart_report import write_report  # noqa: E402  (it lies beside this file)

log = logging.getLogger("quickstart")
TRAINED = "regionblip.safetensors"  # lies beside the frozen base, and is what such a run ended in
SEED, NUM_TRAIN, NUM_TEST = 42, 1500, 125
CLOUDS = {"train_objects": 7200, "test_objects": 300, "train_rooms": 1200, "test_rooms": 100}  # as many rows of both


class Stages:
    """Runs stages once: `<output>/stages/<name>.json` holds what a finished stage was made from and its seconds.

    A stage is run again when its command, the frozen base, or a stage that it builds on has changed.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / "stages"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seconds: dict[str, float] = {}
        self.made: dict[str, str] = {}  # stage -> a name for what it was made from
        base = Path(os.environ.get("QUICKSTART_BASE", REPOSITORY / "assets" / "quickstart"))
        files = (file for file in sorted(base.rglob("*.safetensors")) if file.name != TRAINED)
        self.base = {str(file.relative_to(base)): file_hash(file) for file in files}
        self.peak_memory_gb = 0.0

    def run(
        self, name: str, command: list[str], *, after: tuple[str, ...] = (), action: Callable[[], None] | None = None
    ) -> None:
        """Run `command` (or `action`) unless this very stage is done; its output is shown as it comes."""
        marker = self.folder / f"{name}.json"
        built_on = {stage: self.made[stage] for stage in after}
        sources = {"command": command, "after": built_on, "base": self.base if after else {}}
        self.made[name] = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()
        if marker.exists() and (done := json.loads(marker.read_text("utf-8")))["made"] == self.made[name]:
            log.info("%-14s kept from before (%.0f s then)", name, done["seconds"])
        else:
            log.info("%-14s %s", name, " ".join(command))
            begin = time.perf_counter()
            if action is not None:
                action()
            else:
                environment = {**os.environ, "QUICKSTART_DATA": str(self.output / "data")}
                subprocess.run([sys.executable, *command], check=True, cwd=REPOSITORY, env=environment)
            peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
            done = {
                "made": self.made[name],
                "command": command,
                "seconds": time.perf_counter() - begin,
                "peak_memory_gb": peak * _RSS_UNIT / 1e9,
            }
            marker.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
        self.seconds[name] = round(done["seconds"], 1)
        self.peak_memory_gb = max(self.peak_memory_gb, done["peak_memory_gb"])


_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes per unit of ru_maxrss


def train(stages: Stages, name: str, config: str, *options: str, after: tuple[str, ...] = ("data",)) -> Path:
    """Train; returns the last checkpoint."""
    folder = stages.output / name
    stages.run(name, ["train.py", *_config(config, f"run.output_dir={folder}", *options)], after=after)
    checkpoint = find_latest(folder)
    assert checkpoint is not None, f"{folder} holds no checkpoint"
    return checkpoint


def evaluate(stages: Stages, name: str, config: str, *options: str, after: tuple[str, ...] = ("data",)) -> None:
    """Evaluate in a process of its own; results are under `<output>/<name>`."""
    stages.run(name, ["evaluate.py", *_config(config, f"run.output_dir={stages.output / name}", *options)], after=after)


def _config(name: str, *options: str) -> list[str]:
    return ["--cfg-path", str((HERE / f"{name}.yaml").relative_to(REPOSITORY)), "--options", *options]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/quickstart"))
    output: Path = parser.parse_args().output.resolve()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s quickstart: %(message)s", datefmt="%H:%M:%S")
    stages = Stages(output)

    sizes = {"seed": SEED, "num_train": NUM_TRAIN, "num_test": NUM_TEST}
    data = output / "data"
    stages.run("data", ["generate", str(data), json.dumps(sizes)], action=lambda: generate(data, **sizes))
    clouds = {"seed": SEED, **CLOUDS}
    command = ["generate_clouds", str(data), json.dumps(clouds)]
    stages.run("cloud_data", command, action=lambda: generate_clouds(data, **clouds))

    blind = "model.ablation_no_posembed=true"
    region, ablation = train(stages, "region", "train_region"), train(stages, "ablation", "train_region", blind)
    evaluate(stages, "image_before", "eval_image_blip2")
    evaluate(stages, "image", "eval_image", f"model.finetuned={region}", after=("region",))
    evaluate(stages, "image_region", "eval_region", f"model.finetuned={region}", after=("region",))
    evaluate(stages, "no_position", "eval_region", f"model.finetuned={ablation}", blind, after=("ablation",))

    start, built_on = f"model.pretrained={region}", ("region", "cloud_data")
    full = train(stages, "clouds", "train_clouds", start, after=built_on)
    cornerless = train(stages, "clouds_no_corners", "train_clouds", start, blind, after=built_on)
    evaluate(stages, "image_after", "eval_image", f"model.finetuned={full}", after=("clouds",))
    evaluate(stages, "image_region_after", "eval_region", f"model.finetuned={full}", after=("clouds",))
    evaluate(stages, "pointcloud", "eval_pointcloud", f"model.finetuned={full}", after=("clouds",))
    evaluate(stages, "pointcloud_region", "eval_pointcloud_region", f"model.finetuned={full}", after=("clouds",))
    options = (f"model.finetuned={cornerless}", blind)
    evaluate(stages, "no_corners", "eval_pointcloud_region", *options, after=("clouds_no_corners",))
    report = write_report(output, wall_seconds=stages.seconds, peak_memory_gb=stages.peak_memory_gb)
    log.info("report: %s", output / "report.html")
    for name, row in report["rows"].items():
        log.info("%-18s named right: %.3f", name, row["attribute_accuracy"])


if __name__ == "__main__":
    main()
