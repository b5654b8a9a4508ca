"""The summary of a run as one HTML page: what it learned, what it scored, what it keeps, how it was configured.

Read from what a run leaves in its folder: log.txt (training), evaluate.txt (evaluations), config*.yaml, checkpoint*.pth and the
galleries below result/. What is not there is left out. The layout is in templates/summary.html and .css.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis.common.checkpoint import list_checkpoints
from lavis.common.errors import ConfigError
from lavis.evaluation.files import write_text
from lavis.report.curves import LOG, Point, RunLog, read_log
from lavis.report.curves_figure import EXACT, RUN_PANELS
from lavis.report.pages import render
from lavis.report.report_parts import charts, grouped

EVALUATIONS, PAGE = "evaluate.txt", "summary.html"
CONFIGS = {"config.yaml": "Training", "config_evaluate.yaml": "Evaluation"}
COUNTS = ("num_samples", "num_unreadable", "num_missing", "num_duplicates")  # they close a row of numbers
UNITS = ("bytes", "kB", "MB", "GB", "TB")


def write_summary(run: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Write the summary of the run in a folder (by default as summary.html there); returns its path.

    ConfigError for a folder that holds neither log.txt nor evaluate.txt, or of which neither can be read.
    """
    folder = Path(run)
    target = Path(path) if path else folder / PAGE
    if not any((folder / name).is_file() for name in (LOG, EVALUATIONS)):
        what = "does not exist" if not folder.is_dir() else f"holds neither {LOG} nor {EVALUATIONS}"
        raise ConfigError(f"{folder} {what}; accepted: the output_dir of a training or an evaluation")
    notes: list[str] = []
    log = _read(folder / LOG, read_log, notes)
    rows: list[dict[str, Any]] = _read(folder / EVALUATIONS, read_evaluations, notes) or []
    if log is None and not rows:
        raise ConfigError("; ".join(notes) or f"{folder / EVALUATIONS} holds no evaluation")
    text = render(
        "summary.html",
        filters={"short": short, "size": size, "metric": metric_text},
        styles=("report.css", "summary.css"),
        name=folder.resolve().name,
        lede=lede(log, rows),
        tiles=tiles(log, rows),
        charts=grouped(charts(curves(log), exact=[curve_name(name) for name in EXACT])) if log else [],
        tables=tables(rows),
        galleries=galleries(folder, target),
        checkpoints=checkpoints(folder),
        skipped=skipped(log) if log else [],
        configurations=configurations(folder),
        notes=notes + (log.notes if log else []),
    )
    return write_text(text, target)


def _read(path: Path, read: Any, notes: list[str]) -> Any:
    """What `read` makes of a file; None where it is not there or cannot be read, which the notes then say."""
    if not path.is_file():
        return None
    try:
        return read(path)
    except ConfigError as error:
        notes.append(str(error))
        return None


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """The lines of evaluate.txt: [{name, epoch, dataset, metrics}]. ConfigError for a line that is none of ours."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            parts = {name: value for name, value in row.items() if isinstance(value, dict)}
        except (json.JSONDecodeError, AttributeError) as error:
            raise ConfigError(f"{path}, line {number} is not a line of results: {error}") from error
        common = {"epoch": row.get("epoch", ""), "dataset": str(row.get("dataset", ""))}
        found += [{"name": name, **common, "metrics": metrics} for name, metrics in parts.items()]
    return found


# What is said


def lede(log: RunLog | None, rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence or two: how far training came, what was evaluated."""
    said = []
    if log is not None:
        epochs = f" in {len(log.epoch_ends)} epochs" if len(log.epoch_ends) > 1 else ""
        modalities = ", ".join(name.replace("_", " ") for name in log.losses)
        said.append(f"{log.steps:,} steps{epochs} on {modalities}{'' if log.finished else '; not finished'}.")
    if rows:
        parts = list(dict.fromkeys(f"{row['dataset']} {_split(row)}".strip() for row in rows))
        said.append(f"Evaluated on {', '.join(parts)}.")
    return " ".join(said)


def tiles(log: RunLog | None, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The numbers on top: {value, name, meaning}."""
    found = []
    scored = last_score(rows)
    if scored is not None:
        name, value, row = scored
        found.append((short(value), name, f"{row['dataset']} {_split(row)}, epoch {row['epoch']}"))
    if log is not None:
        lost, unread = len(log.skipped), sum(log.skipped_samples.values())
        applied = "a loss or gradient was not finite" if lost else "every update was applied"
        read = "replaced by others, as they could not be read" if unread else "all could be read"
        found.append((f"{log.steps:,}", "steps", "the whole run" if log.finished else "not finished"))
        found.append((f"{lost:,}", "skipped steps", applied))
        found.append((f"{unread:,}", "skipped samples", read))
    return [{"value": value, "name": name, "meaning": meaning} for value, name, meaning in found]


def last_score(rows: Sequence[Mapping[str, Any]]) -> tuple[str, float, Mapping[str, Any]] | None:
    """(metric, value, row) of the last evaluation that has one of the metrics that say most."""
    for row in reversed(rows):
        for name in ("CIDEr", "top1", "overall", "acc", "agg_metrics"):
            value = row["metrics"].get(name)
            if isinstance(value, (int, float)) and math.isfinite(value):
                return name, float(value), row
    return None


def curves(log: RunLog) -> dict[str, list[Point]]:
    """What is drawn, as `report_parts.charts` names it: losses by modality, the run itself, metrics by dataset and split."""
    found: dict[str, list[Point]] = {}
    for modality, losses in log.losses.items():
        for name, points in losses.items():
            if any(value != 0 for _, value in points):  # a loss that is 0 throughout has no part in it
                found[f"{modality.replace('_', ' ')} / {'loss (total)' if name == 'loss' else name} / loss"] = points
    for name, (_, factor) in RUN_PANELS.items():
        if log.run.get(name):
            found[curve_name(name)] = [(step, factor * value) for step, value in log.run[name]]
    for (dataset, split), metrics in log.metrics.items():
        for name, points in metrics.items():
            if len(points) > 1:
                found[f"{dataset}, {split}, by epoch / {name} / {name}"] = points
    return found


def curve_name(name: str) -> str:
    """What `report_parts.charts` calls a series of `RunLog.run`."""
    title = RUN_PANELS[name][0]
    return f"Run / {title} / {title}"


def tables(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A table per dataset and split: {name, columns, rows: [{epoch, cells: [{value, interval}], rest}]}.

    `rest` is what is no number: {name: JSON}. Of one epoch all evaluations are shown, in the order they were made.
    """
    parts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault((row["dataset"], _split(row)), []).append(row)
    found = []
    for (dataset, split), members in parts.items():
        names = list(dict.fromkeys(name for row in members for name, value in row["metrics"].items() if _is_number(value)))
        columns = [name for name in names if name not in COUNTS] + [name for name in COUNTS if name in names]
        cells = [_table_row(row, columns) for row in members]
        found.append({"name": f"{dataset} {split}".strip(), "columns": columns, "rows": cells})
    return found


def _table_row(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    metrics = row["metrics"]
    cells = [{"value": metrics.get(name), "interval": metrics.get(f"{name}_ci95")} for name in columns]
    told = {f"{name}_ci95" for name in columns} | set(columns)
    rest = {name: json.dumps(value, ensure_ascii=False) for name, value in metrics.items() if name not in told}
    return {"epoch": row["epoch"], "cells": cells, "rest": rest}


def _split(row: Mapping[str, Any]) -> str:
    return str(row["name"]).removeprefix(f"{row['dataset']}_")


def galleries(folder: Path, page: Path) -> list[dict[str, str]]:
    """{name, href: relative to the page} of the galleries of a run."""
    found = sorted((folder / "result").glob("*_gallery.html"))
    start = page.resolve().parent
    return [
        {"name": path.name.removesuffix("_gallery.html"), "href": Path(os.path.relpath(path.resolve(), start)).as_posix()}
        for path in found
    ]


def checkpoints(folder: Path) -> list[dict[str, Any]]:
    """{name, bytes, note} of the checkpoints of a run: the best ones, then the others, the furthest first."""
    others = list_checkpoints(folder)
    best = sorted(folder.glob("checkpoint_best*.pth"))
    notes = {path: "best" for path in best} | {path: "last" for path in others[:1]}
    return [{"name": path.name, "bytes": path.stat().st_size, "note": notes.get(path, "")} for path in [*best, *others]]


def skipped(log: RunLog) -> list[tuple[str, int]]:
    """(what, how many) of all that training left out."""
    return [("updates whose loss or gradient was not finite", len(log.skipped)), *log.skipped_samples.items()]


def configurations(folder: Path) -> list[dict[str, str]]:
    """{name, file, text} of the configurations that a run was started with."""
    return [
        {"name": name, "file": file, "text": (folder / file).read_text(encoding="utf-8", errors="replace")}
        for file, name in CONFIGS.items()
        if (folder / file).is_file()
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def short(value: float) -> str:
    """A number in a few digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def metric_text(value: Any) -> str:
    """A metric in a table; a dash for none."""
    if not _is_number(value) or not math.isfinite(value):
        return "\u2013"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def size(count: float) -> str:
    """Bytes in words: 1.2 MB."""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == UNITS[0] else f"{count:.1f} {unit}"
