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
from lavis.evaluation.report_parts import Sample, charts, picture

TEMPLATES = Path(__file__).resolve().parent / "templates"
DASH = "\u2013"
COLUMNS = ("attribute_accuracy", "CIDEr", "Bleu_4", "ROUGE_L")


def write_report_html(
    report: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    samples: Iterable[Sample],
) -> Path:
    """Write `report` (the content of report.json) as one self-contained HTML page; returns its path.

    curves   {name: [(step, loss), ...]}. Names "chart / line" with the same chart are drawn together.
    samples  test regions in the order to show: {"image": PIL picture, or "image_path", "box_xyxy": pixels,
             "prediction", "references": [...], "correct": bool, "scores": {name: number}}.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    shown = [{**sample, "picture": picture(sample)} for sample in samples]
    page = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters.update(share=share, number=number, duration=duration)
    text = page.get_template("report.html").render(
        css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        headline=headline(report),
        tiles=tiles(report),
        bars=bars(report),
        groups=table(report),
        charts=charts(curves),
        samples=shown,
        num_right=sum(bool(sample["correct"]) for sample in shown),
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
    """One sentence that says what the run showed."""
    region, blind = _metric(report, "rows", "image_region"), _metric(report, "ablation_no_position")
    if region is None:
        return "This run holds no evaluation of regions yet."
    if blind is None or region <= blind:
        return f"Pointed at a box, the model names what is in it {share(region)} of the time."
    return f"Pointed at a box, the model names what is in it {share(region)} of the time; without the position, {share(blind)}."


def tiles(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The four numbers on top: {value, name, meaning}."""
    identical = report.get("image_captions_identical")
    kept = DASH if identical is None else ("identical" if identical else "changed")
    return [
        {
            "value": share(_metric(report, "rows", "image_region")),
            "name": "regions named right",
            "meaning": "Test regions whose caption says the right colour and the right kind.",
        },
        {
            "value": share(report.get("box_following")),
            "name": "captions follow the box",
            "meaning": "Pairs of different things in one picture whose captions differ in colour or kind as well.",
        },
        {
            "value": share(_metric(report, "rows", "image")),
            "name": "things named in whole pictures",
            "meaning": "Things of a test picture that its caption names by colour and kind, with no box given.",
        },
        {
            "value": kept,
            "name": "picture captions, before and after",
            "meaning": "Captions of whole pictures by the frozen base alone, and again after learning regions.",
        },
    ]


def bars(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Attribute accuracy on regions, the model and what it must beat: {name, value in [0, 1]}."""
    rows = [
        ("with the position", _metric(report, "rows", "image_region"), True),
        ("without the position", _metric(report, "ablation_no_position"), False),
        ("text only", _metric(_of_regions(report.get("text_only"))), False),
        ("chance", _metric(_of_regions(report.get("chance"))), False),
    ]
    return [{"name": name, "value": value, "main": main} for name, value, main in rows if value is not None]


def table(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups of rows {name, note, values: [attribute_accuracy, CIDEr, Bleu_4, ROUGE_L]}."""
    rows = report.get("rows", {})
    image = [
        ("Base alone", "before any region was seen", report.get("image_before")),
        ("After region training", "the same pictures", rows.get("image")),
    ]
    region = [
        ("RegionBLIP", "the box reaches the queries", rows.get("image_region")),
        ("Without position", "same data, steps and seed", report.get("ablation_no_position")),
        ("Text only", "likeliest training text", _of_regions(report.get("text_only"))),
        ("Chance", "guesses", _of_regions(report.get("chance"))),
    ]
    return [
        {"name": name, "rows": [{"name": row, "note": note, "values": _values(found)} for row, note, found in rows_of]}
        for name, rows_of in (("Whole pictures", image), ("Regions", region))
    ]


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


def _values(metrics: Mapping[str, Any] | None) -> list[Any]:
    return [(metrics or {}).get(column) for column in COLUMNS]


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
