"""The curves of one or several training runs as one picture: small multiples that share what their axes mean.

On top a row per modality with a panel per loss, below it learning rate, gradient norm and speed, at the bottom the metrics of
validation. A run is a colour; its raw values are faint behind its smoothed ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis.common.errors import ConfigError
from lavis.report.curves import Point, RunLog, finite
from lavis.report.report_parts import is_stepwise, smoothed, stairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#4d4d4d")  # told apart by the colour-blind too
STYLES = ("-", "--", ":")  # for more runs than there are colours
SKIPPED = "#b2182b"
INK, FAINT = "#333333", "#dddddd"
COLUMNS = (3, 6)  # panels side by side; the six of RUN_PANELS fill rows of either
PANEL = (3.1, 2.05)  # inches
RESOLUTION = 110  # dots per inch
FEW = 12  # up to so many values a line has a dot at each
MANY_EPOCHS = 12  # more ends of epochs than these are not drawn

RUN_PANELS: dict[str, tuple[str, float]] = {  # what of RunLog.run is drawn: title and factor
    "lr": ("learning rate", 1.0),
    "grad_norm": ("gradient norm", 1.0),
    "samples_per_second": ("samples per second", 1.0),
    "seconds_per_step": ("seconds per step", 1.0),
    "data_wait": ("waiting for data, %", 100.0),
    "max_memory_gb": ("most memory, GB", 1.0),
}
EXACT = ("lr", "max_memory_gb")  # without noise: drawn as they are
FROM_ZERO = ("samples_per_second", "seconds_per_step", "data_wait", "max_memory_gb", "lr")


@dataclass(frozen=True)
class Panel:
    """One small chart: `points` of each run (empty where it has none), and how they are drawn."""

    title: str
    points: list[list[Point]]
    x: str  # what runs along the bottom
    smooth: bool = True
    from_zero: bool = False
    log_scale: bool = False
    skipped: dict[int, list[int]] | None = None  # number of a run: steps to mark
    stepwise: bool = False  # what holds its value for a while is drawn as steps


def write_curves(runs: Sequence[RunLog], path: str | os.PathLike[str]) -> Path:
    """Draw the runs into one PNG, without a display; returns its path. ConfigError where matplotlib is not installed."""
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ConfigError(f"{target}: the picture is a PNG; accepted: a name that ends in .png")
    figure = draw(runs)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=RESOLUTION)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def draw(runs: Sequence[RunLog]) -> Figure:
    """The figure of the runs, on matplotlib's Agg canvas."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("matplotlib is not installed, which draws the curves: pip install matplotlib") from error

    losses = loss_rows(runs)
    widest = max((len(panels) for _, panels in losses), default=0)
    columns = COLUMNS[widest > COLUMNS[0]]
    sections = [(label, chunk) for label, panels in losses for chunk in _chunks(panels, columns)]
    sections += [("run", chunk) for chunk in _chunks(run_panels(runs), columns)]
    sections += [(label, chunk) for label, panels in metric_rows(runs) for chunk in _chunks(panels, columns)]
    left = 0.45  # inches
    head = 0.2 + 0.24 * _legend_rows(runs, width=columns * PANEL[0])
    width, height = left + columns * PANEL[0], head + len(sections) * PANEL[1]
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    steps = max(run.steps for run in runs)
    for row, (label, panels) in enumerate(sections):
        top = height - head - row * PANEL[1]
        figure.text(0.12 / width, (top - PANEL[1] / 2) / height, label, rotation=90, va="center", fontsize=10, color=INK,
                    fontweight="bold")  # fmt: skip
        for column, panel in enumerate(panels):
            place = (left + column * PANEL[0] + 0.5, top - PANEL[1] + 0.42, PANEL[0] - 0.62, PANEL[1] - 0.74)
            axes = figure.add_axes((place[0] / width, place[1] / height, place[2] / width, place[3] / height))
            draw_panel(axes, panel, steps=steps, epoch_ends=runs[0].epoch_ends if len(runs) == 1 else [])
    _head(figure, runs)
    return figure


# What is drawn


def loss_rows(runs: Sequence[RunLog]) -> list[tuple[str, list[Panel]]]:
    """(modality, a panel per loss) for all modalities; a loss that is 0 throughout has no part in it and is left out."""
    rows = []
    for modality in _ordered(runs, lambda run: run.losses):
        names = _ordered(runs, lambda run, modality=modality: run.losses.get(modality, {}))  # type: ignore[misc]
        panels = []
        for name in names:
            points = [run.losses.get(modality, {}).get(name, []) for run in runs]
            if any(y != 0 for series in points for _, y in series):
                marks = {n: [step for step, of in run.skipped if of in ("", modality)] for n, run in enumerate(runs)}
                title = "loss (total)" if name == "loss" else name
                panels.append(Panel(title, points, "step", skipped=marks if name == "loss" else None))
        if panels:
            rows.append((modality, panels))
    return rows


def run_panels(runs: Sequence[RunLog]) -> list[Panel]:
    """Learning rate, gradient norm, speed and memory, as far as the logs hold them."""
    panels = []
    for name, (title, factor) in RUN_PANELS.items():
        points = [[(x, y * factor) for x, y in run.run.get(name, [])] for run in runs]
        if not any(points):
            continue
        is_norm = name == "grad_norm"
        values = [y for series in points for _, y in finite(series) if y > 0]
        marks = {n: [step for step, _ in run.skipped] for n, run in enumerate(runs)} if is_norm else None
        log_scale = is_norm and bool(values) and max(values) > 30 * min(values)
        panels.append(Panel(title, points, "step", name not in EXACT, name in FROM_ZERO, log_scale, marks, name in EXACT))
    return panels


def metric_rows(runs: Sequence[RunLog]) -> list[tuple[str, list[Panel]]]:
    """(dataset and split, a panel per metric); the metric that chooses checkpoints comes first."""
    rows = []
    for dataset, split in _ordered(runs, lambda run: run.metrics):
        names = _ordered(runs, lambda run, key=(dataset, split): run.metrics.get(key, {}))  # type: ignore[misc]
        names.sort(key=lambda name: name != "agg_metrics")
        if "Bleu_4" in names:
            names = [name for name in names if name not in ("Bleu_1", "Bleu_2", "Bleu_3")]
        found = [run.metrics.get((dataset, split), {}) for run in runs]
        panels = [Panel(name, [metrics.get(name, []) for metrics in found], "epoch", smooth=False) for name in names]
        rows.append((f"{dataset}\n{split}", panels))
    return rows


def _ordered(runs: Sequence[RunLog], keys: Callable[[RunLog], Any]) -> list[Any]:
    """The keys of all runs, each once, in the order of first sight."""
    return list(dict.fromkeys(key for run in runs for key in keys(run)))


def _chunks(panels: list[Panel], size: int) -> list[list[Panel]]:
    return [panels[start : start + size] for start in range(0, len(panels), size)]


# How it is drawn


def draw_panel(axes: Axes, panel: Panel, *, steps: int, epoch_ends: Sequence[int] = ()) -> None:
    """One chart into its axes; `steps`: how far the axis of steps goes, the same in all charts."""
    axes.set_title(panel.title, fontsize=9, loc="left", color=INK, pad=4)
    lines = [smoothed(finite(points)) if panel.smooth else finite(points) for points in panel.points]
    for number, (points, line) in enumerate(zip(panel.points, lines, strict=True)):
        if not line:
            continue
        colour, style = style_of(number)
        marker = "o" if len(line) <= FEW else ""
        if panel.smooth and len(line) > FEW:
            axes.plot(
                *zip(*finite(points), strict=True), color=colour, alpha=0.22 if len(lines) == 1 else 0.14, linewidth=0.8, zorder=2
            )
        drawn = stairs(line) if panel.stepwise and is_stepwise(line) else line
        axes.plot(*zip(*drawn, strict=True), color=colour, linestyle=style, linewidth=1.5, marker=marker, markersize=3, zorder=3)
    if not any(lines):
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", va="center", fontsize=8, color=SKIPPED)
    _limits(axes, panel, lines)
    _last_values(axes, panel, lines)
    _marks(axes, panel, epoch_ends)
    _tidy(axes, panel, steps=steps)


def style_of(number: int) -> tuple[str, Any]:
    """Colour and line style of a run."""
    return COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]


def _limits(axes: Axes, panel: Panel, lines: Sequence[Sequence[Point]]) -> None:
    """The height that shows the curve: single spikes may leave it, the smoothed line may not."""
    raw = sorted(y for points in panel.points for _, y in finite(points) if y > 0 or not panel.log_scale)
    line = [y for points in lines for _, y in points if y > 0 or not panel.log_scale]
    if not raw:
        return
    low, high = raw[int(0.01 * (len(raw) - 1))], raw[int(0.99 * (len(raw) - 1))]
    low, high = min(low, *line), max(high, *line)
    if panel.log_scale:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.5)
        return
    low = 0.0 if panel.from_zero else low
    room = (high - low) or abs(high) or 1.0
    axes.set_ylim(low if panel.from_zero else low - 0.06 * room, high + 0.14 * room)


def _last_values(axes: Axes, panel: Panel, lines: Sequence[Sequence[Point]]) -> None:
    """The value each line ends with, right of the title."""
    ends = [(number, line[-1][1]) for number, line in enumerate(lines) if line]
    if len(ends) > 3:
        return
    for place, (number, value) in enumerate(reversed(ends)):
        axes.annotate(f"{value:.3g}", (1, 1), xycoords="axes fraction", xytext=(-38 * place, 4), textcoords="offset points",
                      ha="right", va="bottom", fontsize=8.5, color=style_of(number)[0], fontweight="bold")  # fmt: skip


def _marks(axes: Axes, panel: Panel, epoch_ends: Sequence[int]) -> None:
    """Ends of epochs as faint lines; along the top crosses for skipped steps, triangles for values that are no finite number."""
    if panel.x == "step" and 1 < len(epoch_ends) <= MANY_EPOCHS:
        for step in epoch_ends[:-1]:
            axes.axvline(step, color=FAINT, linewidth=0.8, zorder=1)
    for number, points in enumerate(panel.points):
        colour = SKIPPED if len(panel.points) == 1 else style_of(number)[0]
        lost = [x for x, y in points if not math.isfinite(y)]
        for marker, places in (("x", (panel.skipped or {}).get(number, [])), ("v", lost)):
            axes.plot(places, [0.96 - 0.06 * number] * len(places), marker, color=colour, markersize=4.5, markeredgewidth=1.2,
                      markerfacecolor="none", transform=axes.get_xaxis_transform(), zorder=4)  # fmt: skip


def _tidy(axes: Axes, panel: Panel, *, steps: int) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    if panel.x == "step":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlim(0, steps * 1.02)
    if not panel.log_scale:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    axes.set_xlabel(panel.x, fontsize=7.5, color=INK, labelpad=1)
    axes.tick_params(labelsize=7.5, colors=INK, length=2.5, pad=2)
    axes.grid(axis="y", color=FAINT, linewidth=0.5, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")


def _head(figure: Figure, runs: Sequence[RunLog]) -> None:
    """Who is who: a coloured line per run with its length, and what the marks mean."""
    from matplotlib.lines import Line2D

    handles = []
    for number, run in enumerate(runs):
        colour, style = style_of(number)
        handles.append(Line2D([], [], color=colour, linestyle=style, linewidth=2.5, label=label_of(run)))
    for marker, said in _signs(runs):
        colour = SKIPPED if len(runs) == 1 else INK
        handles.append(Line2D([], [], color=colour, linestyle="", marker=marker, markerfacecolor="none", label=said))
    figure.legend(handles=handles, loc="upper left", ncols=_legend_columns(runs, figure.get_figwidth()), frameon=False,
                  fontsize=9.5, labelcolor=INK, borderaxespad=0.5, columnspacing=2.0)  # fmt: skip


def label_of(run: RunLog) -> str:
    """A run's line in the legend: its name and how far it came."""
    epochs = f", {len(run.epoch_ends)} epochs" if len(run.epoch_ends) > 1 else ""
    lost = f", {len(run.skipped)} skipped" if run.skipped else ""
    return f"{run.name}: {run.steps:,} steps{epochs}{lost}{'' if run.finished else ', not finished'}"


def _signs(runs: Sequence[RunLog]) -> list[tuple[str, str]]:
    """(marker, meaning) of the signs along the top of charts that these runs need."""
    signs = [("x", "skipped step")] if any(run.skipped for run in runs) else []
    return signs + ([("v", "not a finite number")] if any(run.not_finite for run in runs) else [])


def _legend_columns(runs: Sequence[RunLog], width: float) -> int:
    """How many entries fit side by side in `width` inches."""
    longest = max(len(label_of(run)) for run in runs)
    return max(1, min(len(runs) + len(_signs(runs)), int(width / (0.8 + 0.08 * longest))))


def _legend_rows(runs: Sequence[RunLog], *, width: float) -> int:
    entries = len(runs) + len(_signs(runs))
    return -(-entries // _legend_columns(runs, width))
