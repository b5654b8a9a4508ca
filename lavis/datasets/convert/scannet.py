"""ScanNet's raw scenes to the arrays that ScanRefer's readers take.

A raw scene is a folder `<scene>/` with `<scene>_vh_clean_2.ply` (the mesh), `<scene>_vh_clean_2.0.010000.segs.json` (a
segment for each vertex), `<scene>.aggregation.json` (objects, made of segments) and `<scene>.txt` (with the rotation and
shift that make its walls parallel to the axes); `scannetv2-labels.combined.tsv` gives objects' names numbers. Arrays:

    <scene>_vert.npy, <scene>_aligned_vert.npy   [P, 9] float32: x, y, z in metres, red, green, blue of 0 to 255, normal
    <scene>_ins_label.npy                        [P] uint32: the object of each vertex, its objectId + 1; 0 for none
    <scene>_sem_label.npy                        [P] uint32: the NYU40 number of that object's name; 0 for none
    <scene>_bbox.npy, <scene>_aligned_bbox.npy   [K, 8] float64: centre, extents, NYU40 number, objectId

Layout after ScanRefer (code daveredrum/ScanRefer, data/scannet). What differs: every vertex is kept unless `max_points`
says otherwise (ScanRefer draws 50,000, unseeded); every object with vertices has a box, walls, floors and unnamed objects
too (a reader looks boxes up by objectId); a vertex normal is the mean of the normals of all its faces, where ScanRefer's
sum kept one of them, and is turned with the aligned vertices; an object that the table does not name has number 0, where
ScanRefer stopped.

Letters: P vertices, F faces, K objects.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis.common.files import replacing
from lavis.datasets.convert.batch import BadItem, Note
from lavis.datasets.convert.scannet_files import Group, read_alignment, read_groups, read_mesh, read_segments

Array = NDArray[Any]

# The arrays of a scene. The last is written last, and taken away first: with it a scene is complete.
ARRAYS = ("vert", "ins_label", "sem_label", "bbox", "aligned_vert", "aligned_bbox")


@dataclass(frozen=True)
class Scene:
    """A scene's arrays by the names of ARRAYS, and what is odd about it."""

    arrays: dict[str, Array]
    notes: list[Note]


@dataclass(frozen=True)
class Job:
    """A scene to be converted: where it lies, where its arrays go, and how."""

    folder: Path
    output: Path
    label_ids: dict[str, int] = field(repr=False)
    max_points: int | None = None

    @property
    def scene(self) -> str:
        return self.folder.name

    def array(self, name: str) -> Path:
        """The path of one of ARRAYS."""
        return self.output / f"{self.scene}_{name}.npy"


def vertex_normals(points: Array, faces: Array) -> NDArray[np.float64]:
    """[P, 3] unit normals: the mean of the unit normals of a vertex's faces; zeros for a vertex without faces."""
    a, b, c = (points[faces[:, corner]].astype(np.float64) for corner in range(3))
    of_faces = _unit(np.cross(b - a, c - a))
    ends, weights = faces.reshape(-1), np.repeat(of_faces, 3, axis=0)
    sums = [np.bincount(ends, weights=weights[:, axis], minlength=len(points)) for axis in range(3)]
    return _unit(np.stack(sums, axis=1).astype(np.float64))  # of no faces, bincount makes integers


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def align(vertices: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Vertices [P, 9] moved by a matrix [4, 4]: positions turned and shifted, normals turned."""
    turn, shift = matrix[:3, :3], matrix[:3, 3]
    aligned = vertices.copy()
    aligned[:, :3] = vertices[:, :3].astype(np.float64) @ turn.T + shift
    aligned[:, 6:] = vertices[:, 6:].astype(np.float64) @ turn.T
    return aligned


def objects_of(segments: NDArray[np.int64], groups: list[Group], path: Path) -> tuple[NDArray[np.int64], list[Note]]:
    """The place in `groups` of each vertex, -1 for none: [P]. A segment of two objects belongs to the later one; the
    second result names such, and segments that no vertex has. BadItem where all segments of an object are of that kind."""
    known, of_vertex = np.unique(segments, return_inverse=True)
    owner = np.full(len(known), -1, dtype=np.int64)
    notes: list[Note] = []
    for place, group in enumerate(groups):
        wanted = np.unique(np.asarray(group.segments, dtype=np.int64))
        at = np.searchsorted(known, wanted)
        there = known[np.minimum(at, len(known) - 1)] == wanted
        if len(wanted) and not there.any():
            raise BadItem(f"objects of other segments: {path}, no vertex has a segment of object {group.object_id}")
        notes += [("segment without vertices", f"{number} of object {group.object_id}") for number in wanted[~there]]
        others = [groups[other].object_id for other in np.unique(owner[at[there]]) if other >= 0]
        notes += [("segments of two objects", f"objects {other} and {group.object_id}") for other in others]
        owner[at[there]] = place
    return owner[of_vertex.reshape(-1)], notes


def boxes_of(points: Array, owner: NDArray[np.int64], numbers: list[tuple[int, int]]) -> NDArray[np.float64]:
    """[K, 8] boxes around the vertices of each object, in the order of their ids: centre, extents, NYU40 number, id.
    `numbers`: (NYU40 number, id) by place. Objects without vertices have none."""
    rows = []
    order = np.argsort(owner, kind="stable")
    places, starts = np.unique(owner[order], return_index=True)
    for place, start, end in zip(places.tolist(), starts, [*starts[1:], len(order)], strict=True):
        if place >= 0:
            own = points[order[start:end], :3].astype(np.float64)
            low, high = own.min(axis=0), own.max(axis=0)
            rows.append([*(low + high) / 2, *high - low, *numbers[place]])
    return np.array(sorted(rows, key=lambda row: row[7]), dtype=np.float64).reshape(-1, 8)


def convert_scene(job: Job) -> Scene:
    """The arrays of a raw scene. BadItem says why there are none."""
    prefix = job.folder / job.scene
    coloured, faces = read_mesh(Path(f"{prefix}_vh_clean_2.ply"))
    matrix = read_alignment(Path(f"{prefix}.txt"))
    segments = read_segments(Path(f"{prefix}_vh_clean_2.0.010000.segs.json"), len(coloured))
    # ScanRefer reads the objects of the mesh in full resolution (_vh_clean): taken where those of this mesh are not there
    objects = next((path for name in ("", "_vh_clean") if (path := Path(f"{prefix}{name}.aggregation.json")).is_file()), None)
    if objects is None:
        raise BadItem(f"missing file: {prefix}.aggregation.json")
    groups = read_groups(objects)

    normals = vertex_normals(coloured[:, :3], faces).astype(np.float32)
    vertices = np.concatenate([coloured, normals], axis=1)
    aligned = align(vertices, matrix)
    owner, notes = objects_of(segments, groups, objects)
    numbers = [(job.label_ids.get(group.label, 0), group.object_id) for group in groups]
    arrays = {
        "vert": vertices,
        "aligned_vert": aligned,
        "ins_label": np.array([0, *(number + 1 for _, number in numbers)], dtype=np.uint32)[owner + 1],
        "sem_label": np.array([0, *(label for label, _ in numbers)], dtype=np.uint32)[owner + 1],
        "bbox": boxes_of(vertices, owner, numbers),
        "aligned_bbox": boxes_of(aligned, owner, numbers),
    }
    if not len(faces):
        notes.append(("mesh without faces, its normals are zero", str(len(vertices))))
    notes += _oddities(groups, arrays["aligned_bbox"], job.label_ids)
    return _sampled(Scene(arrays, [(kind, f"{place} of {job.scene}") for kind, place in notes]), job)


def _oddities(groups: list[Group], boxes: Array, label_ids: dict[str, int]) -> Iterator[Note]:
    """What is odd about objects and their boxes [K, 8]."""
    volumes = {int(box[7]): bool((box[3:6] > 0).all()) for box in boxes}
    for group in groups:
        if group.label not in label_ids:
            yield "name that is not in the table of labels", f"{group.label!r}, object {group.object_id}"
        if group.object_id not in volumes:
            yield "object without vertices", f"object {group.object_id}"
        elif not volumes[group.object_id]:
            yield "box without volume", f"object {group.object_id}"


def _sampled(scene: Scene, job: Job) -> Scene:
    """The scene with `max_points` of its vertices, drawn by its name alone; boxes are those of all vertices."""
    count = len(scene.arrays["vert"])
    if job.max_points is None or count <= job.max_points:
        return scene
    rng = np.random.RandomState(zlib.crc32(job.scene.encode()))
    kept = np.sort(rng.choice(count, job.max_points, replace=False))
    arrays = {name: array if "bbox" in name else array[kept] for name, array in scene.arrays.items()}
    return replace(scene, arrays=arrays)


# One scene from beginning to end


def prepare(job: Job) -> list[Note]:
    """Convert a scene and write its arrays; returns what is odd about it."""
    scene = convert_scene(job)
    job.array(ARRAYS[-1]).unlink(missing_ok=True)
    for name in ARRAYS:
        with replacing(job.array(name), durable=False) as stream:
            np.save(stream, scene.arrays[name])
    return scene.notes


def is_prepared(job: Job) -> bool:
    """Whether all arrays of a scene are there, whole, and of one number of vertices and objects."""
    try:
        found = {name: np.load(job.array(name), mmap_mode="r", allow_pickle=False) for name in ARRAYS}
    except (OSError, ValueError, EOFError):
        return False
    count, boxes = len(found["vert"]), len(found["bbox"])
    shapes = {"vert": (count, 9), "aligned_vert": (count, 9), "bbox": (boxes, 8), "aligned_bbox": (boxes, 8)}
    return all(array.shape == shapes.get(name, (count,)) for name, array in found.items())


def find_scenes(folder: Path, listed: Path | None) -> list[str]:
    """The scenes of a list, a name per line, or else every folder below `folder`. ValueError for none."""
    try:
        if listed is not None:
            lines = listed.read_text(encoding="utf-8-sig").splitlines()
            scenes = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        else:
            scenes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"no scenes can be found: {error}") from error
    if not scenes:
        raise ValueError(f"{listed or folder}: no scenes there; accepted: a folder per scene")
    return scenes
