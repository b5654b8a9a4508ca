"""ScanNet's raw scenes to the arrays that the builder scannet_refer reads.

    python tools/prepare_scannet.py -i ScanNet/scans -l ScanNet/scannetv2-labels.combined.tsv -o scannet_data

reads <scene>/<scene>_vh_clean_2.ply, .aggregation.json, _vh_clean_2.0.010000.segs.json and .txt, many scenes at once, and
writes <scene>_{vert,aligned_vert,ins_label,sem_label,bbox,aligned_bbox}.npy. It can be stopped and run again: a complete
scene is passed over. A scene that cannot be converted (no axis alignment, a file missing or cut short, segments of another
mesh) is named and counted, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lavis.datasets.convert import scannet
from lavis.datasets.convert.batch import available_cores, check_settings, run_batch
from lavis.datasets.convert.scannet_files import read_label_ids


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", required=True, type=Path, help="the folder that holds a folder per scene (scans)")
    parser.add_argument("-l", "--labels", required=True, type=Path, help="scannetv2-labels.combined.tsv")
    parser.add_argument("-o", "--output", required=True, type=Path, help="the folder for the arrays")
    parser.add_argument("--scenes", type=Path, help="a file with a scene's name per line (default: every folder)")
    parser.add_argument("--max-points", type=int, help="keep that many vertices of a scene (published: 50000; default: all)")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: all cores)")
    parser.add_argument("--again", action="store_true", help="convert what is there already once more")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    try:
        if given.max_points is not None and given.max_points < 1:
            raise ValueError(f"--max-points is {given.max_points}; accepted: an integer of 1 or more")
        label_ids = read_label_ids(given.labels)
        names = scannet.find_scenes(given.input, given.scenes)
        check_settings(given.output, "prepare_scannet", {"max_points": given.max_points})
        jobs = {name: scannet.Job(given.input / name, given.output, label_ids, given.max_points) for name in names}
        report = run_batch(
            jobs, scannet.prepare, done=scannet.is_prepared, what="scenes", workers=given.workers, again=given.again
        )
        named_in = report.failed.write(given.output / "prepare_scannet_failed.txt")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in report.lines("scenes"):
        print(line)
    if named_in:
        print(f"each of them: {named_in}")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
