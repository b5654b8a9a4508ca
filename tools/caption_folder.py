"""Captions of many pictures and clouds: a folder or a list in, JSON lines out.

    python tools/caption_folder.py photos -o captions.jsonl --batch-size 32 --workers 4 --device cuda
    python tools/caption_folder.py regions.jsonl -o captions.jsonl --root photos

IN is a folder (searched with what lies below it), a JSON list or JSON lines (.jsonl) of rows {"image": path} or
{"pointcloud": path}, perhaps with "boxes": [[x1, y1, x2, y2], ...] (clouds: [cx, cy, cz, dx, dy, dz]) or "regions" (boxes,
points, scribbles and masks, see lavis/processors/prompts.py), and with "id". Pictures come first, then regions of pictures,
clouds, regions of clouds. A row of OUT: {"id", "image" or "pointcloud", "caption"}, or "regions": [{"box", "caption"}, ...].

The same command goes on with an OUT that is there (its settings stand in OUT.settings.json, and others are refused); a last line
that was cut short is done again. Files that cannot be used are named at the end. Exit code: 0; 1 for an error, where nothing
could be captioned, and under --strict where one file could not; 130 after Ctrl-C, which ends it after the batch at work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

from lavis.common.checkpoint import file_hash
from lavis.serving.cli import add_model_arguments, captioner_of, decoding_of, run
from lavis.serving.folder import Report, caption_items, stopped_by_signals
from lavis.serving.items import find_items
from lavis.serving.rows_file import RowsFile


def caption(given: argparse.Namespace) -> Report:
    """Caption what the arguments name; the progress goes to stderr."""
    items, decoding = find_items(given.input, root=given.root), decoding_of(given)
    captioner = captioner_of(given)
    settings = {
        "checkpoint_sha256": file_hash(captioner.checkpoint),
        "cfg_path": given.cfg_path,
        "options": given.options,
        "decoding": {**captioner.decoding, **decoding},
    }
    with stopped_by_signals() as stop, RowsFile(given.output, settings=settings) as out:
        there = sum(item.id in out.done for item in items)
        with tqdm(total=len(items), initial=there, unit="file", desc="caption", file=sys.stderr) as bar:
            return caption_items(
                captioner, items, out, batch_size=given.batch_size, workers=given.workers, decoding=decoding,
                progress=bar.update, stop=stop,
            )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="IN", help="a folder, a JSON list, or JSON lines")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.jsonl", help="rows are written behind those that are there")
    parser.add_argument("--root", help="folder that the paths of a list start from (default: the list's own)")
    parser.add_argument("--batch-size", type=int, default=16, help="captions that are decoded together")
    parser.add_argument("--workers", type=int, default=2, help="threads that read and decode files")
    parser.add_argument("--strict", action="store_true", help="exit code 1 where a file could not be used")
    add_model_arguments(parser)
    given = parser.parse_args(arguments)
    reports: list[Report] = []
    if code := run(lambda argv: reports.append(caption(given))):
        return code
    report = reports[0]
    for name, reason in report.bad:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    print(f"{given.output}: {report.captioned} captioned, {report.there} from before, {len(report.bad)} skipped", file=sys.stderr)
    if report.stopped:
        print("stopped before the end; the same command goes on with it", file=sys.stderr)
        return 130
    return 1 if (report.bad and (given.strict or not report.captioned + report.there)) else 0


if __name__ == "__main__":
    sys.exit(main())
