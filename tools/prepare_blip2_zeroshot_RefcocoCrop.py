"""RefCOCO's regions cut out of their pictures, for BLIP-2 as the baseline (the builder refcoco_crop_caption).

    python tools/prepare_blip2_zeroshot_RefcocoCrop.py -a Refer/refcoco/Refcoco_test.json -m Refer/images -o RefCOCO_crop_test

writes RefCOCO_crop_test/images/<image_id>_bbox_<x1>_<y1>_<x2>_<y2>.jpg and RefCOCO_crop_test/RefCOCO_test_crop.json, many
pictures at once. It can be stopped and run again: crops that are there are passed over. A picture or region that cannot
be cut is named and counted, its row stays (an evaluation counts it as unreadable), and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lavis.datasets.convert import crops
from lavis.datasets.convert.batch import available_cores, run_batch
from lavis.datasets.convert.problems import Problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-a", "--refcoco_test_ann_file", required=True, type=Path, help="Refcoco_test.json")
    parser.add_argument("-m", "--image_dir", required=True, type=Path, help="the folder that its pictures start from")
    parser.add_argument("-o", "--out_dir", required=True, type=Path, help="the folder to write to")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: all cores)")
    parser.add_argument("--again", action="store_true", help="cut out what is there already once more")
    given = parser.parse_args(arguments)
    problems = Problems()
    try:
        rows, jobs = crops.read_regions(given.refcoco_test_ann_file, given.image_dir, given.out_dir, problems)
        written = crops.write_rows(rows, given.out_dir)
        report = run_batch(jobs, crops.prepare, done=crops.is_prepared, what="pictures", workers=given.workers, again=given.again)
        named_in = report.failed.write(given.out_dir / "prepare_crops_failed.txt")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{written}: {len(rows)} regions, {sum(len(row['caption']) for row in rows)} captions")
    for line in [*(f"problem: {line}" for line in problems.lines()), *report.lines("pictures")]:
        print(line)
    if named_in:
        print(f"each of them: {named_in}")
    return 1 if len(problems) else report.exit_code


if __name__ == "__main__":
    sys.exit(main())
