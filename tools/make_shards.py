"""Captions or regions and their pictures to webdataset shards, which the builders caption_shards and region_shards read.

    python tools/make_shards.py write -a regions.jsonl --images images -o shards/regions --kind regions --shuffle
    python tools/make_shards.py write --cfg-path X.yaml --dataset coco_caption -o shards/coco --max-side 512
    python tools/make_shards.py index 'laion/{00000..00999}.tar' --kind captions

write: the rows of annotation files ({"image", "image_id", "caption"}, and "bbox" [x, y, w, h] in pixels for regions; many rows
are best kept as JSON lines), or those of a training split that a configuration names. A picture is stored once, as it lies on
disk, with all its rows. Many shards at once; it can be stopped and run again, and what it writes does not depend on the number of
processes. Rows that cannot be used and pictures that cannot be read are named and counted, the others go on, and the exit code
is 1. manifest.json in the folder says what each shard holds.

index: shards that others wrote (img2dataset: <key>.jpg, .json, .txt) get the index that a run would make at its start.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from lavis.common.config import Config
from lavis.common.errors import ConfigError, listed
from lavis.common.paths import get_cache_root
from lavis.common.registry import registry
from lavis.datasets.convert import shards
from lavis.datasets.convert.batch import available_cores, check_settings, run_batch
from lavis.datasets.convert.problems import Problems
from lavis.datasets.datasets.captions import CaptionDataset, ImageDataset
from lavis.datasets.datasets.regions import RegionDataset
from lavis.datasets.shards.catalogue import Catalogue, find_shards, make_indexes
from lavis.datasets.shards.datasets import ShardDataset
from lavis.datasets.shards.index import KINDS
from lavis.processors import BaseProcessor

UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


def size_of(text: str) -> int:
    """Bytes from a number with K, M or G behind it, or without."""
    unit = UNITS.get(text[-1:].upper(), 1)
    number = text[:-1] if text[-1:].upper() in UNITS else text
    if not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: a number of bytes such as 500M or 1G")
    return int(number) * unit


def count_of(text: str) -> int:
    """An integer of 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: an integer of 1 or more")
    return int(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    write = commands.add_parser("write", help="rows and pictures to shards")
    write.add_argument("-a", "--annotation", nargs="+", type=Path, help="annotation files: .json, or .jsonl for many rows")
    write.add_argument("--images", type=Path, help="the folder that the rows' paths start from")
    write.add_argument("--kind", choices=KINDS, help="what the rows of --annotation are")
    write.add_argument("--cfg-path", help="instead of these: a YAML with datasets")
    write.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override configuration keys")
    write.add_argument("--dataset", help="which of its datasets; its split `train` is written")
    write.add_argument("-o", "--output", required=True, type=Path, help="the folder for the shards")
    write.add_argument("--samples-per-shard", type=count_of, default=10_000, help="rows of a shard (default: %(default)s)")
    write.add_argument("--max-size", type=size_of, default=10**9, help="bytes of pictures of a shard, such as 500M (default: 1G)")
    write.add_argument("--max-side", type=count_of, metavar="PIXELS", help="make pictures with a longer side smaller, as JPEG")
    write.add_argument("--shuffle", action="store_true", help="pictures in a random order: do so where neighbours are alike")
    write.add_argument("--seed", type=int, default=42, help="of the order (default: %(default)s)")
    write.add_argument("--workers", type=count_of, default=available_cores(), help="processes (default: all cores)")

    index = commands.add_parser("index", help="indexes for shards that are there")
    index.add_argument("shards", nargs="+", help="tars, folders, or patterns in quotes, such as 'x/{000..999}.tar'")
    index.add_argument("--kind", choices=KINDS, required=True, help="what is read from them")
    index.add_argument(
        "--cache-root", type=Path, help="where indexes go that cannot lie beside their shards (a run's env.cache_root)"
    )
    index.add_argument("--workers", type=count_of, default=available_cores(), help="processes (default: all cores)")
    given = parser.parse_args(arguments)
    if given.command == "write":
        plain, configured = (given.annotation, given.images, given.kind), (given.cfg_path, given.dataset)
        if not (all(plain) and not any(configured) or all(configured) and not any(plain)):
            write.error("accepted: --annotation, --images and --kind, or --cfg-path and --dataset")
    return given


def open_rows(given: argparse.Namespace) -> ImageDataset:
    """The rows that are to be written, read by the dataset class that trains on them."""
    if given.cfg_path:
        cfg = Config(given)
        if given.dataset not in cfg.datasets_cfg:
            raise ConfigError(f"{given.cfg_path} has no dataset {given.dataset!r}; accepted: {listed(cfg.datasets_cfg)}")
        root = {"cache_root": cfg.env_cfg.cache_root} if cfg.env_cfg.cache_root else {}
        builder = registry.get_builder_class(given.dataset)(cfg.datasets_cfg[given.dataset], **root)
        cls = builder.dataset_class("train")
        if not issubclass(cls, (CaptionDataset, RegionDataset)) or issubclass(cls, ShardDataset):
            raise ConfigError(f"dataset {given.dataset} holds neither captions nor regions of picture files")
        return builder.open_dataset("train", builder.annotation_files("train"))
    wanted = RegionDataset if given.kind == "regions" else CaptionDataset
    modality = "image_region" if given.kind == "regions" else "image"
    processors = {"vis_processor": BaseProcessor(), "text_processor": BaseProcessor()}
    names = {"name": "make_shards", "split": "train", "modality": modality}
    return wanted(ann_paths=given.annotation, vis_root=given.images, **processors, **names)


def settings_of(given: argparse.Namespace, dataset: ImageDataset, kind: str) -> dict[str, object]:
    """What decides the shards."""
    files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in dataset.files]
    order = given.seed if given.shuffle else None
    cut = {"samples_per_shard": given.samples_per_shard, "max_size": given.max_size, "max_side": given.max_side}
    return {"kind": kind, "files": files, "images": str(dataset.vis_root), "shuffle": order, **cut}


def write_shards(given: argparse.Namespace) -> int:
    dataset = open_rows(given)
    kind = "regions" if isinstance(dataset, RegionDataset) else "captions"
    check_settings(given.output, "make_shards", settings_of(given, dataset, kind))
    if not (given.output / shards.PLAN).is_file():
        seed = given.seed if given.shuffle else None
        limits = {"samples_per_shard": given.samples_per_shard, "max_bytes": given.max_size}
        shards.write_plan(shards.plan(dataset.rows, dataset.vis_root, **limits, seed=seed), given.output)
    jobs = shards.jobs(given.output, dataset.vis_root, kind=kind, max_side=given.max_side)
    report = run_batch(jobs, shards.write_shard, done=shards.is_written, what="shards", workers=given.workers)
    left_out = Counter(reason.partition(":")[0] for _, reason in dataset.dropped)
    manifest = shards.write_manifest(jobs, planned_rows=len(dataset.rows), left_out=dict(left_out))
    problems = Problems()
    for label, reason in dataset.dropped:
        problems.add(*(f"{reason}: {label}".partition(": ")[::2]))
    named_in = problems.write(given.output / "make_shards_rows.txt")
    for line in [*(f"row left out: {line}" for line in problems.lines()), *report.lines("shards")]:
        print(line)
    if named_in:
        print(f"each row that is left out: {named_in}")
    counts = f"{manifest['samples']:,} rows of {manifest['pictures']:,} pictures in {len(manifest['shards']):,} shards"
    lost = sum(manifest["left_out"].values())
    print(f"{given.output}: {counts}, {manifest['bytes'] / 1e9:.2f} GB; {lost:,} of {dataset.rows_read:,} rows left out")
    return 1 if lost or report.exit_code else 0


def index_shards(given: argparse.Namespace) -> int:
    cache = given.cache_root or get_cache_root()
    tars, missing = find_shards(given.shards, key="shards", roots=(Path.cwd(),))
    make_indexes(tars, given.kind, cache=cache, workers=given.workers)
    catalogue = Catalogue(tars, given.kind, cache=cache, missing=missing)
    for tar, problem in catalogue.problems:
        print(f"problem: {tar}: {problem}")
    for tar, reason, count in catalogue.absent:
        print(f"problem: {tar}: {reason} ({count} rows)")
    for reason, count in catalogue.left_out.most_common():
        print(f"left out: {count:,} x {reason}")
    print(f"{int(catalogue.starts[-1]):,} rows in {len(catalogue.tars):,} shards")
    return 1 if catalogue.problems or catalogue.absent or catalogue.left_out else 0


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    try:
        return write_shards(given) if given.command == "write" else index_shards(given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
