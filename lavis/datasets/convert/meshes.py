"""Meshes and clouds of points to the clouds that the builder pointcloud_caption reads: `<id>/<id>_8192.npz`, `arr_0` [N, 3].

A mesh is sampled on its surface, each triangle by its area; a cloud of points is thinned out. The result is centred on its
mean and scaled into the unit sphere, in the axes of the file (y is up in glTF, as the reader's augmentation takes it), and
with `color` has red, green and blue of 0 to 1 behind x, y, z. All draws of an object follow from the seed and its id. Layout
after ULIP's Objaverse (code salesforce/ULIP), whose clouds have 8192 points.

Letters: N points of a cloud, M points drawn, F faces.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis.common.errors import ConfigError
from lavis.common.files import replacing
from lavis.datasets import cloud_geometry
from lavis.datasets.convert.batch import BadItem, Note
from lavis.datasets.convert.problems import Problems

Array = NDArray[Any]

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".off", ".stl")
METHODS = ("area", "farthest")
AHEAD = 4  # points drawn for each that `farthest` keeps
GREY = 0.5  # the colour of a surface that has none


@dataclass(frozen=True)
class Sampling:
    """How clouds are made: N points, by area alone or the farthest of more, with colour or without."""

    points: int = 8192
    method: str = "area"
    color: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ConfigError(f"points is {self.points}; accepted: an integer of 2 or more")
        if self.method not in METHODS:
            raise ConfigError(f"method is {self.method!r}; accepted: {', '.join(METHODS)}")


@dataclass(frozen=True)
class Job:
    """An object to be converted."""

    object_id: str
    source: Path
    output: Path
    sampling: Sampling

    @property
    def target(self) -> Path:
        """Where the reader looks for the cloud, whatever its number of points."""
        return self.output / self.object_id / f"{self.object_id}_8192.npz"


def find_objects(folder: Path, *, by_folder: bool = False) -> tuple[dict[str, Path], Problems]:
    """{object id: its file} of the files of SUFFIXES in a folder and below, and two files of one id as problems: the first
    in order is taken. An id is the file's name, or with `by_folder` that of its folder. ValueError for none."""
    objects: dict[str, Path] = {}
    problems = Problems()
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}")
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()):
        object_id = path.parent.name if by_folder else path.stem
        if object_id in objects:
            problems.add("second file of an object, not read", f"{path} beside {objects[object_id]}")
        objects.setdefault(object_id, path)
    if not objects:
        raise ValueError(f"{folder}: no objects there; accepted: files of {', '.join(SUFFIXES)}")
    return objects, problems


def generator(seed: int, object_id: str) -> np.random.Generator:
    """The draws of one object, whatever is converted before or beside it."""
    words = np.frombuffer(hashlib.sha256(object_id.encode()).digest(), dtype="<u4")
    return np.random.default_rng([seed, *words.tolist()])


def sample_file(path: Path, sampling: Sampling, rng: np.random.Generator) -> NDArray[np.float32]:
    """The cloud [N, 3 or 6] of a file. BadItem says why there is none."""
    parts = _parts(path)
    surfaces = [part for part in parts if len(getattr(part, "faces", ())) and part.area > 0]
    drawn = sampling.points * (AHEAD if sampling.method == "farthest" else 1)
    if surfaces:
        points, colors = _sample_surfaces(surfaces, drawn, rng)
    else:
        if any(len(getattr(part, "faces", ())) for part in parts):
            raise BadItem(f"no surface: the faces of {path} have no area")
        points, colors = _points_of(parts)
        if len(points) < sampling.points:
            raise BadItem(f"too few points: {path} has {len(points)} and no faces, a cloud takes {sampling.points}")
    if not np.isfinite(points).all():
        raise BadItem(f"not finite: {path} has NaN or infinity")
    if (points == points[0]).all():
        raise BadItem(f"one repeated point: {path}")
    kept = _thinned(points, sampling, rng)
    cloud = cloud_geometry.unit_sphere(points[kept].astype(np.float64))
    if sampling.color:
        cloud = np.concatenate([cloud, colors[kept]], axis=1)
    return cloud.astype(np.float32)


def _parts(path: Path) -> list[Any]:
    """The meshes and clouds of a file where its scene puts them. BadItem for a file that holds none, or is broken."""
    import trimesh

    try:
        parts: list[Any] = trimesh.load_scene(str(path), process=False).dump()
    except Exception as error:  # a broken file raises almost anything
        raise BadItem(f"broken mesh: {path}, {type(error).__name__}: {error}") from error
    parts = [part for part in parts if isinstance(part, (trimesh.Trimesh, trimesh.PointCloud)) and len(part.vertices)]
    if not parts:
        raise BadItem(f"no geometry: {path}")
    if not all(np.isfinite(part.vertices).all() for part in parts):
        raise BadItem(f"not finite: {path} has NaN or infinity")
    return parts


def _sample_surfaces(meshes: list[Any], count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Points [M, 3] on meshes, each triangle by its share of the area of all, and their colours [M, 3] of 0 to 1."""
    import trimesh

    areas = np.array([mesh.area for mesh in meshes])
    points, colors = [], []
    for mesh, own in zip(meshes, rng.multinomial(count, areas / areas.sum()), strict=True):
        # trimesh takes a seed, not a generator, in some of its versions
        places, faces = trimesh.sample.sample_surface(mesh, int(own), seed=int(rng.integers(1 << 31)))[:2]
        points.append(np.asarray(places))
        colors.append(_colors_on(mesh, np.asarray(faces), np.asarray(places)))
    return np.concatenate(points), np.concatenate(colors)


def _colors_on(mesh: Any, faces: Array, points: Array) -> Array:
    """The colours [M, 3] of 0 to 1 at `points` [M, 3] of `faces` [M]: texture, else vertices, else faces, else grey."""
    import trimesh

    kind = mesh.visual.kind
    if kind == "face":
        return np.asarray(mesh.visual.face_colors)[faces, :3] / 255.0
    if kind not in ("texture", "vertex") or not len(points):
        return np.full((len(points), 3), GREY)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[faces], points)[:, :, None]
    if kind == "vertex":
        return (np.asarray(mesh.visual.vertex_colors)[mesh.faces[faces], :3] * weights).sum(axis=1) / 255.0
    material = mesh.visual.material
    # glTF tints its texture by a factor, white unless it is given; other formats have either a texture or a colour
    gltf = hasattr(material, "baseColorFactor")
    image, tint = (material.baseColorTexture, material.baseColorFactor) if gltf else (getattr(material, "image", None), None)
    textured = image is not None and mesh.visual.uv is not None
    if tint is None:
        tint = (255, 255, 255) if gltf or textured else material.main_color
    tint = np.asarray(tint)[:3] / 255.0
    if not textured:
        return np.tile(tint, (len(points), 1))
    uv = (np.asarray(mesh.visual.uv)[mesh.faces[faces]] * weights).sum(axis=1)
    return trimesh.visual.color.uv_to_interpolated_color(uv, image)[:, :3] / 255.0 * tint


def _points_of(parts: list[Any]) -> tuple[Array, Array]:
    """The points [M, 3] of clouds, and their colours [M, 3] of 0 to 1, grey where they have none."""
    points = np.concatenate([np.asarray(part.vertices) for part in parts])
    colors = []
    for part in parts:
        own = getattr(part, "colors", None)
        known = own is not None and len(own) == len(part.vertices)
        colors.append(np.asarray(own)[:, :3] / 255.0 if known else np.full((len(part.vertices), 3), GREY))
    return points, np.concatenate(colors)


def _thinned(points: Array, sampling: Sampling, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which N of the points [M, 3] are kept: any, or each the farthest from those before it, in random order."""
    if sampling.method == "area" or len(points) == sampling.points:
        return rng.permutation(len(points))[: sampling.points]
    import fpsample

    start = int(rng.integers(len(points)))
    kept = fpsample.bucket_fps_kdline_sampling(points.astype(np.float32), sampling.points, h=7, start_idx=start)
    return np.asarray(kept, dtype=np.int64)


def prepare(job: Job) -> list[Note]:
    """Convert an object and write its cloud."""
    cloud = sample_file(job.source, job.sampling, generator(job.sampling.seed, job.object_id))
    with replacing(job.target, durable=False) as stream:
        np.savez(stream, arr_0=cloud)
    return []


def is_prepared(job: Job) -> bool:
    """Whether an object's cloud is there, whole, and of the shape asked for. Reads its head alone: there may be many."""
    try:
        with zipfile.ZipFile(job.target) as archive, archive.open("arr_0.npy") as array:
            np.lib.format.read_magic(array)
            shape = np.lib.format.read_array_header_1_0(array)[0]
    except Exception:  # a broken archive raises almost anything; the object is then converted anew
        return False
    return shape == (job.sampling.points, 6 if job.sampling.color else 3)


def jobs(objects: Mapping[str, Path], output: Path, sampling: Sampling) -> dict[str, Job]:
    """{object id: its job}."""
    return {name: Job(name, path, output, sampling) for name, path in objects.items()}
