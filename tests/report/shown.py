"""Evaluations on disk, small or as large as galleries get, with the datasets that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavis.datasets.datasets.objaverse import ObjectCaptionEvalDataset
from lavis.datasets.datasets.regions import RegionEvalDataset
from lavis.datasets.datasets.scanrefer import ScanReferEvalDataset
from lavis.evaluation.captions.caption import build_ground_truth, score_captions
from lavis.evaluation.captions.score_file import write_scores
from lavis.report.gallery import Gallery, write_gallery
from tests.datasets.files import cloud_options, options, write_json, write_object, write_scene

WORDS = ("red", "green", "blue", "small", "tall", "old", "round", "dark", "chair", "table", "lamp", "horse", "dog", "boat")


def sentence(seed: int, *, words: int = 6) -> str:
    return "a " + " ".join(np.random.RandomState(seed).choice(WORDS, words))


def regions(folder: Path, count: int, *, size: tuple[int, int] = (60, 40)) -> RegionEvalDataset:
    """Regions of as many pictures of noise, which compresses worse than any photograph."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        pixels = np.random.RandomState(number).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=1)
        box = [size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 3]
        rows += [
            {"image": f"{number}.png", "image_id": str(number), "bbox": box, "caption": sentence(10 * number + k)}
            for k in range(3)
        ]
    return RegionEvalDataset(**options(folder, write_json(folder / "test.json", rows), split="test"))


def rooms(folder: Path, count: int, *, points: int = 400) -> ScanReferEvalDataset:
    """Objects of as many rooms, with colours."""
    rows = []
    for number in range(count):
        rng = np.random.RandomState(number)
        array = np.c_[rng.uniform(-2, 2, (points, 3)), rng.randint(0, 256, (points, 3)), np.zeros((points, 3))]
        write_scene(folder / "scenes", f"s{number}", array.astype(np.float32), np.array([[0, 0.5, 0, 1, 0.5, 2, 5, 3]]))
        rows += [{"scene_id": f"s{number}", "object_id": 3, "description": sentence(10 * number + k)} for k in range(3)]
    ann = write_json(folder / "test.json", rows)
    return ScanReferEvalDataset(**cloud_options(folder / "scenes", ann, split="test", modality="pointcloud_region"))


def objects(folder: Path, count: int, *, points: int = 64) -> ObjectCaptionEvalDataset:
    for number in range(count):
        write_object(folder, f"o{number}", np.random.RandomState(number).randn(points, 3))
    (folder / "test.txt").write_text("".join(f"o{number},{sentence(number)}\n" for number in range(count)))
    return ObjectCaptionEvalDataset(**cloud_options(folder, folder / "test.txt", split="test"))


def evaluation(folder: Path, dataset: Any, said: Sequence[str] | None = None, **scoring: Any) -> Path:
    """The score file of an evaluation in which `said` was said of the rows: without it, of each third one its first
    reference, of each third one half of it, of the others anything."""
    truth = folder / "truth.json"
    build_ground_truth(dataset.references(), truth)
    results = []
    for number, row in enumerate(dataset.rows):
        whole = row["captions"][0]
        guess = (whole, " ".join(whole.split()[:4]), sentence(5000 + number))[number % 3]
        results.append({"image_id": row["image_id"], "caption": guess if said is None else said[number]})
    options = {"metrics": ("Bleu", "ROUGE_L", "CIDEr"), "resamples": 10, **scoring}
    settings = {"results": "test_epochbest.json", "dataset": dataset.name}
    scores = score_captions(truth, results, **options)
    return write_scores(scores, folder / "scores.json", ground_truth=truth, settings=settings, versions={})


def gallery(folder: Path, dataset: Any, *, count: int = 48, said: Sequence[str] | None = None, **scoring: Any) -> Gallery:
    scores = evaluation(folder, dataset, said, **scoring)
    return write_gallery(scores, folder / "gallery.html", dataset=dataset, count=count, name="test, epoch best")
