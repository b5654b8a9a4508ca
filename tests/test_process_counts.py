"""The same mathematics on any number of processes: a small RegionBLIP trained by the runner on all four modalities.

One global batch of 16 is spread over 1, 2 or 4 processes, dropout off. Every epoch ends in short batches that do not divide evenly,
a row cannot be read, texts differ in length, and several regions lie on one picture.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from lavis.common import dist_utils
from lavis.common.config import Config
from lavis.datasets.quickstart import generate
from lavis.datasets.quickstart_clouds import generate_clouds
from lavis.models import losses
from lavis.runners.launch import build_runner
from tests import tiny
from tests.distributed import run_distributed

GLOBAL_BATCH = 16
ROWS = {"coco_caption": 21, "general_box_caption": 38, "pointcloud_caption": 23, "scannet_refer": 37}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {"itc_gather_grad": False},
    "gathered": {"itc_gather_grad": True, "soft_targets": True},
}


def write_data(folder: Path) -> None:
    """The quickstart's files, cut to `ROWS`; the picture of one region is missing."""
    generate(folder, seed=3, num_train=12, num_test=1)
    generate_clouds(folder, seed=3, train_objects=12, test_objects=1, train_rooms=4, test_rooms=1)
    annotations = folder / "annotations"
    for stem, rows in (("coco_karpathy", "coco_caption"), ("Refcoco", "general_box_caption"), ("ScanRefer", "scannet_refer")):
        path = annotations / f"{stem}_train.json"
        path.write_text(json.dumps(json.loads(path.read_text())[: ROWS[rows]]))
    path = annotations / "Refcoco_train.json"
    rows = json.loads(path.read_text())
    rows[5]["image"] = "train/missing.jpg"
    path.write_text(json.dumps(rows))
    path = annotations / "cap3d_train.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: ROWS["pointcloud_caption"]]))


def write_config(folder: Path) -> Path:
    """A run over all four modalities, in turn."""
    words = {"text_processor": {"train": {"name": "blip_caption"}}}
    pictures = {"vis_processor": {"train": {"name": "general_box_caption_img_trainval", "image_size": 28}}, **words}
    data, annotations = folder / "data", folder / "data" / "annotations"

    def storage(name: str) -> dict[str, Any]:
        return {"annotations": {"train": {"storage": str(annotations / name)}}}

    scenes = {"scanner_file": str(annotations / "ScanRefer_train.json"), "scene_root_dir": str(data / "rooms")}
    clouds = {"storage": str(data / "objects"), "num_points": 96, "all_captions": True}
    images = {"images": {"storage": str(data / "images")}}
    config = {
        "model": tiny.model_config(
            folder / "model",
            "regionblip_opt",
            enable_aux_regloss=True,
            max_txt_len=32,
            llm_dropout=False,
            qformer_pc_dropout=False,
        ),
        "datasets": {
            "coco_caption": {**pictures, "build_info": {**storage("coco_karpathy_train.json"), **images}},
            "general_box_caption": {**pictures, "build_info": {**storage("Refcoco_train.json"), **images}},
            "pointcloud_caption": {**words, "build_info": {**storage("cap3d_train.txt"), "pointcloud": clouds}},
            "scannet_refer": {
                "annotations": {"train": {**scenes, "num_points": 96, "dataset_repeat_num": 1, "augment": True}}
            },
        },
        "run": {
            "runner": "runner_regionblip",
            "task": "regionblip_pretrain",
            "task_order": "round_robin",
            "init_lr": 1e-4,
            "warmup_steps": 4,
            "grad_clip_norm": 1.0,
            "max_epoch": 1,
            "num_workers": 0,
            "drop_last": False,
            "log_freq": 1,
            "tensorboard": False,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def spread(model: torch.nn.Module) -> None:
    """Weights that tell inputs apart, as trained ones do: in a fresh Q-Former all features are nearly one."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if (parameter.ndim > 1 and not name.startswith("llm.")) or ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.15)


def train(path: str, model: dict[str, Any], out: str, accum: int = 1) -> dict[str, Any]:
    """Train; returns what each step saw, drew and gave, and the weights. Collective."""
    processes = dist_utils.get_world_size()
    options = {"run.output_dir": out, "run.batch_size_train": GLOBAL_BATCH // processes, "run.accum_grad_iters": accum}
    options |= {f"model.{key}": value for key, value in model.items()}
    cfg = Config.from_file(path, options=[f"{key}={value}" for key, value in options.items()])
    runner = build_runner(cfg, splits=["train"], config_name="config")
    spread(runner.model)
    names = {parameter: name for name, parameter in runner.model.named_parameters() if parameter.requires_grad}
    seen: list[dict[str, Any]] = []
    gradients: list[dict[str, torch.Tensor]] = []
    negatives: list[torch.Tensor] = []
    forward, draw, setup = runner.task.train_step, losses.draw_negatives, runner.setup_training

    def look(model: Any, samples: dict[str, Any]) -> Any:
        batch = {key: samples[key] for key in ("modality", "text_input", "image_id", "skipped")}
        seen.append({**batch, "pictures": len(samples.get("image", ())), "bytes": max(map(len, samples["text_input"]))})
        return forward(model, samples)

    def drawn(weights: torch.Tensor) -> torch.Tensor:
        negatives.append(draw(weights))
        return negatives[-1]

    def setup_and_hook() -> None:
        setup()
        runner.step.optimizer.register_step_pre_hook(lambda *_: gradients.append(now()))

    def now() -> dict[str, torch.Tensor]:
        return {name: p.grad.clone() for p, name in names.items() if p.grad is not None}

    with mock.patch.object(losses, "draw_negatives", drawn), mock.patch.object(runner.task, "train_step", look):
        with mock.patch.object(runner, "setup_training", setup_and_hook):
            runner.train()
    weights = {name: parameter.detach().clone() for parameter, name in names.items()}
    return {"seen": seen, "negatives": negatives, "gradients": gradients, "weights": weights}


def train_all(folder: str) -> dict[str, dict[str, Any]]:
    """Every variant, on however many processes there are."""
    count = dist_utils.get_world_size()
    config = str(Path(folder) / "config.yaml")
    return {name: train(config, model, str(Path(folder) / f"{name}{count}")) for name, model in VARIANTS.items()}
