"""Puts the quickstart's results together: report.json and report.html.

Everything is read from what the runs wrote: result files, evaluate.txt, log.txt, and the truth of the generated scenes.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import transformers

import lavis
from lavis.datasets.geometry import region_id
from lavis.datasets.quickstart_things import COLOURS, KINDS
from lavis.evaluation import attributes
from lavis.evaluation.caption import caption_metrics
from lavis.evaluation.report import write_report_html

VOCABULARY = attributes.Vocabulary(colours=COLOURS, kinds=KINDS)
CAPTION_METRICS = ("CIDEr", "Bleu_4", "ROUGE_L")
CHARTS = {"Language model": "loss_llm", "Box regression": "loss_reg", "Contrast": "loss_itc", "Q-Former text": "loss_lm"}
GALLERY = 24

Captions = dict[str, str]
Thing = tuple[str, str]


class Truth:
    """What the generated scenes hold."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.scenes = {scene["image_id"]: scene for scene in _read(data / "annotations/scenes_test.json")}
        training = _read(data / "annotations/scenes_train.json")
        self.training_things = [_thing(thing) for scene in training for thing in scene["things"]]
        self.training_texts = {
            name: [row["caption"] for row in _read(data / "annotations" / f"{stem}_train.json")]
            for name, stem in (("image", "coco_karpathy"), ("image_region", "Refcoco"))
        }
        self.regions: dict[str, Thing] = {}  # region id -> colour and kind
        self.image_of: dict[str, str] = {}
        self.boxes: dict[str, list[float]] = {}
        for image_id, scene in self.scenes.items():
            for thing in scene["things"]:
                key = region_id(image_id, thing["bbox"])
                self.regions[key], self.image_of[key], self.boxes[key] = _thing(thing), image_id, thing["bbox"]

    @property
    def things(self) -> dict[str, list[Thing]]:
        """The things of every test image."""
        return {image_id: [_thing(thing) for thing in scene["things"]] for image_id, scene in self.scenes.items()}


def _thing(thing: Mapping[str, Any]) -> Thing:
    return thing["colour"], thing["kind"]


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def results(folder: Path) -> tuple[Captions, Path]:
    """Captions by id, and the ground truth they were scored against, of an evaluation."""
    (path,) = (folder / "result").glob("*_epochbest.json")
    (truth,) = (folder / "result").glob("*_ground_truth.json")
    return {str(row["image_id"]): row["caption"] for row in _read(path)}, truth


def metrics_of(folder: Path) -> dict[str, float]:
    """CIDEr, Bleu_4 and ROUGE_L of the last line of evaluate.txt."""
    last = json.loads((folder / "evaluate.txt").read_text("utf-8").strip().split("\n")[-1])
    flat = {key: value for part in (last, *(v for v in last.values() if isinstance(v, dict))) for key, value in part.items()}
    return {name: float(flat[name]) for name in CAPTION_METRICS}


def scored(captions: Captions, ground_truth: Path) -> dict[str, float]:
    """Caption metrics of captions that no run made (chance, text only)."""
    rows = [{"image_id": row["id"], "caption": captions[str(row["id"])]} for row in _read(ground_truth)["images"]]
    found = caption_metrics(ground_truth, rows, metrics=("Bleu", "ROUGE_L", "CIDEr"))
    return {name: float(found[name]) for name in CAPTION_METRICS}


def collect(output: Path, truth: Truth) -> tuple[dict[str, Any], Captions]:
    """All numbers of the report but those of the clock, and the captions of the regions."""
    captions = {name: results(output / name) for name in ("image_before", "image", "image_region", "no_position")}
    numbers = {name: metrics_of(output / name) for name in captions}
    for name, (said, _) in captions.items():
        if name.startswith("image_region") or name == "no_position":
            numbers[name]["attribute_accuracy"] = attributes.attribute_accuracy(said, truth.regions, vocabulary=VOCABULARY)
        else:
            numbers[name]["attribute_accuracy"] = attributes.things_named(said, truth.things, vocabulary=VOCABULARY)
    before, after = captions["image_before"][0], captions["image"][0]
    regions, ground_truth = captions["image_region"]
    report = {
        "rows": {
            "image": {**numbers["image"], "samples": len(after), "distinct_captions": len(set(after.values()))},
            "image_region": {**numbers["image_region"], "samples": len(regions)},
        },
        "image_before": {**numbers["image_before"], "samples": len(before)},
        "image_captions_identical": before == after,
        "ablation_no_position": {**numbers["no_position"], "samples": len(captions["no_position"][0])},
        "box_following": attributes.box_following(regions, truth.regions, truth.image_of, vocabulary=VOCABULARY),
        **baselines(truth, ground_truth),
    }
    return report, regions


def baselines(truth: Truth, ground_truth: Path) -> dict[str, Any]:
    """What needs no picture: the likeliest training expression for every region, and one drawn at random."""
    texts = truth.training_texts["image_region"]
    always = attributes.most_likely_caption(texts)
    found: dict[str, Any] = {}
    for name, said in {
        "text_only": dict.fromkeys(truth.regions, always),
        "chance": attributes.chance_captions(texts, truth.regions, seed=0),
    }.items():
        accuracy = attributes.attribute_accuracy(said, truth.regions, vocabulary=VOCABULARY)
        found[name] = {**scored(said, ground_truth), "attribute_accuracy": accuracy, "samples": len(said)}
    found["text_only"]["caption"] = always
    found["chance"]["majority_thing"] = attributes.majority_accuracy(truth.training_things, truth.regions.values())
    return found


def loss_curves(output: Path) -> dict[str, list[tuple[int, float]]]:
    """{"chart / line": [(step, loss), ...]} from the step lines of both runs' log.txt."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line_name, run in (("with position", "region"), ("without position", "ablation")):
        lines = [json.loads(line) for line in (output / run / "log.txt").read_text("utf-8").splitlines()]
        for chart, loss in CHARTS.items():
            curves[f"{chart} / {line_name}"] = [(line["step"], float(line[loss])) for line in lines if "modality" in line]
    return dict(sorted(curves.items()))


def gallery(truth: Truth, captions: Captions, ground_truth: Path) -> list[dict[str, Any]]:
    """Some test regions, spread over the images, with their pictures, boxes, captions and scores."""
    rows = [{"image_id": key, "caption": text} for key, text in captions.items()]
    scores = caption_metrics(ground_truth, rows, metrics=("CIDEr",), per_sample=True)["per_sample"]
    references = references_of(ground_truth)
    keys = list(truth.regions)
    samples = []
    for key in (keys[i * len(keys) // GALLERY] for i in range(GALLERY)):
        scene, (x, y, w, h) = truth.scenes[truth.image_of[key]], truth.boxes[key]
        samples.append(
            {
                "image_path": truth.data / "images" / scene["image"],
                "box_xyxy": [x, y, x + w, y + h],
                "prediction": captions[key],
                "references": references[key],
                "correct": attributes.names_thing(captions[key], truth.regions[key]),
                "scores": scores[key],
            }
        )
    return samples


def references_of(ground_truth: Path) -> dict[str, list[str]]:
    """All references by id."""
    found: dict[str, list[str]] = {}
    for row in _read(ground_truth)["annotations"]:
        found.setdefault(str(row["image_id"]), []).append(row["caption"])
    return found


def write_report(output: Path, *, wall_seconds: Mapping[str, float], peak_memory_gb: float) -> dict[str, Any]:
    """Write report.json and report.html below `output`; returns the report."""
    truth = Truth(output / "data")
    report, captions = collect(output, truth)
    report |= {
        "wall_seconds": {**wall_seconds, "total": round(sum(wall_seconds.values()), 1)},
        "peak_memory_gb": round(peak_memory_gb, 2),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "timm": timm.__version__,
            "lavis": lavis.__version__,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        },
    }
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    write_report_html(
        report,
        output / "report.html",
        curves=loss_curves(output),
        samples=gallery(truth, captions, results(output / "image_region")[1]),
    )
    return report
