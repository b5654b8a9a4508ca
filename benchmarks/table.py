"""The table of README.md from results.json.

python -m benchmarks.table [--results benchmarks/results.json] [--readme README.md]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
HERE = Path(__file__).resolve()
TITLES = {
    "train_image": "image training step",
    "train_image_region": "image_region training, rows of 2 images",
    "train_image_region_cached": "the same, feature cache warm",
    "train_image_region_apart": "image_region training, an image per row",
    "train_pointcloud": "pointcloud training",
    "train_pointcloud_region": "pointcloud_region training, 40,000 points",
    "caption_image": "captioning, image",
    "caption_image_region": "captioning, image_region, an image per row",
    "caption_8_regions": "captioning 8 regions of one image, one call : one at a time",
    "caption_pointcloud": "captioning, pointcloud",
    "caption_4_objects": "captioning 4 objects of one scene",
    "points_8192": "sampling and grouping, 8,192 points",
    "points_40000": "sampling and grouping, 40,000 points",
    "data_regions": "loading regions",
    "data_clouds": "loading clouds",
    "metrics": "caption metrics",
    "checkpoint_save": "saving a checkpoint",
    "checkpoint_load": "loading a checkpoint",
}
GOALS = {  # float32, bf16
    "train_image": (1.2, 3.0),
    "train_image_region": (2.0, 4.0),
    "train_image_region_cached": (2.3, 5.0),
    "train_pointcloud": (2.5, 6.0),
    "train_pointcloud_region": (2.7, 6.0),
    "caption_image": (2.0, 3.0),
    "caption_8_regions": (4.0, 4.0),
    "caption_pointcloud": (2.2, 4.0),
    "caption_4_objects": (4.0, 6.0),
    "points_8192": (10.0, None),
    "points_40000": (20.0, None),
}
HEAD = (
    "| work | published | float32 | goal | of the rate | bf16 | goal | of the rate | MB, published : float32 : bf16 |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)


def render(results: dict[str, Any]) -> str:
    """The table and what it was measured on, in Markdown."""
    machine, rates = results["machine"], results["rates"]
    lines = [row(name, found, note) for note, (name, found) in enumerate(results["rows"].items(), 1)]
    notes = [f"{note}. {why}" for note, found in enumerate(results["rows"].values(), 1) if (why := reason(found))]
    speeds = ", ".join(f"{min(values):.0f} to {max(values):.0f} GFLOP/s in {dtype}" for dtype, values in rates.items())
    about = (
        f"{machine['processor']}, {machine['threads']} threads, {', '.join(machine['flags'])}; torch {machine['torch']}; "
        f"matrix products {speeds}; medians of {results['repeats']}; {machine['date']}. Milliseconds per sample."
    )
    return about + "\n\n" + HEAD + "\n".join(lines) + "\n" + ("\n" + "\n".join(notes) + "\n" if notes else "")


def reason(found: dict[str, Any]) -> str:
    """Why a row does not count, or was not measured; empty where it counts."""
    if "failed" in found:
        return f"not measured: {found['failed']}"
    return "" if found["counts"] else f"does not count: {found['why']}"


def row(name: str, found: dict[str, Any], note: int) -> str:
    """One line; a number in brackets leads to why it does not count."""
    title = TITLES[name] + (f" [{note}]" if reason(found) else "")
    if "failed" in found:
        return f"| {title} |" + " |" * 8
    cells = [f"{found['published']:.1f}"]
    for dtype, goal in zip(("float32", "bf16"), GOALS.get(name, (None, None)), strict=True):
        share = found.get("share", {}).get(dtype)
        cells.append(f"{found[dtype]:.1f} ({found['ratio'][dtype]:.1f} x)" if dtype in found else "")
        cells.append(f"{goal:g} x" if goal and dtype in found else "")
        cells.append(f"{share:.0%}" if share is not None else "")
    cells.append(" : ".join(f"{value:.0f}" for value in found.get("memory", {}).values()))
    return f"| {title} | " + " | ".join(cells) + " |"


def between(text: str) -> tuple[int, int]:
    """Where the text between the two marks begins and ends; ValueError without them."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"one {BEGIN} and behind it one {END} are expected")
    return text.index(BEGIN) + len(BEGIN), text.index(END)


def update(readme: Path, results: dict[str, Any]) -> None:
    """Write the table between the marks of a file."""
    text = readme.read_text()
    begin, end = between(text)
    readme.write_text(f"{text[:begin]}\n{render(results)}{text[end:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE.with_name("results.json"))
    parser.add_argument("--readme", type=Path, default=HERE.parents[1] / "README.md")
    given = parser.parse_args()
    update(given.readme, json.loads(given.results.read_text()))


if __name__ == "__main__":
    main()
