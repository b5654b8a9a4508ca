"""Measures ours beside the published way of computing it, side by side in one process, on CPU cores.

    make bench                                        all of it; benchmarks/results.json and the table of README.md
    python -m benchmarks.run [--only NAME ...] [--dtype float32 bf16] [--repeats 3] [--clock cpu] [--output FILE]
    python -m benchmarks.run --quick                  one repeat, no memory
    python -m benchmarks.run --small                  toy sizes: whether it runs at all

The sides of a row take turns (A B A B) on one batch; a ratio is one of medians. bf16 is ours under autocast, beside the
published way in float32. The machine's rate of matrix products is measured again before every row; a share is the work that has
to be done (`flops.py`) per second, of that rate. Memory is the most that a process of its own holds for each side.

A ratio counts where both sides compute the same (losses, captions, groups: `difference`) and the published side takes the listed
milliseconds of the published implementation, scaled from the rate that its machine had (308 GFLOP/s) to this one's, give or take
15 %. Otherwise the row says why not. Where nothing is listed only the first is asked, and neither of loading data and
checkpoints. A row that fails says so; the others go on.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import measure, others, sizes, table
from benchmarks.work import DTYPES, SPECS, Bench, NotYetError, Row, call_once

RESULTS = Path(__file__).with_name("results.json")
README = Path(__file__).resolve().parents[1] / "README.md"
LISTED_RATE = 308.0  # GFLOP/s in float32 of the machine of the listed milliseconds
TOLERANCE = 0.15
REMEMBERED = (  # rows whose memory is measured
    *("train_image", "train_image_region", "train_pointcloud", "train_pointcloud_region"),
    *("caption_image", "caption_pointcloud"),
)


def validity(found: dict[str, Any], row: Row, rate: float) -> tuple[bool, str]:
    """Whether a measured row's ratios count, and why not."""
    for dtype, difference in found.get("difference", {}).items():
        if not difference <= row.limits[dtype]:
            return False, f"{dtype} differs by {difference:.2g}"
    if row.listed is None:
        return True, ""
    scaled = row.listed * LISTED_RATE / rate
    found["listed"], found["listed_here"] = row.listed, round(scaled, 2)
    apart = found["published"] / scaled - 1
    if abs(apart) > TOLERANCE:
        return False, f"published side {apart:+.0%} from the listed {row.listed:g} ms, here {scaled:.0f} ms"
    return True, ""


def measure_row(row: Row, *, repeats: int, clock: str) -> dict[str, Any]:
    """Medians in ms per sample, ratios, shares of the machine's rate, and whether they count."""
    dtypes = [side for side in row.sides if side != "published"]
    rates = {dtype: measure.matrix_rate(DTYPES[dtype], clock=clock) for dtype in {"float32", *dtypes}}
    found: dict[str, Any] = {"unit": row.unit, "rates": {dtype: round(rate, 1) for dtype, rate in rates.items()}}
    if row.differ is not None:
        found["difference"] = {dtype: row.differ(dtype) for dtype in dtypes}
    seconds = measure.alternate(row.sides, repeats=repeats, clock=clock)
    ms = {side: statistics.median(values) * 1000 / row.samples for side, values in seconds.items()}
    found |= {side: round(value, 3) for side, value in ms.items()}
    found["spread"] = {
        side: round((max(values) - min(values)) / statistics.median(values), 3) for side, values in seconds.items()
    }
    found["ratio"] = {dtype: round(ms["published"] / ms[dtype], 2) for dtype in dtypes}
    if row.work is not None:
        gflop = row.work.total / row.samples
        found["gflop"] = round(gflop, 2)
        found["share"] = {dtype: round(gflop / ms[dtype] * 1000 / rates[dtype], 3) for dtype in dtypes}
    if row.stands_on:
        found["stands_on"] = row.stands_on
    found["counts"], found["why"] = validity(found, row, rates["float32"])
    return found


def memory(folder: Path, size: sizes.Size, name: str, dtypes: Sequence[str]) -> dict[str, float]:
    """MB of every side of a row, each in a process of its own."""
    return {side: round(measure.peak_memory(call_once, str(folder), size, name, side)) for side in ("published", *dtypes)}


def settle(results: dict[str, Any]) -> None:
    """A row that stands on another counts if that one does."""
    for found in results["rows"].values():
        base = results["rows"].get(found.get("stands_on"))
        if found.get("counts") and base is not None and not base.get("counts"):
            found["counts"], found["why"] = False, f"{found['stands_on']} does not count"


def describe(name: str, found: dict[str, Any]) -> str:
    """A line of progress."""
    if "failed" in found:
        return f"{name:28} not measured: {found['failed']}"
    parts = [f"{name:28} published {found['published']:8.2f} ms"]
    for dtype, ratio in found["ratio"].items():
        share = f", {found['share'][dtype]:.0%} of the rate" if "share" in found else ""
        parts.append(f"{dtype} {found[dtype]:8.2f} ms ({ratio:.2f} x{share})")
    if "memory" in found:
        parts.append("memory " + " / ".join(f"{value:.0f}" for value in found["memory"].values()) + " MB")
    return " | ".join(parts) + ("" if found["counts"] else f" | does not count: {found['why']}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the number of rows that failed."""
    given = parse(arguments)
    logging.getLogger("lavis").setLevel(logging.ERROR)
    size = sizes.SMALL if given.small else sizes.MEASURED
    if given.readme:
        table.between(given.readme.read_text())  # an error now, not after all the work
    began = time.perf_counter()
    results: dict[str, Any] = {"machine": measure.machine(), "clock": given.clock, "repeats": given.repeats, "rows": {}}
    rates = {dtype: [measure.matrix_rate(DTYPES[dtype], clock=given.clock)] for dtype in given.dtype}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes.write_folders(folder, size)
        bench = Bench(folder, size)
        makers: dict[str, Callable[[Sequence[str]], Row]] = {spec: partial(bench.row, spec) for spec in SPECS}
        for spec, make in {**makers, **others.rows(bench, folder)}.items():
            if given.only and not any(part in spec for part in given.only):
                continue
            if time.perf_counter() - began > given.minutes * 60:
                found: dict[str, Any] = {"failed": f"{given.minutes:g} minutes were over"}
            else:
                found = attempt(spec, make, given)
            if "failed" not in found and spec in REMEMBERED and not given.quick:
                found["memory"] = memory(folder, size, spec, given.dtype)
            results["rows"][spec] = found
            print(f"[{time.perf_counter() - began:4.0f} s] {describe(spec, found)}", flush=True)
    for dtype, values in rates.items():
        values.append(measure.matrix_rate(DTYPES[dtype], clock=given.clock))
    results["rates"] = {dtype: [round(value, 1) for value in values] for dtype, values in rates.items()}
    settle(results)
    print("matrix products, GFLOP/s at the beginning and the end: " + json.dumps(results["rates"]))
    if given.output:
        given.output.write_text(json.dumps(results, indent=1) + "\n")
    if given.readme:
        table.update(given.readme, results)
    return sum("failed" in found and not found.get("not_yet") for found in results["rows"].values())


def attempt(name: str, make: Callable[[Sequence[str]], Row], given: argparse.Namespace) -> dict[str, Any]:
    """A row's results, or why it has none."""
    try:
        return measure_row(make(given.dtype), repeats=given.repeats, clock=given.clock)
    except NotYetError as error:
        return {"failed": str(error), "not_yet": True}
    except Exception as error:  # the other rows are worth having
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="rows whose name has one of these in it")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="of ours; bf16 by default where the processor has amx_bf16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", default="wall", choices=measure.CLOCKS, help="cpu: of a machine that does other work too")
    parser.add_argument("--quick", action="store_true", help="one repeat, no memory")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--minutes", type=float, default=11.0, help="no row begins later than that")
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    parser.add_argument("--readme", type=Path, help="write the table here, between its two marks")
    parser.add_argument("--save", action="store_true", help="the same as --output and --readme for the two files of the project")
    given = parser.parse_args(arguments)
    given.repeats = 1 if given.quick else given.repeats
    given.dtype = given.dtype or ["float32", *(["bf16"] if "amx_bf16" in measure.processor()[1] else [])]
    if given.save:
        given.output, given.readme = RESULTS, README
    return given


if __name__ == "__main__":
    sys.exit(main())
