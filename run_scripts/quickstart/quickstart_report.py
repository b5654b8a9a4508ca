"""Puts the quickstart's results together: report.json and report.html.

Everything is read from what the runs wrote: result files, evaluate.txt, log.txt, and the truth of the generated data.
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
from quickstart_truth import ImageRegions, Objects, RoomObjects, Truth, read
from safetensors import safe_open

import lavis
from lavis.evaluation import attributes
from lavis.evaluation.captions.caption import caption_metrics
from lavis.report.report import write_report_html

REPOSITORY = Path(__file__).resolve().parents[2]
CAPTION_METRICS = ("CIDEr", "Bleu_4", "ROUGE_L")
WHOLE_PICTURES = ("image_before", "image", "image_after")
OF_MODALITY = {  # evaluations of things one by one
    "image_region": ("image_region", "image_region_after", "no_position"),
    "pointcloud": ("pointcloud",),
    "pointcloud_region": ("pointcloud_region", "no_corners"),
}
FINAL = {"image_region": "image_region_after", "pointcloud": "pointcloud", "pointcloud_region": "pointcloud_region"}
GALLERY = {"image_region": ("Boxes in pictures", 24), "pointcloud_region": ("Boxes in rooms", 12), "pointcloud": ("Objects", 8)}
CHARTS = {"Language model": "loss_llm", "Box regression": "loss_reg", "Contrast": "loss_itc", "Q-Former text": "loss_lm"}
RUNS = (  # group of charts, modality, {line: run}
    ("Image regions", "image_region", {"with position": "region", "without position": "ablation"}),
    ("Objects as point clouds", "pointcloud", {"with corners": "clouds", "without corners": "clouds_no_corners"}),
    ("Objects in rooms", "pointcloud_region", {"with corners": "clouds", "without corners": "clouds_no_corners"}),
)
POINT_ENCODER = (
    "The small Point-BERT learned, supervised, to read the kind, the proportion and the posture of the thing that each "
    "group of points lies on, on objects and rooms of other seeds; it saw no caption and no box."
)

Captions = dict[str, str]


def results(folder: Path) -> tuple[Captions, Path]:
    """Captions by id, and the ground truth they were scored against, of an evaluation."""
    (path,) = (folder / "result").glob("*_epochbest.json")
    (truth,) = (folder / "result").glob("*_ground_truth.json")
    return {str(row["image_id"]): row["caption"] for row in read(path)}, truth


def metrics_of(folder: Path) -> dict[str, float]:
    """CIDEr, Bleu_4 and ROUGE_L of the last line of evaluate.txt."""
    last = json.loads((folder / "evaluate.txt").read_text("utf-8").strip().split("\n")[-1])
    flat = {key: value for part in (last, *(v for v in last.values() if isinstance(v, dict))) for key, value in part.items()}
    return {name: float(flat[name]) for name in CAPTION_METRICS}


def scored(captions: Captions, ground_truth: Path) -> dict[str, float]:
    """Caption metrics of captions that no run made (chance, text only)."""
    ids = dict.fromkeys(str(row["id"]) for row in read(ground_truth)["images"])
    found = caption_metrics(
        ground_truth, [{"image_id": key, "caption": captions[key]} for key in ids], metrics=("Bleu", "ROUGE_L", "CIDEr")
    )
    return {name: float(found[name]) for name in CAPTION_METRICS}


def named(captions: Captions, truth: Truth) -> dict[str, Any]:
    """How well captions name what their samples hold: all attributes together, and each."""
    return {
        "attribute_accuracy": attributes.attribute_accuracy(captions, truth.things, vocabulary=truth.vocabulary),
        "attributes": attributes.attribute_shares(captions, truth.things, vocabulary=truth.vocabulary),
        "samples": len(captions),
    }


def collect(output: Path, truths: Mapping[str, Truth], whole: Mapping[str, list[attributes.Thing]]) -> dict[str, Any]:
    """All numbers of the report but those of the clock. `truths` by modality; `whole`: the things of each picture."""
    captions, numbers = {}, {}
    for name in WHOLE_PICTURES:
        captions[name], _ = results(output / name)
        accuracy = attributes.things_named(captions[name], whole, vocabulary=ImageRegions.vocabulary)
        numbers[name] = {**metrics_of(output / name), "attribute_accuracy": accuracy, "samples": len(captions[name])}
    for modality, names in OF_MODALITY.items():
        for name in names:
            captions[name], _ = results(output / name)
            numbers[name] = {**metrics_of(output / name), **named(captions[name], truths[modality])}
    regions, rooms = truths["image_region"], truths["pointcloud_region"]
    found = {modality: baselines(truth, results(output / modality)[1]) for modality, truth in truths.items()}
    return {
        "rows": {
            "image": {**numbers["image_after"], "distinct_captions": len(set(captions["image_after"].values()))},
            "image_region": numbers["image_region_after"],
            "pointcloud": numbers["pointcloud"],
            "pointcloud_region": numbers["pointcloud_region"],
        },
        "image_before": numbers["image_before"],
        "image_after_region": numbers["image"],
        "image_captions_identical": captions["image_before"] == captions["image"] == captions["image_after"],
        "region_captions_identical": captions["image_region"] == captions["image_region_after"],
        "ablation_no_position": numbers["no_position"],
        "ablation_no_corners": numbers["no_corners"],
        "box_following": follows(captions["image_region_after"], regions),
        "corner_following": follows(captions["pointcloud_region"], rooms),
        **found.pop("image_region"),
        "baselines": found,
        "point_encoder": point_encoder(),
    }


def follows(captions: Captions, truth: Truth) -> float:
    """Do captions follow the box? See `attributes.box_following`."""
    return attributes.box_following(captions, truth.things, truth.scene_of, vocabulary=truth.vocabulary)


def baselines(truth: Truth, ground_truth: Path) -> dict[str, Any]:
    """What needs no picture: the likeliest training text for every sample ("text_only"), one drawn at random ("chance")."""
    always = attributes.most_likely_caption(truth.training_texts)
    found: dict[str, Any] = {}
    for name, said in {
        "text_only": dict.fromkeys(truth.things, always),
        "chance": attributes.chance_captions(truth.training_texts, truth.things, seed=0),
    }.items():
        found[name] = {**scored(said, ground_truth), **named(said, truth)}
    found["text_only"]["caption"] = always
    found["chance"]["majority_thing"] = attributes.majority_accuracy(truth.training_things, truth.things.values())
    return found


def point_encoder() -> dict[str, Any]:
    """How the frozen Point-BERT came to its weights, and what its file says of clouds that it had not seen (or None)."""
    base = Path(os.environ.get("QUICKSTART_BASE", REPOSITORY / "assets" / "quickstart"))
    with safe_open(base / "pointbert.safetensors", framework="pt") as file:
        held_out = (file.metadata() or {}).get("held_out")
    return {"objective": POINT_ENCODER, "held_out": None if held_out is None else json.loads(held_out)}


def loss_curves(output: Path) -> dict[str, list[tuple[int, float]]]:
    """{"group / chart / line": [(step, loss), ...]} from the step lines of the trainings' log.txt; none of zeros alone."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for group, modality, runs in RUNS:
        for line_name, run in runs.items():
            lines = [json.loads(line) for line in (output / run / "log.txt").read_text("utf-8").splitlines()]
            for chart, loss in CHARTS.items():
                points = [(line["step"], float(line[loss])) for line in lines if line.get("modality") == modality]
                if any(value for _, value in points):
                    curves[f"{group} / {chart} / {line_name}"] = points
    return curves


def gallery(output: Path, truths: Mapping[str, Truth]) -> list[dict[str, Any]]:
    """Some test samples of each modality, spread over the scenes, with their pictures, captions and scores."""
    samples = []
    for modality, (group, count) in GALLERY.items():
        truth = truths[modality]
        captions, ground_truth = results(output / FINAL[modality])
        rows = [{"image_id": key, "caption": text} for key, text in captions.items()]
        scores = caption_metrics(ground_truth, rows, metrics=("CIDEr",), per_sample=True)["per_sample"]
        references = references_of(ground_truth)
        keys = list(truth.things)
        count = min(count, len(keys))
        for key in (keys[i * len(keys) // count] for i in range(count)):
            samples.append(
                {
                    "group": group,
                    **truth.picture(key),
                    "prediction": captions[key],
                    "references": references[key],
                    "correct": attributes.names_thing(captions[key], truth.things[key], vocabulary=truth.vocabulary),
                    "scores": scores[key],
                }
            )
    return samples


def references_of(ground_truth: Path) -> dict[str, list[str]]:
    """All references by id."""
    found: dict[str, list[str]] = {}
    for row in read(ground_truth)["annotations"]:
        found.setdefault(str(row["image_id"]), []).append(row["caption"])
    return found


def write_report(output: Path, *, wall_seconds: Mapping[str, float], peak_memory_gb: float) -> dict[str, Any]:
    """Write report.json and report.html below `output`; returns the report."""
    data = output / "data"
    regions = ImageRegions(data)
    truths: dict[str, Truth] = {"image_region": regions, "pointcloud": Objects(data), "pointcloud_region": RoomObjects(data)}
    report = collect(output, truths, regions.whole) | {
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
    write_report_html(report, output / "report.html", curves=loss_curves(output), samples=gallery(output, truths))
    return report
