"""Reads what a run will read, and tells what is missing, unreadable or inconsistent, before a GPU is booked.

    python tools/check_data.py --cfg-path run_scripts/train/regions.yaml --workers 8
    python tools/check_data.py --cfg-path X.yaml --options run.evaluate=true --limit 1000 --json check.json

It checks the splits that train.py (with run.evaluate: evaluate.py) would read, and the files that the model names. Of every
picture the header is read, and 200 per split are decoded; --decode decodes all, which finds pictures cut short. Clouds are read
whole.
--limit N looks at N rows per split, evenly spread (each annotation file is still read to its end).

The exit code is 0 where all is well, 1 where it is not, 2 where the configuration cannot be read. Rows that a run would skip
count as not well, but for --tolerate 0.001: up to that share of a split's rows, of each kind. Notes never do.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from lavis.common.config import Config
from lavis.common.errors import ConfigError
from lavis.datasets.checking import Depth, check_datasets
from lavis.datasets.findings import FileCheck, SplitCheck
from lavis.evaluation.files import write_text
from lavis.models.weights.file_checks import check_model_files
from lavis.runners.checks import check_run
from lavis.tasks import setup_task
from lavis.tasks.scoring_checks import scoring_errors


def splits_of(cfg: Config) -> list[str]:
    """The splits that the run reads, as train.py takes them."""
    run = cfg.run_cfg
    trained = [] if run.evaluate else [*run.train_splits, *run.valid_splits]
    return list(dict.fromkeys([*trained, *run.test_splits]))


def check(cfg: Config, given: argparse.Namespace) -> dict[str, Any]:
    """Everything that there is to tell, as plain data but for the splits."""
    errors: list[str] = []
    task = None
    try:
        check_run(cfg.run_cfg)
        task = setup_task(cfg)
    except ConfigError as error:
        errors.append(str(error))
    files = [FileCheck(*found) for found in check_model_files(cfg.model_cfg)]
    splits, of_data = check_datasets(
        cfg.datasets_cfg,
        given.splits or splits_of(cfg),
        depth=Depth(limit=given.limit, decode=given.decode, workers=given.workers),
        cache_root=cfg.env_cfg.cache_root,
        progress=lambda items, what, total: tqdm(items, desc=what, total=total, unit="x256 rows", disable=None, leave=False),
        also=lambda dataset: scoring_errors(task, dataset) if task is not None else [],
    )
    return {"splits": splits, "files": files, "errors": errors + of_data}


def lines(found: dict[str, Any], *, tolerate: float) -> Iterable[str]:
    """The report for people."""
    for error in found["errors"]:
        yield f"ERROR    {error}"
    file: FileCheck
    for file in found["files"]:
        yield f"{'ERROR   ' if file.problem else 'ok      '} {file.key} {file.path}{f': {file.problem}' if file.problem else ''}"
    split: SplitCheck
    for split in found["splits"]:
        word = "ERROR   " if split.errors else "ok      " if split.is_fine(tolerate) else "PROBLEM "
        looked = f"{split.loaded:,} looked at" + (f", {split.whole:,} of them whole" if split.whole < split.loaded else "")
        yield f"{word} {split.name}: {split.rows:,} rows, {split.samples:,} samples, {looked} ({split.seconds:.0f} s)"
        yield from (f"           {error}" for error in split.errors)
        yield from (f"           {line}" for line in split.problems.lines())
        yield from (
            f"           note: {line}" if not line.startswith(" ") else f"           {line}" for line in split.notes.lines()
        )


def verdict(found: dict[str, Any], *, tolerate: float) -> str:
    """The last line of the report: every error of configuration, model files and splits is counted; empty where all is well."""
    splits: list[SplitCheck] = found["splits"]
    errors = (
        len(found["errors"]) + sum(bool(file.problem) for file in found["files"]) + sum(len(split.errors) for split in splits)
    )
    problems = sum(not split.is_tolerable(tolerate) for split in splits)
    said = [f"{errors} error{'' if errors == 1 else 's'}"] if errors else []
    return "; ".join([*said, f"problems in {problems} of {len(splits)} splits"] if problems else said)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg-path", required=True, help="the YAML that train.py or evaluate.py would be given")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override configuration keys")
    parser.add_argument("--splits", nargs="+", help="check these splits, whatever the run reads")
    parser.add_argument("--workers", type=int, default=4, help="processes that read (default: 4)")
    parser.add_argument("--limit", type=int, metavar="N", help="look at N rows per split")
    parser.add_argument("--decode", action="store_true", help="decode every picture whole")
    parser.add_argument(
        "--tolerate", type=float, default=0.0, metavar="SHARE", help="of rows with one kind of problem (default: 0)"
    )
    parser.add_argument("--json", metavar="OUT", help="write what was found as JSON, too")
    given = parser.parse_args(arguments)
    if given.workers < 0 or (given.limit is not None and given.limit < 1) or not 0 <= given.tolerate <= 1:
        parser.error("accepted: --workers of 0 or more, --limit of 1 or more, --tolerate from 0 to 1")
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    start = time.perf_counter()
    level = logging.getLogger("lavis").level
    logging.getLogger("lavis").setLevel(logging.CRITICAL)  # rows left out are in the report, counted
    try:
        cfg = Config(given)
        found = check(cfg, given)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        logging.getLogger("lavis").setLevel(level)
    for line in lines(found, tolerate=given.tolerate):
        print(line)
    wrong = verdict(found, tolerate=given.tolerate)
    fine = not wrong
    print("all is well" if fine else f"not well: {wrong} ({time.perf_counter() - start:.0f} s)")
    if given.json:
        plain = {
            "config": given.cfg_path,
            "ok": fine,
            "errors": found["errors"],
            "files": [file.to_dict() for file in found["files"]],
            "splits": [{**split.to_dict(), "ok": split.is_fine(given.tolerate)} for split in found["splits"]],
        }
        write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", given.json)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
