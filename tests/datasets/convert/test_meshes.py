"""Meshes to clouds: by area, with colours, and every object by its own draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from lavis.common.errors import ConfigError
from lavis.datasets.convert.batch import BadItem
from lavis.datasets.convert.meshes import Job, Sampling, find_objects, generator, is_prepared, prepare, sample_file

SMALL = Sampling(points=512)
RED, GREEN, BLUE = ([255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255])


def sample(path: Path, **sampling: Any) -> np.ndarray:
    given = Sampling(**{"points": 512, **sampling})
    return sample_file(path, given, generator(given.seed, path.stem))


def square(*, size: float = 1.0, **more: Any) -> trimesh.Trimesh:
    corners = [[0, 0, 0], [size, 0, 0], [size, size, 0], [0, size, 0]]
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False, **more)


@pytest.mark.parametrize("method", ["area", "farthest"])
@pytest.mark.parametrize("suffix", ["glb", "obj", "ply", "stl", "off"])
def test_every_format_lies_on_its_surface(tmp_path: Path, suffix: str, method: str) -> None:
    path = tmp_path / f"box.{suffix}"
    trimesh.creation.box((1, 2, 4)).export(path)
    cloud = sample(path, method=method)
    assert cloud.shape == (512, 3) and cloud.dtype == np.float32
    np.testing.assert_allclose(cloud.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(cloud, axis=1).max(), 1, atol=1e-6)
    extents = np.ptp(cloud, axis=0)
    np.testing.assert_allclose(extents / extents[2], [0.25, 0.5, 1], atol=0.02)
    low, high = cloud.min(axis=0), cloud.max(axis=0)
    on_a_side = (np.minimum(cloud - low, high - cloud) < 1e-5).any(axis=1)
    assert on_a_side.all(), "no point lies inside"
    assert len(np.unique(cloud, axis=0)) == 512


def test_area_decides_over_all_parts_of_a_scene(tmp_path: Path) -> None:
    """A large and a small square, far apart and used twice by the scene: points by area, not by triangle."""
    scene = trimesh.Scene()
    scene.add_geometry(square(size=3))
    for x in (10.0, 20.0):
        place = np.eye(4)
        place[0, 3] = x
        scene.add_geometry(trimesh.creation.box((0.5, 0.5, 0.5)), transform=place)  # its area is 1.5
    scene.export(tmp_path / "scene.glb")
    cloud = sample(tmp_path / "scene.glb", points=6000)
    gaps = np.sort(np.argsort(np.diff(np.sort(cloud[:, 0])))[-2:]) + 1
    shares = np.diff([0, *gaps, 6000]) / 6000
    np.testing.assert_allclose(shares, [9 / 12, 1.5 / 12, 1.5 / 12], atol=0.03)


def test_farthest_points_are_spread(tmp_path: Path) -> None:
    square().export(tmp_path / "square.ply")
    nearest = {}
    for method in ("area", "farthest"):
        cloud = sample(tmp_path / "square.ply", points=256, method=method)
        distances = np.linalg.norm(cloud[:, None] - cloud[None], axis=2) + 9 * np.eye(256)
        nearest[method] = distances.min(axis=1).min()
    assert nearest["farthest"] > 5 * nearest["area"]


def test_colours(tmp_path: Path) -> None:
    """Of vertices, of faces, of a texture, of a material; grey where there are none."""
    vertices = square(vertex_colors=[RED, RED, BLUE, BLUE])  # red below, blue above
    vertices.export(tmp_path / "vertices.ply")
    cloud = sample(tmp_path / "vertices.ply", color=True)
    up = (cloud[:, 1] - cloud[:, 1].min()) / np.ptp(cloud[:, 1])
    assert cloud.shape == (512, 6) and not cloud[:, 4].any()
    np.testing.assert_allclose(cloud[:, 5], up, atol=0.02)
    np.testing.assert_allclose(cloud[:, 3] + cloud[:, 5], 1, atol=1e-5)

    pixels = np.zeros((8, 64, 3), dtype=np.uint8)
    pixels[:, :32, 0], pixels[:, 32:, 1] = 255, 255  # red left, green right
    texture = square()
    visual = trimesh.visual.TextureVisuals(uv=[[0, 0], [1, 0], [1, 1], [0, 1]])
    visual.material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.fromarray(pixels), baseColorFactor=[255, 51, 0, 255]
    )
    texture.visual = visual
    texture.export(tmp_path / "texture.glb")
    cloud = sample(tmp_path / "texture.glb", color=True)
    left, right = cloud[cloud[:, 0] < -0.05], cloud[cloud[:, 0] > 0.05]
    np.testing.assert_allclose(left[:, 3:], np.tile([1, 0, 0], (len(left), 1)), atol=0.01)
    np.testing.assert_allclose(right[:, 3:], np.tile([0, 0.2, 0], (len(right), 1)), atol=0.01)

    plain = square()
    plain.visual = trimesh.visual.TextureVisuals(material=trimesh.visual.material.PBRMaterial(baseColorFactor=[0, 0, 255, 255]))
    plain.export(tmp_path / "plain.glb")
    np.testing.assert_allclose(sample(tmp_path / "plain.glb", color=True)[:, 3:], np.tile([0, 0, 1], (512, 1)), atol=0.01)

    square(face_colors=[RED, GREEN]).export(tmp_path / "faces.ply")
    cloud = sample(tmp_path / "faces.ply", color=True)
    assert set(map(tuple, cloud[:, 3:].tolist())) == {(1, 0, 0), (0, 1, 0)}
    square().export(tmp_path / "none.stl")
    assert (sample(tmp_path / "none.stl", color=True)[:, 3:] == 0.5).all()


def test_clouds_of_points(tmp_path: Path) -> None:
    points = np.random.RandomState(0).randn(900, 3)
    trimesh.PointCloud(points, colors=np.tile(GREEN, (900, 1))).export(tmp_path / "cloud.ply")
    for method in ("area", "farthest"):
        cloud = sample(tmp_path / "cloud.ply", method=method, color=True)
        assert len(np.unique(cloud[:, :3], axis=0)) == 512, "points of the file, none twice"
        assert (cloud[:, 3:] == [0, 1, 0]).all()
    with pytest.raises(BadItem, match="too few points: .*cloud.ply has 900 and no faces, a cloud takes 901"):
        sample(tmp_path / "cloud.ply", points=901)
    assert len(sample(tmp_path / "cloud.ply", points=900)) == 900


def test_draws_depend_on_seed_and_id_alone(tmp_path: Path) -> None:
    square().export(tmp_path / "a.ply")
    square().export(tmp_path / "b.ply")
    first = sample(tmp_path / "a.ply")
    other = sample(tmp_path / "b.ply")
    np.testing.assert_array_equal(first, sample(tmp_path / "a.ply"))
    assert not np.array_equal(first, other) and not np.array_equal(first, sample(tmp_path / "a.ply", seed=1))


def test_bad_meshes_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.obj").write_text("")
    (tmp_path / "broken.glb").write_bytes(b"glTF\x02\x00\x00\x00")
    trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]], process=False).export(tmp_path / "flat.ply")
    trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]], [[0, 1, 2]], process=False).export(tmp_path / "nan.ply")
    trimesh.PointCloud(np.ones((600, 3))).export(tmp_path / "one.ply")
    for name, message in (
        ("empty.obj", "no geometry"),
        ("broken.glb", "broken mesh"),
        ("flat.ply", "no surface: the faces of"),
        ("nan.ply", "not finite"),
        ("one.ply", "one repeated point"),
    ):
        with pytest.raises(BadItem, match=f"{message}.*{name}"):
            sample(tmp_path / name)


def test_objects_of_a_folder(tmp_path: Path) -> None:
    for name in ("000-000/a.glb", "000-001/b.OBJ", "000-001/b.mtl", "000-002/a.glb", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    objects, problems = find_objects(tmp_path)
    assert objects == {"a": tmp_path / "000-000/a.glb", "b": tmp_path / "000-001/b.OBJ"}
    assert problems.counts == {"second file of an object, not read": 1}
    assert set(find_objects(tmp_path, by_folder=True)[0]) == {"000-000", "000-001", "000-002"}
    (tmp_path / "none").mkdir()
    for folder in (tmp_path / "none", tmp_path / "gone"):
        with pytest.raises(ValueError, match="no objects there|no folder"):
            find_objects(folder)


def test_what_is_done_is_known(tmp_path: Path) -> None:
    square().export(tmp_path / "a.ply")
    job = Job("a", tmp_path / "a.ply", tmp_path / "out", SMALL)
    assert not is_prepared(job)
    prepare(job)
    assert job.target == tmp_path / "out" / "a" / "a_8192.npz" and is_prepared(job)
    assert not is_prepared(Job("a", job.source, job.output, Sampling(points=511)))
    assert not is_prepared(Job("a", job.source, job.output, Sampling(points=512, color=True)))
    job.target.write_bytes(job.target.read_bytes()[:-100])
    assert not is_prepared(job)


@pytest.mark.parametrize(("wrong", "message"), [({"points": 1}, "points is 1"), ({"method": "grid"}, "accepted: area, farthest")])
def test_settings_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**wrong)
