"""The summary of a run as one HTML page: curves, evaluations, galleries, checkpoints, what was left out, the configuration.

    python tools/run_summary.py output/mine
    python tools/run_summary.py output/mine --output summary.html

RUN is the output_dir of a training or of an evaluation; it needs log.txt, evaluate.txt or both. Evaluations with run.gallery
write the page by themselves.
"""

from __future__ import annotations

import argparse
import sys

from lavis.common.errors import ConfigError
from lavis.common.paths import resolve
from lavis.report.run_summary import write_summary


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a folder that holds log.txt, evaluate.txt or both")
    parser.add_argument("-o", "--output", metavar="OUT.html", help="the page to write (default: summary.html in the folder)")
    given = parser.parse_args(arguments)
    try:
        print(write_summary(resolve(given.run), resolve(given.output) if given.output else None))
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
