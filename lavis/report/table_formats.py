"""Tables as Markdown, LaTeX or CSV. The publication's columns say "theirs"; a cell that nobody has is "-"."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from lavis.report.results_table import Cell, Table

_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}


def markdown(tables: Sequence[Table]) -> str:
    """Pipe tables, each below its title."""
    blocks = []
    for table in tables:
        head, rows = _wide(table)
        lines = [f"**{table.title}**", "", _piped(head), _piped(["---"] * len(head)), *map(_piped, rows)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def latex(tables: Sequence[Table]) -> str:
    """tabular environments (booktabs), each below a comment with its title."""
    blocks = []
    for table in tables:
        head, rows = ([_escaped(cells) for cells in part] for part in ([_wide(table)[0]], _wide(table)[1]))
        columns = "l" + "r" * (len(head[0]) - 1)
        lines = [f"% {table.title}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule", f"{' & '.join(head[0])} \\\\", "\\midrule"]
        lines += [f"{' & '.join(cells)} \\\\" for cells in rows] + ["\\bottomrule", "\\end{tabular}"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def comma_separated(tables: Sequence[Table]) -> str:
    """One line per cell: table, model, column, value, low, high (of the 95 % interval), theirs."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["table", "model", "column", "value", "low", "high", "theirs"])
    for table in tables:
        for model, cells in table.ours.items():
            for column in table.columns:
                cell, theirs = cells.get(column), table.theirs.get(model, {}).get(column)
                numbers = (
                    [None, None, None]
                    if cell is None
                    else [
                        cell.value,
                        *(cell.interval or (None, None)),
                    ]
                )
                shown = ["-" if number is None else f"{number:.{table.digits + 2}f}" for number in numbers]
                writer.writerow([table.title, model, column, *shown, "-" if theirs is None else f"{theirs:.{table.digits}f}"])
    return stream.getvalue()


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {"markdown": markdown, "latex": latex, "csv": comma_separated}


def _wide(table: Table) -> tuple[list[str], list[list[str]]]:
    """Head and rows; a column that the publication has is followed by theirs."""
    published = {column for row in table.theirs.values() for column in row}
    head = ["model"]
    for column in table.columns:
        head += [column, f"{column} (theirs)"] if column in published else [column]
    rows = []
    for model, cells in table.ours.items():
        row = [model]
        for column in table.columns:
            row.append(_shown(cells.get(column), table.digits))
            if column in published:
                theirs = table.theirs.get(model, {}).get(column)
                row.append("-" if theirs is None else f"{theirs:.{table.digits}f}")
        rows.append(row)
    return head, rows


def _shown(cell: Cell | None, digits: int) -> str:
    if cell is None:
        return "-"
    text = f"{cell.value:.{digits}f}" + ("*" if cell.marked else "")
    return text + (f" [{cell.interval[0]:.{digits}f}, {cell.interval[1]:.{digits}f}]" if cell.interval else "")


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _escaped(cells: Sequence[str]) -> list[str]:
    return ["".join(_LATEX.get(character, character) for character in cell) for cell in cells]
