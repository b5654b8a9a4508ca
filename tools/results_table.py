"""Tables of finished evaluations, the publication's numbers beside ours.

    python tools/results_table.py output/eval_*
    python tools/results_table.py output/eval_* --format latex > tables.tex

RUN is the output_dir of train.py or evaluate.py: its evaluate.txt and configuration are read. Columns "(theirs)" hold
RegionBLIP's published numbers, not measured here; "-" is a cell that nobody has; [low, high] is the 95 % interval of ours;
* marks a number with samples that were missing or unreadable, which are told on stderr.
"""

from __future__ import annotations

import argparse
import sys

from lavis.report.results_table import notes, read_run, tables
from lavis.report.table_formats import FORMATS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a folder with evaluate.txt")
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="default: markdown")
    given = parser.parse_args(arguments)
    try:
        results = [result for run in given.runs for result in read_run(run)]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(FORMATS[given.format](list(tables(results))), end="")
    for note in filter(None, map(notes, results)):
        print(f"* {note}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
