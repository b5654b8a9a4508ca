"""Raw ScanNet scenes to arrays, against loops over the raw files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from lavis.datasets.convert.batch import BadItem
from lavis.datasets.convert.scannet import ARRAYS, Job, convert_scene, find_scenes, is_prepared, prepare
from lavis.datasets.convert.scannet_files import read_alignment, read_label_ids
from tests.datasets.convert.raw_scannet import LABELS, alignment, expected, write_labels, write_scene

SCENE = "scene0001_00"


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def objects(folder: Path) -> Path:
    return folder / f"{SCENE}.aggregation.json"


def segments(folder: Path) -> Path:
    return folder / f"{SCENE}_vh_clean_2.0.010000.segs.json"


def mesh(folder: Path) -> Path:
    return folder / f"{SCENE}_vh_clean_2.ply"


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_arrays_equal_a_plain_computation(tmp_path: Path, seed: int, text: bool) -> None:
    folder = write_scene(tmp_path, SCENE, seed=seed, text=text)
    scene = convert_scene(Job(folder, tmp_path, LABELS))
    wanted = expected(folder)
    for name in ("ins_label", "sem_label"):
        assert scene.arrays[name].dtype == np.uint32
        np.testing.assert_array_equal(scene.arrays[name], wanted[name])
    for name in ("vert", "aligned_vert", "bbox", "aligned_bbox"):
        assert scene.arrays[name].dtype == (np.float32 if "vert" in name else np.float64)
        np.testing.assert_allclose(scene.arrays[name], wanted[name], atol=1e-6, rtol=0)
    assert {1, 2, 5} <= set(wanted["ins_label"]) and 0 in wanted["ins_label"], "three objects, and vertices of none"
    assert scene.arrays["aligned_bbox"][:, 6:].tolist() == [[5, 0], [0, 1], [1, 4]], "a name that is not in the table is 0"
    assert scene.notes == [("name that is not in the table of labels", f"'no such name', object 1 of {SCENE}")]


def test_the_whole_way_to_files(tmp_path: Path) -> None:
    job = Job(write_scene(tmp_path / "scans", SCENE), tmp_path / "out", LABELS)
    assert not is_prepared(job)
    prepare(job)
    assert is_prepared(job)
    assert sorted(path.name for path in job.output.iterdir()) == sorted(f"{SCENE}_{name}.npy" for name in ARRAYS)
    arrays = {name: np.load(job.array(name)) for name in ARRAYS}
    for name in ARRAYS:
        job.array(name).unlink()
        assert not is_prepared(job), f"{name} is missing"
        np.save(job.array(name), arrays[name][:-1] if "bbox" not in name else arrays[name][:, :7])
        assert not is_prepared(job), f"{name} has another size"
        job.array(name).write_bytes(job.array(name).read_bytes()[:-8])
        assert not is_prepared(job), f"{name} is cut short"
        np.save(job.array(name), arrays[name])
        assert is_prepared(job)


def test_some_points_of_a_scene(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, SCENE)
    whole, some, again = (convert_scene(Job(folder, tmp_path, LABELS, count)) for count in (None, 20, 20))
    rows = [whole.arrays["vert"].tolist().index(row) for row in some.arrays["vert"].tolist()]
    assert len(rows) == 20 and rows == sorted(set(rows))
    for name in ARRAYS:
        np.testing.assert_array_equal(some.arrays[name], whole.arrays[name] if "bbox" in name else whole.arrays[name][rows])
        np.testing.assert_array_equal(some.arrays[name], again.arrays[name])
    np.testing.assert_array_equal(convert_scene(Job(folder, tmp_path, LABELS, 60)).arrays["vert"], whole.arrays["vert"])


def test_segments_decide_objects(tmp_path: Path) -> None:
    """Segments of no group are of no object; of two objects the later one; objects without vertices have no box."""
    folder = write_scene(tmp_path, SCENE)
    groups = [
        {"objectId": 7, "label": "étagère", "segments": [3, 103, 203]},
        {"objectId": 2, "label": "lamp", "segments": [103, 99999]},
        {"objectId": 5, "label": "chair", "segments": []},
    ]
    objects(folder).write_text(json.dumps({"segGroups": groups}), encoding="utf-8")
    scene = convert_scene(Job(folder, tmp_path, LABELS))
    of_vertex = np.array(json.loads(segments(folder).read_text())["segIndices"])
    assert np.array_equal(scene.arrays["ins_label"] == 3, of_vertex == 103)
    assert np.array_equal(scene.arrays["ins_label"] == 8, np.isin(of_vertex, [3, 203]))
    assert np.array_equal(scene.arrays["ins_label"] == 0, of_vertex > 203)
    assert scene.arrays["bbox"][:, 6:].tolist() == [[35, 2], [15, 7]], "in the order of their ids"
    assert sorted(scene.notes) == [
        ("object without vertices", f"object 5 of {SCENE}"),
        ("segment without vertices", f"99999 of object 2 of {SCENE}"),
        ("segments of two objects", f"objects 7 and 2 of {SCENE}"),
    ]


def test_other_files_of_the_release(tmp_path: Path) -> None:
    """Objects of the full mesh where there are no others; a mesh without faces has no normals; corners in `vertex_index`."""
    folder = write_scene(tmp_path, SCENE)
    usual = convert_scene(Job(folder, tmp_path, LABELS))
    objects(folder).rename(folder / f"{SCENE}_vh_clean.aggregation.json")
    ply = PlyData.read(str(mesh(folder)), mmap=False)
    corners = np.empty(len(ply["face"].data), dtype=[("vertex_index", object)])
    corners["vertex_index"] = list(ply["face"]["vertex_indices"])
    PlyData([ply["vertex"], PlyElement.describe(corners, "face", len_types={"vertex_index": "u1"})]).write(str(mesh(folder)))
    np.testing.assert_array_equal(convert_scene(Job(folder, tmp_path, LABELS)).arrays["vert"], usual.arrays["vert"])
    PlyData([ply["vertex"]]).write(str(mesh(folder)))
    bare = convert_scene(Job(folder, tmp_path, LABELS))
    assert not bare.arrays["vert"][:, 6:].any() and bare.notes[0][0] == "mesh without faces, its normals are zero"
    np.testing.assert_array_equal(bare.arrays["aligned_bbox"], usual.arrays["aligned_bbox"])


def other_vertices(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    ply = PlyData.read(str(mesh(folder)), mmap=False)
    PlyData([PlyElement.describe(change(np.array(ply["vertex"].data)), "vertex"), ply["face"]]).write(str(mesh(folder)))


def not_finite(vertices: np.ndarray) -> np.ndarray:
    vertices["y"][3] = np.nan
    return vertices


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no alignment": (lambda f: (f / f"{SCENE}.txt").write_text("colorHeight = 968\n"), "no axis alignment: .*line axisAlignment"),
    "short alignment": (
        lambda f: (f / f"{SCENE}.txt").write_text("axisAlignment = 1 0 0\n"),
        "malformed axis .*not 16 num",
    ),
    "no rotation": (lambda f: (f / f"{SCENE}.txt").write_text("axisAlignment = " + "1 " * 16), "malformed axis .*last row"),
    "no text": (lambda f: (f / f"{SCENE}.txt").unlink(), rf"missing file: .*{SCENE}\.txt"),
    "no mesh": (lambda f: mesh(f).unlink(), r"missing file: .*\.ply"),
    "no objects": (lambda f: objects(f).unlink(), r"missing file: .*aggregation\.json"),
    "no segments": (lambda f: segments(f).unlink(), r"missing file: .*segs\.json"),
    "mesh cut short": (lambda f: mesh(f).write_bytes(mesh(f).read_bytes()[:-40]), "broken mesh: .*PlyElementParseError"),
    "no mesh at all": (lambda f: mesh(f).write_text("hello"), "broken mesh"),
    "objects cut short": (lambda f: objects(f).write_text(objects(f).read_text()[:-9]), "broken objects: .*not a whole JSON"),
    "segments cut short": (lambda f: segments(f).write_text(segments(f).read_text()[:-9]), "broken segments: .*not a whole JSON"),
    "other objects": (
        lambda f: edit_json(objects(f), lambda c: c["segGroups"][0].update(segments=[1, 2])),
        "objects of other segments: .*no vertex has a segment of object 0",
    ),
    "an object twice": (lambda f: edit_json(objects(f), lambda c: c["segGroups"][1].update(objectId=0)), "objectId 0 more than"),
    "object without label": (lambda f: edit_json(objects(f), lambda c: c["segGroups"][0].pop("label")), "malformed .*label"),
    "object of text": (lambda f: edit_json(objects(f), lambda c: c["segGroups"][0].update(segments=["a"])), "malformed objects"),
    "fewer segments": (lambda f: edit_json(segments(f), lambda c: c["segIndices"].pop()), "has 59, the mesh has 60 vertices"),
    "segments of text": (lambda f: edit_json(segments(f), lambda c: c.update(segIndices="x")), "malformed segments"),
    "no segIndices": (lambda f: edit_json(segments(f), lambda c: c.pop("segIndices")), "malformed segments: .*segIndices"),
    "other mesh": (lambda f: other_vertices(f, lambda v: v[:40]), "faces of vertices 0 to 59, and 40 vertices"),
    "not finite": (lambda f: other_vertices(f, not_finite), "1 of their numbers are not finite"),
    "no colour": (lambda f: other_vertices(f, lambda v: v[["x", "y", "z"]].astype("f4,f4,f4")), "broken mesh"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_scenes_are_named(tmp_path: Path, kind: str) -> None:
    folder = write_scene(tmp_path, SCENE)
    damage, message = BROKEN[kind]
    damage(folder)
    with pytest.raises(BadItem, match=message) as caught:
        prepare(Job(folder, tmp_path / "out", LABELS))
    assert str(folder) in str(caught.value), "the file is named"
    assert not (tmp_path / "out").exists()


def test_the_alignment_is_that_of_the_file(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, SCENE, seed=2)
    np.testing.assert_allclose(read_alignment(folder / f"{SCENE}.txt"), alignment(2), atol=1e-6)


def test_labels(tmp_path: Path) -> None:
    assert read_label_ids(write_labels(tmp_path / "labels.tsv")) == LABELS
    for text, message in (
        ("", "its columns are"),
        ("raw_category\tnyu40id\n", "empty"),
        ("raw_category\tnyu40id\na\tx\n", "'x'"),
    ):
        (tmp_path / "bad.tsv").write_text(text)
        with pytest.raises(ValueError, match=f"bad.tsv: .*{message}"):
            read_label_ids(tmp_path / "bad.tsv")


def test_scenes_are_found(tmp_path: Path) -> None:
    for name in ("scene0002_00", SCENE, ".cache"):
        (tmp_path / "scans" / name).mkdir(parents=True)
    assert find_scenes(tmp_path / "scans", None) == [SCENE, "scene0002_00"]
    (tmp_path / "list.txt").write_text(f"scene0009_00\n\n{SCENE}\n{SCENE}\n")
    assert find_scenes(tmp_path / "scans", tmp_path / "list.txt") == ["scene0009_00", SCENE]
    shutil.rmtree(tmp_path / "scans" / SCENE)
    shutil.rmtree(tmp_path / "scans" / "scene0002_00")
    for folder in (tmp_path / "scans", tmp_path / "gone"):
        with pytest.raises(ValueError, match="no scenes"):
            find_scenes(folder, None)
