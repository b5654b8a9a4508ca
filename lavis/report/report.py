"""The page that shows a quickstart run: one HTML file with its pictures and charts inside, nothing fetched.

The layout is in templates/report.html and templates/report.css; here are only the numbers and words it is
given. Everything that a report lacks is shown as a dash.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis.evaluation.files import write_text
from lavis.report.pages import render
from lavis.report.report_parts import Sample, charts, grouped, picture

DASH = "\u2013"
MODEL = "RegionBLIP"
COLUMNS = ("attribute_accuracy", "CIDEr", "Bleu_4", "ROUGE_L")


def write_report_html(
    report: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    samples: Iterable[Sample],
) -> Path:
    """Write `report` (the content of report.json) as one self-contained HTML page; returns its path.

    curves   {name: [(step, loss), ...]}. Names "group / chart / line" (or "chart / line") of one chart are drawn
             together, charts of one group beside each other.
    samples  test samples in the order to show: {"image": PIL picture, or "image_path", "box_xyxy": pixels (or none),
             "prediction", "references": [...], "correct": bool, "scores": {name: number}, "group": heading (or none)}.
    """
    shown = [{**sample, "picture": picture(sample)} for sample in samples]
    text = render(
        "report.html",
        filters={"share": share, "number": number, "duration": duration},
        styles=("report.css",),
        headline=headline(report),
        lede=lede(report),
        tiles=tiles(report),
        bars=bars(report),
        groups=table(report),
        encoder=point_encoder(report),
        charts=grouped(charts(curves)),
        samples=grouped(shown),
        footer=footer(report),
    )
    return write_text(text, path)


def share(value: Any) -> str:
    """0.934 -> "93.4%"."""
    return DASH if value is None else f"{100 * float(value):.1f}%"


def number(value: Any) -> str:
    """Three decimals, or a dash."""
    return DASH if value is None else f"{float(value):.3f}"


def duration(seconds: Any) -> str:
    """Seconds in words: "41 s", "12 min 5 s"."""
    if seconds is None:
        return DASH
    minutes, rest = divmod(round(float(seconds)), 60)
    return f"{minutes} min {rest:02d} s" if minutes else (f"{float(seconds):.1f} s" if rest < 10 else f"{rest} s")


def headline(report: Mapping[str, Any]) -> str:
    """One sentence that says what the run showed: how often what a box holds, and what an object is, is named."""
    found = {
        "pointed at a box in a generated image": _metric(report, "rows", "image_region"),
        "at a box in a generated room": _metric(report, "rows", "pointcloud_region"),
        "at a generated object": _metric(report, "rows", "pointcloud"),
    }
    known = [(what, value) for what, value in found.items() if value is not None]
    if not known:
        return "This run holds no evaluation of regions yet."
    (first, best), *others = known
    start = first if first.startswith("pointed") else f"pointed {first}"
    rest = "".join(f"; {what}, {share(value)}" for what, value in others)
    return f"{start.capitalize()}, the model names what is there {share(best)} of the time{rest}."


def lede(report: Mapping[str, Any]) -> str:
    """One sentence on what the increments did to the captions that came before them; empty where nothing is known."""
    known = [
        (report.get("image_captions_identical"), "of whole pictures before and after both increments"),
        (report.get("region_captions_identical"), "of boxes in pictures before and after it learned clouds"),
    ]
    same = [what for identical, what in known if identical]
    changed = [what for identical, what in known if identical is False]
    said = [f"It says the same, word for word, {', and '.join(same)}."] if same else []
    return " ".join([*said, *(f"Its captions {what} differ." for what in changed)])


def tiles(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The eight numbers on top, a row on what is named and a row on what stayed: {value, name, meaning, main}."""
    rows = [
        (
            share(_metric(report, "rows", "image_region")),
            "boxes in pictures",
            "Test boxes whose caption says the right colour and the right kind, and no other.",
        ),
        (
            share(_metric(report, "rows", "pointcloud_region")),
            "boxes in rooms",
            "Things in test rooms, pointed at by the corners of a box, named by kind and proportion.",
        ),
        (
            share(_metric(report, "rows", "pointcloud")),
            "objects as point clouds",
            "Test objects whose caption has kind, proportion and posture right, all three.",
        ),
        (
            share(_metric(report, "rows", "image")),
            "things in whole pictures",
            "Things of a test picture that its caption names by colour and kind, with no box given.",
        ),
        (
            share(report.get("box_following")),
            "captions follow the box",
            "Pairs of different things in one picture whose captions differ in colour or kind as well.",
        ),
        (
            share(report.get("corner_following")),
            "captions follow the corners",
            "The same in rooms: pairs of different things whose captions differ in kind or proportion.",
        ),
        (
            _same(report.get("image_captions_identical")),
            "captions of whole pictures",
            "By the frozen base alone, after learning regions, and again after learning clouds.",
        ),
        (
            _same(report.get("region_captions_identical")),
            "captions of boxes in pictures",
            "After learning regions, and again after learning clouds.",
        ),
    ]
    return [
        {"value": value, "name": name, "meaning": meaning, "main": place < 4} for place, (value, name, meaning) in enumerate(rows)
    ]


def bars(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Attribute accuracy where a box is given, of the model and of what it must beat, pictures first, then rooms:
    {name, bars: [{name, value in [0, 1], main}]}. A group without a value is left out."""
    rooms = _baselines(report, "pointcloud_region")
    groups = {
        "Boxes in pictures": [
            ("with the position", _metric(report, "rows", "image_region")),
            ("without the position", _metric(report, "ablation_no_position")),
            ("text only", _metric(_of_regions(report.get("text_only")))),
            ("chance", _metric(_of_regions(report.get("chance")))),
        ],
        "Boxes in rooms": [
            ("with the corners", _metric(report, "rows", "pointcloud_region")),
            ("without the corners", _metric(report, "ablation_no_corners")),
            ("text only", _metric(rooms, "text_only")),
            ("chance", _metric(rooms, "chance")),
        ],
    }
    found = [
        {
            "name": group,
            "bars": [
                {"name": name, "value": value, "main": place == 0}
                for place, (name, value) in enumerate(rows)
                if value is not None
            ],
        }
        for group, rows in groups.items()
    ]
    return [group for group in found if group["bars"]]


def table(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups {name, rows: [{name, note, main, values: [attribute_accuracy, CIDEr, Bleu_4, ROUGE_L]}]}."""
    rows = report.get("rows") or {}
    objects, rooms = _baselines(report, "pointcloud"), _baselines(report, "pointcloud_region")
    groups = {
        "Whole pictures": [
            ("Base alone", "before any region was seen", report.get("image_before")),
            ("After region training", "the same pictures", report.get("image_after_region")),
            ("After clouds", "the same pictures", rows.get("image")),
        ],
        "Image regions": [
            (MODEL, "the box reaches the queries", rows.get("image_region")),
            ("Without position", "same data, steps and seed", report.get("ablation_no_position")),
            ("Text only", "likeliest training text", _of_regions(report.get("text_only"))),
            ("Chance", "guesses", _of_regions(report.get("chance"))),
        ],
        "Objects as point clouds": [
            (MODEL, _each(rows.get("pointcloud")), rows.get("pointcloud")),
            ("Text only", "likeliest training text", objects.get("text_only")),
            ("Chance", "guesses", objects.get("chance")),
        ],
        "Objects in rooms": [
            (MODEL, _each(rows.get("pointcloud_region")), rows.get("pointcloud_region")),
            ("Without corners", "same data, steps and seed", report.get("ablation_no_corners")),
            ("Text only", "likeliest training text", rooms.get("text_only")),
            ("Chance", "guesses", rooms.get("chance")),
        ],
    }
    return [
        {
            "name": group,
            "rows": [
                {"name": name, "note": note, "main": name == MODEL, "values": [(found or {}).get(column) for column in COLUMNS]}
                for name, note, found in members
            ],
        }
        for group, members in groups.items()
    ]


def point_encoder(report: Mapping[str, Any]) -> dict[str, Any]:
    """How the point encoder came to its weights: {objective, held_out: [(name, share)]}."""
    found = report.get("point_encoder") or {}
    return {"objective": found.get("objective") or DASH, "held_out": list((found.get("held_out") or {}).items())}


def footer(report: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds per stage with their share of the longest, the sum, the peak memory and the versions."""
    seconds = {str(name): float(value) for name, value in (report.get("wall_seconds") or {}).items()}
    total = seconds.pop("total", sum(seconds.values()))
    longest = max(seconds.values(), default=0.0) or 1.0
    return {
        "stages": [
            {"name": name.replace("_", " "), "seconds": value, "part": value / longest} for name, value in seconds.items()
        ],
        "total": total,
        "memory": report.get("peak_memory_gb"),
        "versions": dict(report.get("versions") or {}),
    }


def _same(identical: bool | None) -> str:
    return DASH if identical is None else ("identical" if identical else "changed")


def _each(metrics: Mapping[str, Any] | None) -> str:
    """The attributes one by one: "kind 97.1%, posture 99.0%"."""
    return ", ".join(f"{name} {share(value)}" for name, value in ((metrics or {}).get("attributes") or {}).items()) or DASH


def _baselines(report: Mapping[str, Any], modality: str) -> Mapping[str, Any]:
    return (report.get("baselines") or {}).get(modality) or {}


def _of_regions(entry: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The metrics of regions where an entry keeps one object per modality, else the entry itself."""
    return entry["image_region"] if entry and "image_region" in entry else entry


def _metric(report: Mapping[str, Any] | None, *keys: str) -> float | None:
    """The attribute accuracy of the object that `keys` lead to; None where there is none."""
    found: Any = report
    for key in keys:
        found = (found or {}).get(key)
    value = (found or {}).get("attribute_accuracy")
    return None if value is None else float(value)
