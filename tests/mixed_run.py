"""A real run of a tiny RegionBLIP over generated pictures, regions and clouds, with dropout and augmentation: its YAML, and the
process that trains it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from lavis.common.checkpoint import load_checkpoint_file
from lavis.quickstart.clouds import generate_clouds
from lavis.quickstart.scenes import generate
from tests import tiny

ROOT = Path(__file__).parents[1]
LAST = "checkpoint_1.pth"


def make_data(folder: Path) -> None:
    """12 pictures with their captions and regions, 20 objects with captions."""
    generate(folder / "data", seed=3, num_train=12, num_test=4)
    generate_clouds(folder / "data", seed=3, train_objects=20, test_objects=4, train_rooms=1, test_rooms=1)


def write_run(folder: Path, **run: Any) -> Path:
    """The YAML of two epochs over three modalities in turn, validated after each; `run` overrides its run keys."""
    annotations = folder / "data" / "annotations"

    def pictures(train: str, test: str, processor: str) -> dict[str, Any]:
        splits = {"train": {"storage": str(annotations / train)}, "val": {"storage": str(annotations / test)}}
        seen = {"train": {"name": processor, "image_size": 28}, "eval": {"name": "blip_image_eval", "image_size": 28}}
        texts = {stage: {"name": "blip_caption"} for stage in ("train", "eval")}
        info = {"annotations": splits, "images": {"storage": str(folder / "data" / "images")}}
        return {"vis_processor": seen, "text_processor": texts, "build_info": info}

    clouds = {
        "annotations": {"train": {"storage": str(annotations / "cap3d_train.txt")}},
        "pointcloud": {"storage": str(folder / "data" / "objects"), "num_points": 256},
    }
    model = tiny.model_config(folder / "model", "regionblip_opt", enable_aux_regloss=True, max_txt_len=32, llm_dropout=True)
    config = {
        "imports": [str(Path(__file__).with_name("killer.py"))],
        "model": {**model, "modalities": {"pointcloud_region": None}},
        "datasets": {
            "coco_caption": pictures("coco_karpathy_train.json", "coco_karpathy_test.json", "blip2_image_train"),
            "general_box_caption": pictures("Refcoco_train.json", "Refcoco_test.json", "general_box_caption_img_trainval"),
            "pointcloud_caption": {"build_info": clouds},
        },
        "run": {
            "runner": "runner_regionblip",
            "task": "regionblip_pretrain",
            "task_order": "round_robin",
            "batch_size_train_per_task": {"image": 4, "image_region": 24, "pointcloud": 4},
            "batch_size_eval": 8,
            "max_epoch": 2,
            "valid_splits": ["val"],
            "num_workers": 2,
            "log_freq": 1,
            "save_freq": "2 steps",
            "keep_last": 3,
            "init_lr": 1.0e-3,
            "warmup_steps": 4,
            "tensorboard": False,
            "output_dir": str(folder / "out"),
            **run,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(config: Path, output: Path, *options: str, **environment: str) -> subprocess.Popen[bytes]:
    """`python train.py` into `output`, going on from what is there; its messages in `output`.console."""
    command = [sys.executable, "train.py", "--cfg-path", str(config), "--options", f"run.output_dir={output}"]
    with output.with_suffix(".console").open("ab") as console:
        return subprocess.Popen(
            [*command, "run.resume_ckpt_path=auto", *options],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=console,
            stderr=console,
            start_new_session=True,
        )


def outcome(output: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The log lines without what depends on the clock, with the names of the checkpoints at last; and the weights of the end and
    of the best checkpoints, with the values that they are best by."""
    rows = [json.loads(line) for line in (output / "log.txt").read_text().splitlines()]
    names = sorted(path.name for path in output.glob("*.pth"))
    weights: dict[str, torch.Tensor] = {}
    for name in [LAST, *(name for name in names if name.startswith("checkpoint_best"))]:
        state = load_checkpoint_file(output / name)
        weights |= {key if name == LAST else f"{name}/{key}": value for key, value in state["model"].items()}
        best = state["progress"]["best"].items()
        weights |= {f"{name}/{key}": torch.tensor(entry["value"], dtype=torch.float64) for key, entry in best}
    return [*({k: v for k, v in row.items() if k != "timing"} for row in rows), {"checkpoints": names}], weights
