"""Ground truth of cropped regions for the caption metrics, beside its input as RegionBLIP publishes it.

    python tools/prepare_blip2_zeroshot_RefcocoCrop_eval.py -a RefCOCO_crop_test/RefCOCO_test_crop.json

writes RefCOCO_crop_test/RefCOCO_test_crop__jianchong.json, which `run.annotation_file` may name: a COCO caption file with
one image per crop and all its captions, in an order that follows from --seed as published.
"""

from __future__ import annotations

import argparse
import sys

from lavis.evaluation.captions.ground_truth import build_crop_ground_truth, published_path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-a", "--ann_file", required=True, help="RefCOCO_test_crop.json: rows {image, image_id, caption: [...]}")
    parser.add_argument("--seed", type=int, default=10, help="of the order (default: %(default)s, as published)")
    given = parser.parse_args(arguments)
    target = published_path(given.ann_file)
    try:
        content = build_crop_ground_truth(given.ann_file, target, seed=given.seed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {len(content['images'])} regions, {len(content['annotations'])} captions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
