"""Reading ScanNet's raw files. What a file should hold and does not is a BadItem, which names it.

Letters: P vertices, F faces.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis.common.files import read_json
from lavis.datasets.convert.batch import BadItem

Array = NDArray[Any]

_LISTS = re.compile(rb"property\s+list\s+\w+\s+\w+\s+(vertex_ind(?:ex|ices))")


@dataclass(frozen=True)
class Group:
    """An object as it is annotated."""

    object_id: int
    label: str
    segments: list[int]


def read_mesh(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vertices [P, 6] (x, y, z, red, green, blue) and faces [F, 3] of a PLY file. BadItem where they are not there."""
    from plyfile import PlyData, PlyParseError

    _must_exist(path)
    known = _LISTS.search(path.read_bytes()[:4096])
    lengths = {"face": {known.group(1).decode(): 3}} if known else {}  # triangles are then read at once, not one by one
    try:
        try:
            mesh = PlyData.read(str(path), known_list_len=lengths)
        except PlyParseError:  # a face of another number of corners, or a broken file: told apart by reading it slowly
            mesh = PlyData.read(str(path))
        vertex = mesh["vertex"]
        columns = [np.asarray(vertex[name], dtype=np.float32) for name in ("x", "y", "z", "red", "green", "blue")]
        faces = _triangles(mesh["face"].data, path) if "face" in mesh else np.empty((0, 3), dtype=np.int64)
    except (PlyParseError, ValueError, KeyError, EOFError, OSError) as error:
        if isinstance(error, BadItem):
            raise
        raise BadItem(f"broken mesh: {path}, {type(error).__name__}: {error}") from error
    vertices = np.stack(columns, axis=1)
    bad = int((~np.isfinite(vertices)).sum())
    if bad or not len(vertices):
        raise BadItem(f"broken mesh: {path} has {len(vertices)} vertices, {bad} of their numbers are not finite")
    if len(faces) and not (faces.min() >= 0 and faces.max() < len(vertices)):
        raise BadItem(f"broken mesh: {path} has faces of vertices {faces.min()} to {faces.max()}, and {len(vertices)} vertices")
    return vertices, faces


def _triangles(faces: Array, path: Path) -> NDArray[np.int64]:
    name = next((name for name in faces.dtype.names or () if name.startswith("vertex_ind")), None)
    if name is None:
        raise BadItem(f"broken mesh: {path} has faces without vertex_indices")
    if not len(faces):
        return np.empty((0, 3), dtype=np.int64)
    corners = faces[name]
    if corners.dtype == object:
        if {len(face) for face in corners} != {3}:
            raise BadItem(f"broken mesh: {path} has faces that are no triangles")
        corners = np.stack(list(corners))
    return corners.astype(np.int64)


def read_alignment(path: Path) -> NDArray[np.float64]:
    """The matrix [4, 4] of the line `axisAlignment = ...` of a scene's text file. BadItem where there is none."""
    _must_exist(path)
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "axisAlignment":
            try:
                matrix = np.array([float(number) for number in value.split()]).reshape(4, 4)
            except ValueError as error:
                raise BadItem(f"malformed axis alignment: {path} has {value.strip()[:80]!r}, not 16 numbers") from error
            if not np.isfinite(matrix).all() or not np.allclose(matrix[3], [0, 0, 0, 1]):
                raise BadItem(f"malformed axis alignment: {path}, whose last row is {matrix[3].tolist()}")
            return matrix
    raise BadItem(f"no axis alignment: {path} has no line axisAlignment = ...")


def read_segments(path: Path, count: int) -> NDArray[np.int64]:
    """The segment of each of `count` vertices: [P]. BadItem where they are not one each."""
    content = _read_json(path, what="segments")
    try:
        segments = np.asarray(content["segIndices"])
        if segments.ndim != 1 or segments.dtype.kind not in "iu":
            raise TypeError("segIndices are not whole numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise BadItem(f"malformed segments: {path}, {type(error).__name__}: {error}") from error
    if len(segments) != count:
        raise BadItem(f"segments of another mesh: {path} has {len(segments)}, the mesh has {count} vertices")
    return segments.astype(np.int64)


def read_groups(path: Path) -> list[Group]:
    """The annotated objects of a scene. BadItem where one is malformed or annotated twice."""
    content = _read_json(path, what="objects")
    groups = []
    try:
        for row in content["segGroups"]:
            number, label, segments = row["objectId"], row["label"], row["segments"]
            whole = [isinstance(value, int) and value >= 0 for value in (number, *segments)]
            if not all(whole) or not isinstance(label, str):
                raise TypeError(f"object {str(number)[:20]} is {str(row)[:60]}")
            groups.append(Group(number, label, segments))
    except (KeyError, TypeError) as error:
        raise BadItem(f"malformed objects: {path}, {type(error).__name__}: {error}") from error
    ids = [group.object_id for group in groups]
    twice = sorted({number for number in ids if ids.count(number) > 1})
    if twice:
        raise BadItem(f"malformed objects: {path} has objectId {twice[0]} more than once")
    return groups


def read_label_ids(path: Path) -> dict[str, int]:
    """{name of an object: its NYU40 number} of scannetv2-labels.combined.tsv. ValueError where it is something else."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            columns = rows.fieldnames or []
            if not {"raw_category", "nyu40id"} <= set(columns):
                raise ValueError(f"its columns are {', '.join(columns)[:120]}; accepted: raw_category, nyu40id and others")
            ids = {row["raw_category"]: int(row["nyu40id"] or 0) for row in rows}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as the table of labels ({error})") from error
    if not ids:
        raise ValueError(f"{path}: the table of labels is empty")
    return ids


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise BadItem(f"missing file: {path}")


def _read_json(path: Path, *, what: str) -> Any:
    _must_exist(path)
    try:
        return read_json(path)
    except ValueError as error:
        raise BadItem(f"broken {what}: {error}") from error
