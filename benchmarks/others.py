"""Rows beside the model: points, data, metrics, checkpoints. Each side is what the training or evaluation of that side calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode

from benchmarks import caption_metrics, sizes
from benchmarks.published.points import group
from benchmarks.work import Bench, Row
from lavis.common.checkpoint import load_checkpoint_file, save_checkpoint
from lavis.common.registry import registry
from lavis.datasets.loaders import TaskLoader
from lavis.evaluation.captions import tokenizer
from lavis.models.encoders.point_ops import group_points

PICTURES, EXPRESSIONS, PICTURE = 24, 6, (640, 480)
CLOUDS = 32
CAPTIONS = 1000
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def sampling(size: sizes.Size, points: int, listed: float) -> Row:
    """Farthest points and their groups, for a batch of clouds."""
    clouds = torch.randn(sizes.ROWS, points // size.shrink, 3, generator=torch.Generator().manual_seed(0))
    count, members = size.groups
    start = torch.zeros(len(clouds), dtype=torch.long)
    sides: dict[str, Callable[[], Any]] = {
        "published": lambda: group(clouds, count, members, start),
        "float32": lambda: group_points(clouds, count, members, start=start),
    }

    def differ(_: str) -> float:
        (theirs, their_centres), (ours, our_centres) = sides["published"](), sides["float32"]()
        far = [groups.square().sum(-1).sort(dim=-1).values for groups in (theirs, ours)]
        return max(float((their_centres - our_centres).abs().max()), float((far[0] - far[1]).abs().max()))

    return Row(sides, len(clouds), listed, differ=differ, limits={"float32": 1e-4}, unit="cloud")


# -- data ---------------------------------------------------------------------------------------------------------------------
def write_pictures(folder: Path) -> list[dict[str, Any]]:
    """RefCOCO rows over pictures as large as COCO's: 6 expressions of 3 regions each."""
    rng, rows = np.random.RandomState(0), []
    (folder / "images").mkdir(parents=True)
    for number in range(PICTURES):
        rough = rng.randint(0, 255, (30, 40, 3), dtype=np.uint8)
        name = f"COCO_{number:012d}.jpg"
        Image.fromarray(rough).resize(PICTURE, Image.Resampling.BICUBIC).save(folder / "images" / name, quality=90)
        for place in range(EXPRESSIONS):
            box = [20.0 + 100 * (place % 3), 30.0, 120.0, 200.0]
            rows.append({"image": name, "image_id": str(number), "bbox": box, "caption": f"the thing at {place} ."})
    (folder / "train.json").write_text(json.dumps(rows))
    return rows


class PublishedRegions(Dataset[dict[str, Any]]):
    """A row opens its picture, resizes and normalises it by torchvision, and scales its box."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        self.folder, self.rows = folder, rows
        self.transform = transforms.Compose(
            [transforms.Resize((224, 224), InterpolationMode.BICUBIC), transforms.ToTensor(), transforms.Normalize(*CLIP)]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        picture = Image.open(self.folder / row["image"]).convert("RGB")
        x, y, w, h = row["bbox"]
        wide, high = picture.size
        box = torch.tensor([int(x) / wide, int(y) / high, int(x + w) / wide, int(y + h) / high])
        text = row["caption"].lower().replace(".", " ").strip()
        return {"image": self.transform(picture), "box": box, "text_input": text, "image_id": row["image_id"]}


def write_clouds(folder: Path) -> list[str]:
    """Objects of 8,192 points in the layout of Objaverse with Cap3D's captions."""
    rng, lines = np.random.RandomState(0), []
    for number in range(CLOUDS):
        name = f"object{number:04d}"
        (folder / "clouds" / name).mkdir(parents=True)
        np.savez(folder / "clouds" / name / f"{name}_8192.npz", rng.randn(8192, 3).astype(np.float32))
        lines.append(f"{name},a thing of many points")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return [line.split(",")[0] for line in lines]


class PublishedClouds(Dataset[dict[str, Any]]):
    """A row reads its file, shuffles, centres, scales and augments the points."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        points = np.load(self.folder / name / f"{name}_8192.npz")["arr_0"].astype(np.float32)
        order = np.arange(len(points))
        np.random.shuffle(order)
        points = points[order]
        points = points - points.mean(axis=0)
        points = points / np.max(np.sqrt(np.sum(points**2, axis=1)))
        dropped = np.where(np.random.random(len(points)) <= np.random.random() * 0.875)[0]
        points[dropped] = points[0]
        points = points * np.random.uniform(0.8, 1.25, 1) + np.random.uniform(-0.1, 0.1, (1, 3))
        for axis, angle in enumerate(np.clip(0.06 * np.random.randn(3), -0.18, 0.18)):
            points = points @ turn(axis, angle)
        points = points @ turn(1, np.random.uniform() * 2 * np.pi)
        return {"pointcloud": torch.from_numpy(points).float(), "text_input": "a thing of many points", "image_id": name}


def turn(axis: int, angle: float) -> np.ndarray:
    """A rotation [3, 3] about an axis."""
    matrix, (i, j) = np.eye(3), [k for k in range(3) if k != axis]
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def loading(dataset: Dataset[Any], name: str, config: dict[str, Any], count: int) -> Row:
    """An epoch of batches of 8 in the main process: torch's loader over the published items, and ours."""
    theirs = DataLoader(dataset, batch_size=sizes.ROWS, shuffle=True, num_workers=0, drop_last=True)
    built = registry.get_builder_class(name)(config).build_datasets(splits=["train"])["train"]
    ours = TaskLoader(built, batch_size=sizes.ROWS, seed=0)
    count = count // sizes.ROWS * sizes.ROWS
    return Row({"published": lambda: sum(1 for _ in theirs), "float32": lambda: sum(1 for _ in ours.epoch(0))}, count)


def region_config(folder: Path, pixels: int) -> dict[str, Any]:
    """The configuration of `general_box_caption` over what `write_pictures` wrote."""
    return {
        "vis_processor": {"train": {"name": "general_box_caption_img_trainval", "image_size": pixels}},
        "text_processor": {"train": {"name": "blip_caption"}},
        "build_info": {
            "annotations": {"train": {"storage": str(folder / "train.json")}}, "images": {"storage": str(folder / "images")}
        },
    }  # fmt: skip


def region_loading(folder: Path) -> Row:
    rows = write_pictures(folder)
    return loading(PublishedRegions(folder / "images", rows), "general_box_caption", region_config(folder, 224), len(rows))


def cloud_loading(folder: Path) -> Row:
    names = write_clouds(folder)
    info = {
        "annotations": {"train": {"storage": str(folder / "train.csv")}}, "pointcloud": {"storage": str(folder / "clouds")}
    }  # fmt: skip
    return loading(PublishedClouds(folder / "clouds", names), "pointcloud_caption", {"build_info": info}, len(names))


# -- metrics and checkpoints --------------------------------------------------------------------------------------------------
def metrics() -> Row:
    """BLEU, ROUGE-L and CIDEr of captions with 5 references each: pycocoevalcap's scorers, and ours."""
    meant, said = caption_metrics.generate(CAPTIONS, 5, seed=0)

    def ours() -> dict[str, Any]:
        tokenizer.forget()
        return caption_metrics.ours(meant, said)

    def theirs() -> dict[str, Any]:
        tokenizer.forget()
        return caption_metrics.theirs(meant, said)

    def differ(_: str) -> float:
        found, own = theirs(), ours()
        return max(abs(found[name][0] - own[name][0]) for name in found)

    return Row({"published": theirs, "float32": ours}, CAPTIONS, differ=differ, limits={"float32": 1e-4}, unit="caption")


def checkpoints(bench: Bench, folder: Path, *, loads: bool) -> Row:
    """Saving or loading weights that learn and AdamW's state: torch.save and torch.load, and ours with hash, fsync and rename."""
    folder.mkdir()
    weights = {name: p.detach() for name, p in bench.model.named_parameters() if p.requires_grad}
    moments = {name: {"exp_avg": torch.rand_like(p), "exp_avg_sq": torch.rand_like(p)} for name, p in weights.items()}
    state = {"model": weights, "optimizer": moments}
    plain, own = folder / "plain.pth", folder / "checkpoint_0.pth"
    torch.save(state, plain)
    save_checkpoint(state, own)
    if loads:
        sides: dict[str, Callable[[], object]] = {
            "published": lambda: torch.load(plain, map_location="cpu"),
            "float32": lambda: load_checkpoint_file(own),
        }
    else:
        sides = {"published": lambda: torch.save(state, plain), "float32": lambda: save_checkpoint(state, own)}
    return Row(sides, 1, unit="checkpoint")


def rows(bench: Bench, folder: Path) -> dict[str, Callable[[Sequence[str]], Row]]:
    """Every row of this file, made when it is its turn."""
    return {
        "points_8192": lambda _: sampling(bench.size, 8192, 44.0),
        "points_40000": lambda _: sampling(bench.size, 40000, 323.5),
        "data_regions": lambda _: region_loading(folder / "regions"),
        "data_clouds": lambda _: cloud_loading(folder / "clouds"),
        "metrics": lambda _: metrics(),
        "checkpoint_save": lambda _: checkpoints(bench, folder / "saved", loads=False),
        "checkpoint_load": lambda _: checkpoints(bench, folder / "loaded", loads=True),
    }
