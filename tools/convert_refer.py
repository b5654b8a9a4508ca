"""REFER's downloads (RefCOCO, RefCOCO+, RefCOCOg) to the files that the configurations name.

    python tools/convert_refer.py --refs "Refer/refcoco/refs(unc).p" --images Refer/images
    python tools/convert_refer.py --refs "Refer/refcocog/refs(umd).p" --images Refer/images --strict

reads refs and the instances.json beside them, and writes Refcoco_{train,val,testA,testB}.json (for the splits that there
are) there: a row {"image", "image_id", "bbox", "caption"} per expression. Refcoco_test.json is testA and testB together.
The dataset is the folder's name and the splits are those in the file's name, unless they are given. The pickle is read as
data, nothing in it is run. With --images each picture is looked for in that folder and below, and `image` is its path
from there; without, `image` is the bare file name.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from lavis.common.errors import ConfigError
from lavis.datasets.convert import refer


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refs", "-i", required=True, type=Path, help="refs(unc).p, refs(google).p or refs(umd).p")
    parser.add_argument("--instances", type=Path, help="COCO's annotations (default: instances.json beside the refs)")
    parser.add_argument("--dataset", help="refcoco, refcoco+ or refcocog (default: the name of the refs' folder)")
    parser.add_argument("--split-by", help="unc, google or umd (default: what stands in brackets in the name of the refs)")
    parser.add_argument("--images", type=Path, help="the folder of the pictures: look for each")
    parser.add_argument("--output", "-o", type=Path, help="the folder to write to (default: that of the refs)")
    parser.add_argument("--strict", action="store_true", help="write nothing and fail where anything is wrong")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    dataset = given.dataset or given.refs.resolve().parent.name
    named = re.search(r"\((\w+)\)", given.refs.name)
    folder = given.output or given.refs.parent
    try:
        if not given.split_by and not named:
            raise ConfigError(f"{given.refs.name} does not say its splits, as refs(unc).p does; give --split-by")
        splits = refer.expected_splits(dataset, given.split_by or named.group(1))
        refs = refer.read_refs(given.refs, splits)
        images, annotations = refer.read_instances(given.instances or given.refs.parent / "instances.json")
        done = refer.convert(refs, images, annotations, splits=splits)
        if given.images:
            refer.find_pictures(done, refer.picture_paths(given.images))
        written = [] if given.strict and len(done.problems) else refer.write(done, folder)
        named_in = done.problems.write(folder / "convert_refer_problems.txt")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counts = ", ".join(f"{split} {done.refs[split]}" for split in splits)
    print(f"{dataset}: {len(refs)} refs ({counts}), {done.sentences} expressions, {len(done.problems)} problems")
    for line in done.problems.lines():
        print(f"problem: {line}")
    if named_in:
        print(f"each of them: {named_in}")
    for path, count in written:
        print(f"{path}: {count} rows")
    if not written:
        print("error: nothing is written" + (" (--strict)" if given.strict and len(done.problems) else ": no row came out"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
