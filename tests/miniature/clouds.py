"""Clouds of the miniature: Objaverse from meshes and Cap3D's table, ScanNet from raw scenes, ModelNet40's pickle."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import trimesh

from tests.datasets.convert.raw_scannet import write_labels, write_scene
from tests.datasets.files import write_json
from tests.miniature.pictures import Ids
from tests.tiny import TEXTS
from tests.tools.tool import run

POINTS = 8192
TRAIN_OBJECTS, TEST_OBJECTS = 18, 4
TRAIN_SCENES, VAL_SCENES = tuple(f"scene{n:04d}_00" for n in range(5)), ("scene0011_00", "scene0015_00", "scene0019_00")
DESCRIBED = ("0", "1")  # the objects of a generated scene that ScanRefer speaks of
CLASSES = """
airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser flower_pot glass_box guitar keyboard
lamp laptop mantel monitor night_stand person piano plant radio range_hood sink sofa stairs stool table tent toilet tv_stand vase
wardrobe xbox
"""
SHAPES = 7


def objaverse(data: Path) -> Ids:
    """Meshes and Cap3D's csv table, converted by tools/prepare_objaverse.py."""
    raw = data / "objaverse"
    objects = [f"{7919 * (n + 1):032x}" for n in range(TRAIN_OBJECTS + TEST_OBJECTS)]
    for number, object_id in enumerate(objects):
        folder = raw / "glbs" / f"000-{number % 3:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        trimesh.creation.box((1, 2, 1 + number)).export(folder / f"{object_id}.glb")
    lines = [f'{name},"{TEXTS[n % 4]}, and more"\n' for n, name in enumerate(objects)]
    (raw / "Cap3D_automated_Objaverse_full.csv").write_text("".join(lines))
    (raw / "test_ids.txt").write_text("\n".join(objects[TRAIN_OBJECTS:]))
    clouds = data / "objaverse_pc_parallel"
    assert run("prepare_objaverse", "clouds", "-i", raw / "glbs", "-o", clouds, "--workers", "1") == 0
    (data / "Cap3D").mkdir(parents=True)
    for split, choice in (("train", "--without"), ("test", "--ids")):
        target = data / "Cap3D" / f"Cap3D_automated_Objaverse_{split}.txt"
        table = raw / "Cap3D_automated_Objaverse_full.csv"
        given = ("-i", table, "-o", target, choice, raw / "test_ids.txt", "--clouds", clouds, "--strict")
        assert run("prepare_objaverse", "captions", *given) == 0
    return {"pointcloud_caption": set(objects[TRAIN_OBJECTS:])}


def scannet(data: Path) -> Ids:
    """Raw scenes, converted by tools/prepare_scannet.py, and ScanRefer's descriptions."""
    for number, scene in enumerate((*TRAIN_SCENES, *VAL_SCENES)):
        write_scene(data / "ScanNet" / "scans", scene, seed=number, points=600)
    labels = write_labels(data / "ScanNet" / "scannetv2-labels.combined.tsv")
    assert convert_scenes(data, labels) == 0
    for split, scenes in (("train", TRAIN_SCENES), ("val", VAL_SCENES)):
        rows = [
            {
                **{"scene_id": scene, "object_id": number, "object_name": "chair", "ann_id": str(k)},
                **{"description": f"there is {TEXTS[k]}.", "token": ["there", "is", *TEXTS[k].split(), "."]},
            }
            for scene in scenes
            for number in DESCRIBED
            for k in range(2)
        ]
        write_json(data / "ScanRefer" / f"ScanRefer_filtered_{split}.json", rows)
    return {"scannet_refer": {f"{scene}_{number}" for scene in VAL_SCENES for number in DESCRIBED}}


def convert_scenes(data: Path, labels: Path) -> int:
    """The exit code of the converter."""
    return run("prepare_scannet", "-i", data / "ScanNet" / "scans", "-l", labels, "-o", data / "scannet_data", "--workers", "1")


def modelnet40(data: Path) -> Ids:
    """ULIP's pickle of the test split: points with normals, labels as arrays."""
    folder = data / "modelnet40_normal_resampled"
    folder.mkdir(parents=True)
    (folder / "modelnet40_shape_names.txt").write_text("\n".join(CLASSES.split()) + "\n")
    rng = np.random.RandomState(0)
    points = [rng.standard_normal((POINTS, 6)).astype(np.float32) for _ in range(SHAPES)]
    labels = [np.array([5 * n], dtype=np.int32) for n in range(SHAPES)]
    (folder / "modelnet40_test_8192pts_fps.dat").write_bytes(pickle.dumps([points, labels], protocol=4))
    return {"mobilenet40": set(range(SHAPES))}
