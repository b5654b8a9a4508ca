"""The same mathematics on any number of processes: a small RegionBLIP trained by the runner on all four modalities.

One global batch of 16 is spread over 1, 2 or 4 processes, dropout off. The epoch ends in short batches that do not divide evenly,
a row cannot be read, texts differ in length, and several regions lie on one picture.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from lavis.common import dist_utils
from lavis.common.config import Config
from lavis.models import losses
from lavis.quickstart.clouds import generate_clouds
from lavis.quickstart.scenes import generate
from lavis.runners.launch import build_runner
from tests import tiny
from tests.distributed import run_distributed

GLOBAL_BATCH = 16
ROWS = {"coco_caption": 21, "general_box_caption": 38, "pointcloud_caption": 23, "scannet_refer": 37}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {"model.itc_gather_grad": False},
    "gathered": {"model.itc_gather_grad": True, "model.soft_targets": True, "run.group_in_workers": True},
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
            "scannet_refer": {"annotations": {"train": {**scenes, "num_points": 96, "dataset_repeat_num": 1, "augment": True}}},
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
            torch.nn.init.normal_(parameter, std=0.5 if name.startswith(("point_encoder", "pc_adapter")) else 0.15)


@contextlib.contextmanager
def doubled(model: torch.nn.Module) -> Iterator[None]:
    """The model in float64, and what it asks to be float32 too: rounding does not hide, or feign, a difference."""
    model.double()
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


class Watch:
    """What the steps of a runner see, draw and update by."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.seen: list[dict[str, Any]] = []
        self.negatives: list[torch.Tensor] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.forward, self.setup, self.draw = runner.task.train_step, runner.setup_training, losses.draw_negatives

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        task, runner = self.runner.task, self.runner
        with (
            mock.patch.object(task, "train_step", self.step),
            mock.patch.object(runner, "setup_training", self.set_up),
            mock.patch.object(losses, "draw_negatives", self.drawn),
        ):
            yield

    def parameters(self) -> dict[str, torch.Tensor]:
        return {name: p for name, p in self.runner.model.named_parameters() if p.requires_grad}

    def step(self, model: Any, samples: dict[str, Any]) -> Any:
        batch = {key: samples[key] for key in ("modality", "text_input", "image_id", "skipped")}
        batch["longest"] = max(len(text.split()) for text in batch["text_input"])
        self.seen.append({**batch, "pictures": len(samples["image"]) if "image" in samples else None})
        return self.forward(model, samples)

    def drawn(self, weights: torch.Tensor) -> torch.Tensor:
        self.negatives.append(self.draw(weights))
        return self.negatives[-1]

    def set_up(self) -> None:
        self.setup()
        self.runner.step.optimizer.register_step_pre_hook(lambda *_: self.gradients.append(self.gradient()))

    def gradient(self) -> dict[str, torch.Tensor]:
        """Averaged over processes and clipped; parameters of other modalities have none."""
        return {name: p.grad.clone() for name, p in self.parameters().items() if p.grad is not None}


def train(path: str, variant: dict[str, Any], out: str, *, double: bool) -> dict[str, Any]:
    """Train; returns what was watched, and the weights. Collective."""
    options = {"run.output_dir": out, "run.batch_size_train": GLOBAL_BATCH // dist_utils.get_world_size()}
    cfg = Config.from_file(path, options=[f"{key}={value}" for key, value in (options | variant).items()])
    runner = build_runner(cfg, splits=["train"], config_name="config")
    spread(runner.model)
    watch = Watch(runner)
    with doubled(runner.model) if double else contextlib.nullcontext(), watch.watching():
        runner.train()
    lines = [json.loads(line) for line in (Path(out) / "log.txt").read_text().splitlines()]
    return {
        "seen": watch.seen,
        "negatives": watch.negatives,
        "gradients": watch.gradients,
        "weights": {name: value.detach().clone() for name, value in watch.parameters().items()},
        "log": [{key: value for key, value in line.items() if key != "timing"} for line in lines],
    }


def train_all(folder: str) -> dict[str, dict[str, Any]]:
    """Every variant in both precisions, on however many processes there are."""
    config, count = str(Path(folder) / "config.yaml"), dist_utils.get_world_size()
    return {
        f"{name} {bits}": train(config, variant, str(Path(folder) / f"{name}{bits}_{count}"), double=bits == 64)
        for name, variant in VARIANTS.items()
        for bits in (32, 64)
    }


def error(one: torch.Tensor, many: torch.Tensor) -> float:
    """Largest difference as a share of the tensor's maximum; 0 where both are 0."""
    difference, most = float((one - many).abs().max()), float(one.abs().max())
    return difference / most if difference else 0.0


def relative_norm(one: dict[str, torch.Tensor], many: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all tensors together, over the norm of the first."""
    assert one.keys() == many.keys()
    pairs = [(one[name].double(), many[name].double()) for name in one]
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(a.square().sum()) for a, _ in pairs))


def check_steps(one: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    """Every process took its share of the same global batches, of one modality in a step, and drew the same negatives."""
    assert len(one["seen"]) == len(one["gradients"]) == 10
    assert {step["modality"] for step in one["seen"]} == {"image", "image_region", "pointcloud", "pointcloud_region"}
    uneven = {"rows": 0, "pictures": 0, "longest": 0, "skipped": 0}
    for number, step in enumerate(one["seen"]):
        parts = [rank["seen"][number] for rank in ranks]
        for key in ("text_input", "image_id", "skipped"):
            assert [item for part in parts for item in part[key]] == step[key]
        assert {part["modality"] for part in parts} == {step["modality"]}
        uneven["rows"] += len({len(part["text_input"]) for part in parts}) > 1
        for key in ("pictures", "longest"):
            uneven[key] += len({part[key] for part in parts}) > 1
        uneven["skipped"] += sum(bool(part["skipped"]) for part in parts)
    assert min(uneven.values()) >= 1 and uneven["skipped"] == 1, uneven
    assert len(one["negatives"]) == 4  # two steps of images, both ways
    for rank in ranks:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(one["negatives"], rank["negatives"], strict=True))
        assert all(torch.equal(rank["weights"][name], value) for name, value in ranks[0]["weights"].items())


def check_numbers(one: dict[str, Any], many: dict[str, Any], *, double: bool) -> None:
    """Losses, gradients and weights. In float32 a gradient that is the small rest of large terms is left with a larger rounding
    error: there one tensor in fifty may differ by more, and float64 says that it is no more than rounding."""
    tolerance = 1e-9 if double else 1e-5
    for mine, theirs in zip(one["log"], many["log"], strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            if key.startswith("loss") or key == "grad_norm":
                assert theirs[key] == pytest.approx(value, rel=tolerance), f"step {mine['step']}: {key}"
            elif key == "mean":
                flat = [(name, loss) for name, losses_of in value.items() for loss in losses_of]
                assert all(theirs[key][n][loss] == pytest.approx(value[n][loss], rel=tolerance) for n, loss in flat)
            else:
                assert theirs[key] == value, key
    errors = []
    for mine, theirs in zip(one["gradients"], many["gradients"], strict=True):
        assert relative_norm(mine, theirs) < tolerance
        errors += [error(mine[name], theirs[name]) for name in mine]
        assert not any(value.any() for name, value in mine.items() if name.endswith(".key.bias"))
    beyond = sum(value > tolerance for value in errors)
    assert beyond <= (0 if double else len(errors) // 50), f"{beyond} of {len(errors)} gradients, the worst {max(errors):.1e}"
    assert max(errors) < 1e-3
    assert relative_norm(one["weights"], many["weights"]) < (1e-9 if double else 1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The folder of data and model, and what one process gave."""
    folder = tmp_path_factory.mktemp("counts")
    write_data(folder / "data")
    write_config(folder)
    return folder, train_all(str(folder))


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_learn_what_one_does(alone: tuple[Path, dict[str, dict[str, Any]]], count: int) -> None:
    folder, one = alone
    ranks = run_distributed(train_all, str(folder), folder=folder / f"returned{count}", world_size=count)
    for name, expected in one.items():
        check_steps(expected, [rank[name] for rank in ranks])
        check_numbers(expected, ranks[0][name], double=name.endswith("64"))


def test_what_is_compared_is_not_nothing(alone: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    """Every step has a gradient, ITM takes part, and the two variants are two."""
    published, gathered = (alone[1][f"{name} 64"] for name in VARIANTS)
    assert relative_norm(published["weights"], gathered["weights"]) > 1e-6
    assert all(relative_norm(a, b) > 1e-6 for a, b in zip(published["gradients"], gathered["gradients"], strict=True))
    assert all(line["loss_itm"] > 0 for line in published["log"] if line.get("modality") == "image")
