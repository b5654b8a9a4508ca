"""Retrieval from files to evaluate.txt, on pictures and on clouds, bad rows among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import evaluate
import train
from lavis.common import dist_utils
from lavis.common.errors import ConfigError
from lavis.datasets.datasets.retrieval import ObjectRetrievalDataset, PictureRetrievalDataset
from lavis.models import load_model_from_config
from lavis.processors import load_processor
from lavis.runners.evaluation import evaluate_dataset
from lavis.tasks import setup_task
from tests import tiny
from tests.datasets.files import cloud_options, options, write_images, write_json, write_object
from tests.distributed import run_distributed
from tests.runners.fakes import FakeDataset, FakeModel, config

PICTURES = load_processor("blip_image_eval", {"image_size": 28})


def write_files(data: Path) -> None:
    """Four pictures with captions, the third broken; the first in two rows; a caption of which nothing is left."""
    write_images(data / "images", [f"val_{i}.jpg" for i in range(4)])
    (data / "images" / "val_2.jpg").write_bytes(b"\xff\xd8\xff")
    captions = [["A red square.", "..."], ["a blue circle"], ["green triangles"], ["a white cube", "a small lamp"]]
    rows = [{"image": f"val_{i}.jpg", "caption": texts} for i, texts in enumerate(captions)]
    write_json(data / "test.json", [*rows, {"image": "val_0.jpg", "caption": ["on the left"]}])
    write_json(
        data / "train.json", [{**row, "caption": row["caption"][0], "image_id": f"coco_{i}"} for i, row in enumerate(rows)]
    )


def test_the_tables_of_pictures(tmp_path: Path) -> None:
    write_files(tmp_path)
    dataset = PictureRetrievalDataset(**options(tmp_path / "images", tmp_path / "test.json", split="test"))
    assert dataset.text == ["a red square", "on the left", "a blue circle", "green triangles", "a white cube", "a small lamp"]
    assert dataset.image == [f"val_{i}.jpg" for i in range(4)] and len(dataset) == 4
    assert dataset.txt2img == {0: 0, 1: 0, 2: 1, 3: 2, 4: 3, 5: 3}
    assert dataset.img2txt == {0: [0, 1], 1: [2], 2: [3], 3: [4, 5]}
    assert [dataset[i]["readable"] for i in range(4)] == [True, True, False, True]


def test_the_tables_of_clouds(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_object(tmp_path, name, np.random.RandomState(0).randn(8, 3).astype(np.float32))
    (tmp_path / "test.txt").write_text("first,A red cube\nsecond,a lamp\nfirst,a white cube\n")
    dataset = ObjectRetrievalDataset(**cloud_options(tmp_path, tmp_path / "test.txt", split="test"))
    assert dataset.text == ["a red cube", "a white cube", "a lamp"] and dataset.image == ["first", "second"]
    assert dataset.img2txt == {0: [0, 1], 1: [2]} and dataset[1]["pointcloud"].shape == (8, 3)


def write_config(folder: Path, **run: Any) -> Path:
    processors: dict[str, Any] = {
        "vis_processor": {split: {"name": "blip_image_eval", "image_size": 28} for split in ("train", "eval")},
        "text_processor": {split: {"name": "blip_caption"} for split in ("train", "eval")},
    }
    files = {split: {"storage": str(folder / "data" / f"{split}.json")} for split in ("train", "test")}
    content = {
        "model": tiny.model_config(folder / "model", "blip2"),
        "datasets": {
            "coco_retrieval": {
                **processors,
                "build_info": {"annotations": files, "images": {"storage": str(folder / "data" / "images")}},
            }
        },
        "run": {
            "task": "retrieval",
            "max_epoch": 1,
            "batch_size_train": 2,
            "batch_size_eval": 3,
            "num_workers": 0,
            "k_test": 3,
            "valid_splits": ["test"],
            "tensorboard": False,
            "output_dir": str(folder / "out"),
            **run,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_training_and_evaluation(tmp_path: Path) -> None:
    write_files(tmp_path / "data")
    assert train.main(["--cfg-path", str(write_config(tmp_path))]) == 0
    trained = json.loads((tmp_path / "out" / "evaluate.txt").read_text().splitlines()[-1])
    chosen = [f"model.pretrained={tmp_path / 'out' / 'checkpoint_0.pth'}", "model.load_pretrained=true"]
    again = write_config(tmp_path, test_splits=["test"], valid_splits=[], output_dir=str(tmp_path / "again"))
    assert evaluate.main(["--cfg-path", str(again), "--options", *chosen]) == 0
    line = json.loads((tmp_path / "again" / "evaluate.txt").read_text().splitlines()[-1])
    metrics = line["test"]
    assert metrics == trained["test"] and (metrics["num_samples"], metrics["num_unreadable"]) == (4, 1)
    assert metrics["txt_r10"] <= 75.0 and metrics["img_r10"] <= 100 * 5 / 6, "the broken picture is never found"
    assert metrics["agg_metrics"] == metrics["txt_r_mean"]


def test_what_cannot_be_evaluated(tmp_path: Path) -> None:
    task = setup_task(config(tmp_path / "out", task="retrieval"))
    with pytest.raises(ConfigError, match="dataset fake has no texts to find"):
        task.before_evaluation(model=FakeModel(), dataset=FakeDataset("fake", "test", modality="image", size=3))


def evaluate_tables(folder: str) -> list[tuple[dict[str, Any], list[bytes]]]:
    """Metrics, and both matrices of scores bit by bit, with batches of several sizes and one model."""
    root = Path(folder)
    dataset = PictureRetrievalDataset(**options(root / "images", root / "test.json", split="test", vis_processor=PICTURES))
    model = load_model_from_config(tiny.model_config(root / "model", "blip2"))
    scores: list[Any] = []
    inner = model.gallery_scores
    model.gallery_scores = lambda *given, **kwargs: scores.append(inner(*given, **kwargs)) or scores[-1]
    evaluated = []
    for batch_size in (1, 3, 4):
        cfg = config(root / str(dist_utils.get_rank()), task="retrieval", batch_size_eval=batch_size, k_test=3)
        arguments = {"run_cfg": cfg.run_cfg, "device": torch.device("cpu"), "name": "test", "epoch": 0}
        output_dir = root / str(dist_utils.get_rank())
        metrics = evaluate_dataset(dataset, model=model, task=setup_task(cfg), output_dir=output_dir, **arguments)
        evaluated.append((metrics, [table.tobytes() for table in scores[-1]]))
    return evaluated


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    """Bit by bit, also where one of them has no batch: each encodes its share."""
    write_files(tmp_path)
    alone = evaluate_tables(str(tmp_path))
    assert all(metrics["num_unreadable"] == 1 for metrics, _ in alone)
    assert run_distributed(evaluate_tables, str(tmp_path), folder=tmp_path / "returned") == [alone, alone]
