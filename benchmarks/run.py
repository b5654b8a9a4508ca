"""Measures ours beside the published way of computing, side by side in one process.

    python -m benchmarks.run [--quick] [--only NAME ...] [--dtype float32 bf16]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure, sizes, work

LISTED_RATE = 308.0
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--dtype", nargs="*", default=["float32"], choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", default="wall", choices=measure.CLOCKS)
    given = parser.parse_args()
    began = time.perf_counter()
    print(measure.machine())
    rate = measure.matrix_rate(torch.float32, clock=given.clock)
    print(f"float32 {rate:.0f} GFLOP/s, bf16 {measure.matrix_rate(torch.bfloat16, clock=given.clock):.0f} GFLOP/s")
    with tempfile.TemporaryDirectory() as folder:
        bench = work.Bench(sizes.build_model(Path(folder) / "model"), sizes.MEASURED)
    for dtype in given.dtype:
        for name, make in work.rows(bench, DTYPES[dtype]).items():
            if given.only and not any(part in name for part in given.only):
                continue
            row = make()
            differ = row.differ()
            with FlopCounterMode(display=False) as counter:
                row.sides["ours"]()
            seconds = measure.alternate(row.sides, repeats=given.repeats, clock=given.clock)
            ms = {side: statistics.median(values) * 1000 / row.samples for side, values in seconds.items()}
            flops = counter.get_total_flops() / row.samples / 1e9
            note = ""
            if row.listed:
                note = f"published / listed (scaled) {ms['published'] / (row.listed * LISTED_RATE / rate):.2f}"
            print(
                f"{dtype:8} {name:32} published {ms['published']:7.1f} ours {ms['ours']:7.1f} ms  "
                f"ratio {ms['published'] / ms['ours']:5.2f}  {flops:6.1f} GFLOP, "
                f"share {flops / ms['ours'] * 1e3 / rate:4.2f}  {differ}  {note}  [{time.perf_counter() - began:.0f} s]",
                flush=True,
            )
    print(f"float32 {measure.matrix_rate(torch.float32, clock=given.clock):.0f} GFLOP/s at the end")


if __name__ == "__main__":
    main()
