"""Ground truth of RefCOCO-style regions for the caption metrics, beside its input as RegionBLIP publishes it.

    python tools/prepare_regionblip_eval_refercoco.py -i annotations/Refcoco_test.json

writes annotations/Refcoco_test__jianchong.json, which `run.annotation_file` may name: a COCO caption file with
every expression of the input and one image per region, `<image_id>_box_<x>_<y>_<w>_<h>`.
"""

from __future__ import annotations

import argparse
import sys

from lavis.evaluation.captions.ground_truth import build_refercoco_ground_truth, published_path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", required=True, help="Refcoco_*.json: rows {image, image_id, bbox, caption}")
    source = parser.parse_args(arguments).input
    target = published_path(source)
    try:
        content = build_refercoco_ground_truth(source, target)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {len(content['images'])} regions, {len(content['annotations'])} captions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
