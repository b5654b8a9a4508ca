"""Runs over data in shards are killed, and go on: log lines and weights are bit by bit those of the run never killed.

Real processes of train.py on a tiny RegionBLIP, regions and captions in turn, both from shards, with augmentation and dropout;
each process has another number of data workers than the one before.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from tests.mixed_run import ROOT, write_run
from tests.test_kill_matrix import Straight, chain, finish, kill_in_save, make_data, run_config
from tests.tools.tool import run


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    folder = tmp_path_factory.mktemp("shards")
    make_data(folder)
    return run_config(folder, write_shards_run(folder))


def write_shards_run(folder: Path) -> Path:
    """The mixed run with shards of 3 pictures in the place of files, and without clouds."""
    path = write_run(folder)
    config = yaml.safe_load(path.read_text())
    names = {"regions": ("general_box_caption", "region_shards"), "captions": ("coco_caption", "caption_shards")}
    for kind, (plain, sharded) in names.items():
        block = config["datasets"].pop(plain)
        info = block["build_info"]
        samples = "36" if kind == "regions" else "6"
        given = ("-a", info["annotations"]["train"]["storage"], "--images", info["images"]["storage"], "--kind", kind)
        limits = ("--samples-per-shard", samples, "--shuffle", "--workers", "1")
        assert run("make_shards", "write", *given, "-o", folder / kind, *limits) == 0
        assert len(list((folder / kind).glob("*.tar"))) == 4
        info = {"storage": str(folder / kind)}
        config["datasets"][sharded] = {**block, "build_info": info, "shards_at_once": 2, "shuffle": 20, "index_workers": 1}
    del config["datasets"]["pointcloud_caption"]
    config["model"]["modalities"] = {"pointcloud": None, "pointcloud_region": None}
    config["run"]["valid_splits"] = []
    path.write_text(yaml.safe_dump(config))
    return path


def test_the_straight_run_reads_both(straight: Straight) -> None:
    assert {row["modality"] for row in straight.log if "modality" in row} == {"image", "image_region"}
    assert ROOT.joinpath("train.py").is_file() and len(straight.log) > 10


def test_killed_in_mid_epoch(straight: Straight) -> None:
    """In the third save of the first epoch; the next process has other workers."""
    output = straight.folder / "once"
    assert kill_in_save(straight, output, 2, "renamed", 3)
    finish(straight, output)


@pytest.mark.slow
def test_killed_at_many_moments(straight: Straight) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed of the moments: {seed}")  # shown where the test fails
    assert chain(straight, "many", seed, 10) >= 10
