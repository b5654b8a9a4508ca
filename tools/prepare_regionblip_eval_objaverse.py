"""Ground truth of Cap3D's captions for the caption metrics, beside its input as RegionBLIP publishes it.

    python tools/prepare_regionblip_eval_objaverse.py -i annotations/Cap3D_automated_Objaverse_test.txt

writes annotations/Cap3D_automated_Objaverse_test__jianchong.json, which `run.annotation_file` may name: a COCO
caption file with every line `<object id>,<caption>` of the input; as published, an image per line.
"""

from __future__ import annotations

import argparse
import sys

from lavis.evaluation.captions.ground_truth import build_objaverse_ground_truth, published_path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", required=True, help="Cap3D_*.txt: lines <object id>,<caption>")
    source = parser.parse_args(arguments).input
    target = published_path(source)
    try:
        content = build_objaverse_ground_truth(source, target)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {len({image['id'] for image in content['images']})} objects, {len(content['annotations'])} captions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
