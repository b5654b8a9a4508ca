"""Generated scenes in ScanNet's raw format, and what their arrays should be, computed one vertex at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from plyfile import PlyData, PlyElement

LABELS = {"wall": 1, "floor": 2, "chair": 5, "coffee table": 7, "étagère": 15, "lamp": 35}


def write_labels(path: Path, labels: dict[str, int] = LABELS) -> Path:
    rows = ["id\traw_category\tcategory\tcount\tnyu40id\teigen13id"]
    rows += [f"{number}\t{name}\t{name}\t3\t{nyu}\t1" for number, (name, nyu) in enumerate(labels.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def alignment(seed: int) -> np.ndarray:
    angle = 0.3 + seed
    return np.array(
        [
            [math.cos(angle), -math.sin(angle), 0, 1.5],
            [math.sin(angle), math.cos(angle), 0, -2.25],
            [0, 0, 1, 0.125],
            [0, 0, 0, 1],
        ]
    )


def write_scene(root: Path, scene: str, *, seed: int = 0, points: int = 60, text: bool = False) -> Path:
    """A scene of three annotated objects (a chair, a thing that the table does not name, a wall) and vertices of none."""
    rng = np.random.RandomState(seed)
    folder = root / scene
    folder.mkdir(parents=True)
    vertices = np.zeros(points, dtype=[(name, "f4") for name in "xyz"] + [(n, "u1") for n in ("red", "green", "blue", "alpha")])
    for name in "xyz":
        vertices[name] = rng.uniform(-3, 3, points)
    for name in ("red", "green", "blue"):
        vertices[name] = rng.randint(0, 256, points)
    faces = np.zeros(points, dtype=[("vertex_indices", "i4", (3,))])
    steps = rng.randint(1, points // 2, (points, 2)).cumsum(axis=1)  # from a corner to the two others: never back to it
    faces["vertex_indices"] = (np.arange(points)[:, None] + np.c_[np.zeros(points, dtype=int), steps]) % points
    elements = [PlyElement.describe(vertices, "vertex"), PlyElement.describe(faces, "face")]
    PlyData(elements, text=text).write(str(folder / f"{scene}_vh_clean_2.ply"))
    segments = rng.randint(0, 7, points) * 100 + 3
    groups = [(0, "chair", [3, 303]), (1, "no such name", [103]), (4, "wall", [503])]
    rows = [{"id": i, "objectId": o, "segments": s, "label": label} for i, (o, label, s) in enumerate(groups)]
    (folder / f"{scene}.aggregation.json").write_text(json.dumps({"sceneId": f"scannet.{scene}", "segGroups": rows}))
    segs = {"params": {"kThresh": "0.01"}, "sceneId": scene, "segIndices": segments.tolist()}
    (folder / f"{scene}_vh_clean_2.0.010000.segs.json").write_text(json.dumps(segs))
    numbers = " ".join(f"{number:.6f}" for number in alignment(seed).reshape(-1))
    (folder / f"{scene}.txt").write_text(f"axisAlignment = {numbers} \ncolorHeight = 968\nsceneType = Office\n")
    return folder


def expected(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a scene, by loops over its raw files."""
    scene = folder.name
    mesh = PlyData.read(str(folder / f"{scene}_vh_clean_2.ply"))
    groups = json.loads((folder / f"{scene}.aggregation.json").read_text())["segGroups"]
    segments = json.loads((folder / f"{scene}_vh_clean_2.0.010000.segs.json").read_text())["segIndices"]
    line = (folder / f"{scene}.txt").read_text().splitlines()[0]
    matrix = [float(number) for number in line.split("=")[1].split()]
    points = [[float(vertex[name]) for name in ("x", "y", "z", "red", "green", "blue")] for vertex in mesh["vertex"]]
    normals = _normals(points, [list(face[0]) for face in mesh["face"]])
    turned = [[sum(matrix[4 * i + k] * p[k] for k in range(3)) + matrix[4 * i + 3] for i in range(3)] for p in points]
    turned_normals = [[sum(matrix[4 * i + k] * n[k] for k in range(3)) for i in range(3)] for n in normals]
    arrays: dict[str, Any] = {
        "vert": [[*p, *n] for p, n in zip(points, normals, strict=True)],
        "aligned_vert": [[*t, *p[3:], *n] for t, p, n in zip(turned, points, turned_normals, strict=True)],
        "ins_label": [0] * len(points),
        "sem_label": [0] * len(points),
        "bbox": [],
        "aligned_bbox": [],
    }
    for group in groups:
        nyu = LABELS.get(group["label"], 0)
        own = [i for i, segment in enumerate(segments) if segment in group["segments"]]
        for i in own:
            arrays["ins_label"][i], arrays["sem_label"][i] = group["objectId"] + 1, nyu
        for name, cloud in (("bbox", points), ("aligned_bbox", turned)):
            low = [min(cloud[i][axis] for i in own) for axis in range(3)]
            high = [max(cloud[i][axis] for i in own) for axis in range(3)]
            middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
            extents = [b - a for a, b in zip(low, high, strict=True)]
            arrays[name].append([*middle, *extents, nyu, group["objectId"]])
    return {name: np.array(array) for name, array in arrays.items()}


def _normals(points: list[list[float]], faces: list[list[int]]) -> list[list[float]]:
    sums = [[0.0, 0.0, 0.0] for _ in points]
    for face in faces:
        a, b, c = (points[corner][:3] for corner in face)
        u, v = ([y - x for x, y in zip(a, end, strict=True)] for end in (b, c))
        normal = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]
        length = math.sqrt(sum(x * x for x in normal))
        for corner in face:
            sums[corner] = [total + x / length for total, x in zip(sums[corner], normal, strict=True)]
    lengths = [math.sqrt(sum(x * x for x in total)) or 1.0 for total in sums]
    return [[x / length for x in total] for total, length in zip(sums, lengths, strict=True)]
