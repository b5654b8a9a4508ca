"""The curves of training runs as one PNG: losses per modality, learning rate, gradient norm, speed, memory, validation.

    python tools/plot_log.py output/mine
    python tools/plot_log.py output/mine output/other/log.1.txt --output curves.png

RUN is the output_dir of a training, or a log file; several are drawn over each other. It needs no display, and can be run
while training goes on. What the logs lack (a last line cut short, steps written twice) is said on stderr.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lavis.common.errors import ConfigError
from lavis.report.curves import read_runs
from lavis.report.curves_figure import write_curves


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a folder that holds log.txt, or a log file")
    parser.add_argument("-o", "--output", help="the PNG to write (default: curves.png beside the first log)")
    given = parser.parse_args(arguments)
    try:
        runs = read_runs(given.runs)
        target = write_curves(runs, given.output or Path(runs[0].path).with_name("curves.png"))
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for note in (note for run in runs for note in run.notes):
        print(note, file=sys.stderr)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
