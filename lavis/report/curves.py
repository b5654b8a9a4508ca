"""log.txt read back as series: what a run learned, how fast it was, and what became of its steps.

A log is written by lavis/runners/report.py, a JSON object a line. A run that was killed leaves half a line at the end; a run
that went on from an earlier checkpoint may have written steps twice, of which the later ones count; rows of a kind that this
module does not know are counted and passed over. Whatever is passed over is said in `RunLog.notes`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavis.common.errors import ConfigError
from lavis.common.paths import resolve

LOG = "log.txt"
NO_METRIC = ("epoch", "num_samples", "num_unreadable", "num_missing")  # numbers of an evaluation row that measure nothing
Point = tuple[float, float]  # step or epoch, value


class LogError(ConfigError):
    """A log that is not there, or not one of ours; the message names the file and the line."""


@dataclass
class RunLog:
    """The series of one run, in the order of their first appearance; values may be infinite or NaN.

    losses   {modality: {name: points}}, over steps
    run      {name: points} of lr, grad_norm and everything in `timing`, over steps
    metrics  {(dataset, split): {name: points}}, over epochs
    skipped  (step, modality or "") of every update that was left out
    skipped_samples  {reason: how many}, of the epochs that ended
    """

    path: Path
    name: str
    losses: dict[str, dict[str, list[Point]]] = field(default_factory=dict)
    run: dict[str, list[Point]] = field(default_factory=dict)
    metrics: dict[tuple[str, str], dict[str, list[Point]]] = field(default_factory=dict)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    skipped_samples: dict[str, int] = field(default_factory=dict)
    epoch_ends: list[int] = field(default_factory=list)  # steps
    steps: int = 0  # the last one that was logged
    not_finite: int = 0  # losses and norms that are NaN or infinite
    finished: bool = False
    notes: list[str] = field(default_factory=list)


def find_log(run: str | Path) -> Path:
    """The log of a run: the file itself, or log.txt in the folder. LogError where there is none."""
    path = resolve(run)
    if path.is_dir() and not (path / LOG).is_file():
        raise LogError(f"{path} holds no {LOG}; accepted: the output_dir of a training, or a log file")
    log = path / LOG if path.is_dir() else path
    if not log.is_file():
        raise LogError(f"{log} does not exist; accepted: the output_dir of a training, or a log file")
    return log


def read_runs(runs: Sequence[str | Path]) -> list[RunLog]:
    """The logs of several runs, named as shortly as tells them apart. LogError names the file and the line."""
    paths = [find_log(run) for run in runs]
    return [read_log(path, name=name) for path, name in zip(paths, _names(paths), strict=True)]


def read_log(path: str | Path, *, name: str = "") -> RunLog:
    """The series of one log file. LogError for a line in its middle that is no JSON object, a step row whose values are no
    numbers, or a file without any step."""
    path = Path(path)
    log = RunLog(path, name or _names([path])[0])
    rows = _without_rewritten(path, log.notes)
    unknown = [number for number, row in rows if not _add(log, row, where=f"{path}, line {number}")]
    if not log.run:
        raise LogError(f"{path} holds no logged step; accepted: a log.txt that training wrote")
    if unknown:
        log.notes.append(f"{path}: {_count(len(unknown), 'row')} of an unknown kind passed over, the first in line {unknown[0]}")
    lines = [series for losses in log.losses.values() for series in losses.values()] + list(log.run.values())
    log.not_finite = sum(not math.isfinite(value) for series in lines for _, value in series)
    if log.not_finite:
        log.notes.append(f"{path}: {_count(log.not_finite, 'value')} not finite (NaN or infinite)")
    steps = [step for series in log.run.values() for step, _ in series]
    log.steps = int(max(steps))
    if min(steps) > 1:
        log.notes.append(f"{path}: begins at step {min(steps):.0f}; what came before is in another log")
    aside = sorted(old.name for old in path.parent.glob(f"{path.stem}.*{path.suffix}") if re.search(r"\.\d+\.", old.name))
    if path.name == LOG and aside:
        log.notes.append(f"{path.parent}: {', '.join(aside)} of earlier runs not drawn; name the file to draw it")
    return log


def _rows(path: Path, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a log; what is wrong with the last line goes to the notes."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise LogError(f"{path} cannot be read ({error})") from error
    last = max((number for number, line in enumerate(lines, 1) if line.strip()), default=0)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == last:
                notes.append(f"{path}: the last line ({number}) is not whole and was left out; the run was stopped while writing")
                return
            raise LogError(f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(row, dict):
            raise LogError(f"{path}, line {number}: holds {line[:60]}; accepted: a JSON object, as training writes them")
        yield number, row


def _without_rewritten(path: Path, notes: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a log. Where steps begin again from an earlier one (the run went on from an older checkpoint), the rows from
    there on are replaced by the later ones."""
    kept: list[tuple[int, dict[str, Any]]] = []
    last, times = -math.inf, 0
    for number, row in _rows(path, notes):
        if _is_step(row):
            step = _number(row, "step", f"{path}, line {number}")
            if step <= last:
                times += 1
                at = [place for place, (_, old) in enumerate(kept) if isinstance(old.get("step"), int) and old["step"] >= step]
                del kept[at[0] :]
            last = step
        kept.append((number, row))
    if times:
        notes.append(f"{path}: steps begin again {times} x, after a resume; of what was written twice the later is drawn")
    return kept


def _is_step(row: dict[str, Any]) -> bool:
    return "step" in row and "modality" in row and "skipped_step" not in row


def _add(log: RunLog, row: dict[str, Any], *, where: str) -> bool:
    """Put a row into the series; whether it is of a known kind."""
    if "skipped_step" in row:
        log.skipped.append((int(_number(row, "step", where)), str(row.get("modality") or "")))
    elif _is_step(row):
        step = _number(row, "step", where)
        losses = log.losses.setdefault(str(row["modality"]), {})
        for name in (name for name in row if "loss" in name):
            losses.setdefault(name, []).append((step, _number(row, name, where)))
        timing = row.get("timing") or {}
        for part, names in ((row, ("lr", "grad_norm")), (timing, tuple(timing))):
            for name in names:
                if part.get(name) is not None:
                    log.run.setdefault(name, []).append((step, _number(part, name, where)))
    elif "epoch" in row and "mean" in row:
        log.epoch_ends.append((log.epoch_ends or [0])[-1] + int(_number(row, "steps", where)))
        for reason, entry in (row.get("skipped") or {}).items():
            log.skipped_samples[reason] = log.skipped_samples.get(reason, 0) + int(_number(entry, "count", where))
    elif "epoch" in row and "split" in row and "dataset" in row:
        metrics = log.metrics.setdefault((str(row["dataset"]), str(row["split"])), {})
        for name, value in row.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in NO_METRIC:
                metrics.setdefault(name, []).append((_number(row, "epoch", where), float(value)))
    elif "finished" in row:
        log.finished = bool(row["finished"])
    else:
        return False
    return True


def _number(row: dict[str, Any], key: str, where: str) -> float:
    """A value of a row as a number; what JSON has no numbers for stands there as "nan", "inf" or "-inf"."""
    value = row.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if value in ("nan", "inf", "-inf"):
        return float(str(value))
    raise LogError(f"{where}: {key} is {value!r}; accepted: a number")


def finite(points: Sequence[Point]) -> list[Point]:
    """The points whose value is a finite number."""
    return [(x, y) for x, y in points if math.isfinite(y)]


def _names(paths: Sequence[Path]) -> list[str]:
    """A name per log: its folder (and the file, where it is not log.txt), with as many folders above as tell them apart."""
    absolute = [path.resolve() for path in paths]
    tails = [path.parent.parts if path.name == LOG else (*path.parent.parts, path.name) for path in absolute]
    shortest = [1 if path.name == LOG else 2 for path in absolute]
    names: list[str] = []
    for extra in range(max(map(len, tails), default=1)):
        names = ["/".join(tail[-(count + extra) :]) for tail, count in zip(tails, shortest, strict=True)]
        if len(set(names)) == len(set(absolute)):
            break
    return [name.lstrip("/") or "run" for name in names]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
