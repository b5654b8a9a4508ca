"""The gallery of a caption evaluation: samples from worst to best on one HTML page, to be looked through, filtered and turned.

It is made of what the evaluation wrote (`score_file`) and of the dataset, which is asked for pictures and clouds once more. The
layout is in templates/gallery.html, .css and .js.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis.evaluation.captions.ground_truth import read_references
from lavis.evaluation.files import read_json, write_text
from lavis.report.gallery_pictures import shown
from lavis.report.pages import render

ORDERED_BY = ("CIDEr", "CIDEr-D", "CIDEr_plain", "SPICE", "METEOR", "ROUGE_L", "Bleu_4", "Bleu_1")  # the first that there is
BARS = 32  # of the chart that shows how scores are spread
MAX_REASON = 300  # characters of why a sample has no picture

Sample = Mapping[str, Any]  # a row of a score file


@dataclass(frozen=True)
class Gallery:
    """A gallery that was written: how many samples of how many it shows, and why some of them have no picture."""

    path: Path
    shown: int
    total: int
    problems: list[str]  # "<id>: reason"


def write_gallery(
    scores: str | os.PathLike[str], path: str | os.PathLike[str], *, dataset: Any, count: int, name: str
) -> Gallery:
    """Write `count` samples of the evaluation whose score file is `scores` as the page `path`; `name`: what the page calls it.

    A sample whose picture or cloud cannot be read keeps its place and says why. ValueError: a score file or ground truth that
    cannot be read, or one without scores.
    """
    content = read_json(scores)
    metric = ordering_metric(content["samples"])
    ordered = worst_first(content["samples"], metric)
    chosen = spread_evenly(ordered, count)
    references = {str(key): texts for key, texts in read_references(content["ground_truth"]["path"]).items()}
    rows = rows_by_id(dataset, {str(sample["image_id"]) for sample in chosen})
    cards = [card(sample, dataset, rows=rows, references=references, metric=metric) for sample in chosen]
    for place, number in enumerate(sorted(range(len(cards)), key=lambda at: by_numbers(cards[at]["id"]))):
        cards[number]["by_id"] = place
    scored = [sample["scores"].get(metric) for sample in ordered]
    text = render(
        "gallery.html",
        filters={"score": score},
        styles=("report.css", "gallery.css"),
        scripts=("cloud_viewer.js", "gallery.js"),
        name=name,
        dataset=content["settings"].get("dataset") or getattr(dataset, "name", ""),
        metric=metric,
        metrics=overall(content["metrics"]),
        num_missing=content["num_missing"],
        bars=bars(scored),
        cards=cards,
        ratio=frame_ratio(cards),
        total=len(ordered),
        problems=sum(bool(found["problem"]) for found in cards),
    )
    problems = [f"{found['id']}: {found['problem']}" for found in cards if found["problem"]]
    return Gallery(write_text(text, path), len(cards), len(ordered), problems)


# Which samples, and in which order


def ordering_metric(samples: Sequence[Sample]) -> str:
    """The metric that samples are sorted by: CIDEr where it was computed. ValueError where there are no scores."""
    there = {name for sample in samples for name in sample["scores"]}
    for name in (*ORDERED_BY, *sorted(there)):
        if name in there:
            return name
    raise ValueError("the evaluation has no score per sample, which a gallery is sorted by; run.caption_metrics names none")


def worst_first(samples: Sequence[Sample], metric: str) -> list[Sample]:
    """Samples by their score, the lowest first; of equal ones the order stays. What has no score, or none that is a number,
    comes before all."""
    return sorted(samples, key=lambda sample: -math.inf if (value := sample["scores"].get(metric)) is None else value)


def spread_evenly(ordered: Sequence[Sample], count: int) -> list[Sample]:
    """`count` of the samples at equal distances, the first and the last among them; all where there are no more."""
    if len(ordered) <= count:
        return list(ordered)
    if count == 1:
        return [ordered[0]]
    return [ordered[round(place * (len(ordered) - 1) / (count - 1))] for place in range(count)]


def by_numbers(key: str) -> list[tuple[int, int, str]]:
    """What to sort ids by, so that 9 comes before 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", key)]


def rows_by_id(dataset: Any, wanted: set[str]) -> dict[str, int]:
    """{id: its first row in the dataset} of the ids that are wanted."""
    found: dict[str, int] = {}
    for index, row in enumerate(getattr(dataset, "rows", ())):
        key = str(row["image_id"])
        if key in wanted:
            found.setdefault(key, index)
    return found


# What is said of them


def card(
    sample: Sample, dataset: Any, *, rows: Mapping[str, int], references: Mapping[str, list[str]], metric: str
) -> dict[str, Any]:
    """All that the page shows of one sample: {id, prediction, references, score, scores, missing, picture, cloud, problem}."""
    key = str(sample["image_id"])
    found: dict[str, Any] = {"picture": None, "cloud": None, "problem": ""}
    try:
        if key not in rows:
            raise LookupError("not among the rows of the dataset")
        found |= shown(dataset, rows[key])
    except Exception as error:  # a broken file raises almost anything, and costs this picture only
        reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        found["problem"] = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]} ..."
    return {
        "id": key,
        "prediction": sample["caption"],
        "missing": bool(sample.get("missing")),
        "references": references.get(key) or sample["references"],
        "score": sample["scores"].get(metric),
        "scores": sample["scores"],
        **found,
    }


def frame_ratio(cards: Sequence[Mapping[str, Any]]) -> float:
    """Width by height of the frames that all pictures are shown in: that of the middle one, within limits; 1 for clouds."""
    ratios = sorted(found["picture"]["width"] / found["picture"]["height"] for found in cards if found["picture"])
    return min(max(ratios[len(ratios) // 2], 0.8), 1.5) if ratios else 1.0


def overall(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics of the whole evaluation: [{name, value, interval: [low, high] or None}]."""
    return [
        {"name": name, "value": float(value), "interval": metrics.get(f"{name}_ci95")}
        for name, value in metrics.items()
        if isinstance(value, float) and name != "agg_metrics"
    ]


def bars(scores: Sequence[float | None]) -> dict[str, Any]:
    """How many samples have which score: {heights: shares of the highest, counts, width: of a bar in scores, end}."""
    known = [value for value in scores if value is not None]
    highest = max([*known, 0.0])
    width = nice(highest / BARS)
    counts = [0] * max(1, math.ceil(highest / width + 1e-9))
    for value in known:
        counts[min(int(max(value, 0.0) / width), len(counts) - 1)] += 1
    heights = [count / (max(counts) or 1) for count in counts]
    return {"counts": counts, "heights": heights, "width": width, "end": width * len(counts)}


def nice(value: float) -> float:
    """The next round number from `value` up: 1, 2 or 5 times a power of ten; for 0 a tenth."""
    if not value > 0:
        return 0.1
    power = 10.0 ** math.floor(math.log10(value))
    return round(next(power * factor for factor in (1, 2, 5, 10) if power * factor >= value * (1 - 1e-9)), 12)


def score(value: float | None) -> str:
    """Two digits after the point; a dash for none."""
    return "\u2013" if value is None else f"{value:.2f}"
