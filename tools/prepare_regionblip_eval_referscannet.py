"""Ground truth of ScanRefer's objects for the caption metrics, beside its input as RegionBLIP publishes it.

    python tools/prepare_regionblip_eval_referscannet.py -i annotations/ScanRefer_filtered_val.json

writes annotations/ScanRefer_filtered_val__jianchong.json, which `run.annotation_file` may name: a COCO caption file
with every description of the input and one image per object, `<scene_id>_<object_id>`.
"""

from __future__ import annotations

import argparse
import sys

from lavis.evaluation.captions.ground_truth import build_scanrefer_ground_truth, published_path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", required=True, help="ScanRefer_*.json: rows {scene_id, object_id, description}")
    source = parser.parse_args(arguments).input
    target = published_path(source)
    try:
        content = build_scanrefer_ground_truth(source, target)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {len(content['images'])} objects, {len(content['annotations'])} captions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
