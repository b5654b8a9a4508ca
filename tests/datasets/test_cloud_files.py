"""Clouds from files of every accepted format, and the files that are refused."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from lavis.datasets import cloud_files, pcd
from lavis.datasets.cloud_files import CloudFileError, read_cloud

RNG = np.random.RandomState(0)
XYZ = RNG.uniform(-1, 1, (50, 3)).astype(np.float32)
RGB = RNG.randint(0, 256, (50, 3)).astype(np.uint8)
COLOURED = np.concatenate([XYZ, RGB], axis=1).astype(np.float32)


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def ply(*, colours: Any = None, text: bool = False) -> bytes:
    kinds = [(axis, "f4") for axis in "xyz"]
    if colours is not None:
        kinds += [(channel, colours.dtype.str) for channel in ("red", "green", "blue")]
    rows = np.zeros(len(XYZ), dtype=kinds)
    for index, axis in enumerate("xyz"):
        rows[axis] = XYZ[:, index]
    for index, channel in enumerate(("red", "green", "blue") if colours is not None else ()):
        rows[channel] = colours[:, index]
    faces = np.array([([0, 1, 2],), ([2, 3, 4],)], dtype=[("vertex_indices", "i4", (3,))])
    stream = io.BytesIO()
    PlyData([PlyElement.describe(rows, "vertex"), PlyElement.describe(faces, "face")], text=text).write(stream)
    return stream.getvalue()


def lzf_packed(plain: bytes) -> bytes:
    """Plain runs, and a copy with overlap where a byte is repeated: all that the format knows."""
    out, at = bytearray(), 0
    while at < len(plain):
        run = 1
        while at + run < len(plain) and plain[at + run] == plain[at] and run < 200:
            run += 1
        if run >= 10:
            copied = run - 1  # one plain byte, then its copies, one byte back
            out += bytes([0, plain[at], (7 << 5), copied - 2 - 7, 0])
            at += run
        else:
            piece = plain[at : at + 8]
            out += bytes([len(piece) - 1]) + piece
            at += len(piece)
    return bytes(out)


def pcd_file(data: str, *, colours: bool = True, points: int = 50) -> bytes:
    packed = (RGB.astype(np.uint32) << np.array([16, 8, 0], dtype=np.uint32)).sum(axis=1).astype(np.uint32)
    rows = np.zeros(50, dtype=[("x", "<f4"), ("normal", "<f4", (2,)), ("y", "<f4"), ("z", "<f4"), ("rgb", "<f4")])
    rows["x"], rows["y"], rows["z"] = XYZ.T
    rows["rgb"] = packed.view(np.float32)
    name = "rgb" if colours else "intensity"
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\n"
        f"FIELDS x normal y z {name}\nSIZE 4 4 4 4 4\nTYPE F F F F F\nCOUNT 1 2 1 1 1\n"
        f"WIDTH 50\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {points}\nDATA {data}\n"
    ).encode()
    if data == "ascii":
        lines = (f"{row['x']!s} 0 0 {row['y']!s} {row['z']!s} {row['rgb']!s}\n" for row in rows)
        return header + "".join(lines).encode()
    if data == "binary":
        return header + rows.tobytes()
    plain = b"".join(np.ascontiguousarray(rows[field]).tobytes() for field in rows.dtype.names)
    body = lzf_packed(plain)
    return header + struct.pack("<II", len(body), len(plain)) + body


GOOD = {
    "a.npy": (npy(XYZ), XYZ),
    "double.npy": (npy(XYZ.astype(np.float64)), XYZ),
    "fortran.npy": (npy(np.asfortranarray(XYZ)), XYZ),
    "colour.npy": (npy(COLOURED), COLOURED),
    "scene.npy": (npy(np.concatenate([COLOURED, XYZ], axis=1)), COLOURED),
    "a.npz": (npz(arr_0=XYZ, other=RGB), XYZ),
    "only.NPZ": (npz(points=COLOURED), COLOURED),
    "a.ply": (ply(), XYZ),
    "text.ply": (ply(colours=RGB, text=True), COLOURED),
    "colour.ply": (ply(colours=RGB), COLOURED),
    "share.ply": (ply(colours=(RGB / 255).astype(np.float32)), COLOURED),
    "plain.pcd": (pcd_file("binary", colours=False), XYZ),
    "ascii.pcd": (pcd_file("ascii", colours=False), XYZ),
    "binary.pcd": (pcd_file("binary"), COLOURED),
    "packed.pcd": (pcd_file("binary_compressed"), COLOURED),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("given", ["path", "bytes", "stream"])
def test_files_that_people_have(name: str, given: str, tmp_path: Path) -> None:
    content, expected = GOOD[name]
    path = tmp_path / name
    path.write_bytes(content)
    if given == "path":
        cloud = read_cloud(path)
    elif given == "bytes":
        cloud = read_cloud(content, name)
    else:
        with path.open("rb") as stream:
            cloud = read_cloud(stream)
    assert cloud.dtype == np.float32
    np.testing.assert_allclose(cloud, expected, rtol=0, atol=1e-4)


def nan(rows: int) -> np.ndarray:
    array = XYZ.copy()
    array[:rows, 1] = np.nan
    return array


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


BAD = {
    "notes.txt": (b"1 2 3", r"notes\.txt: \.txt says no format of clouds; accepted: \.npy, \.npz, \.ply, \.pcd"),
    "cloud": (npy(XYZ), r"cloud: no suffix says no format"),
    "empty.npy": (b"", r"empty\.npy: the file is empty"),
    "none.npy": (npy(XYZ[:0]), r"none\.npy: it has no points; accepted: a \.npy file of finite numbers"),
    "flat.npy": (npy(XYZ[:, 0]), r"it holds float32 \(50,\)"),
    "narrow.npy": (npy(XYZ[:, :2]), r"it holds float32 \(50, 2\)"),
    "words.npy": (npy(np.array([["a", "b", "c"]])), r"it holds <U1"),
    "nan.npy": (npy(nan(3)), r"nan\.npy: not finite: 3 of 50 points"),
    "same.npy": (npy(np.ones((5, 3))), r"one repeated point"),
    "cut.npy": (npy(XYZ)[:-10], r"it is cut short: 10 bytes of its array \(50, 3\)"),
    "header.npy": (npy(XYZ)[:9], r"header\.npy: "),
    "objects.npy": (npy(np.array([[Evil(), 1, 2]], dtype=object), allow_pickle=True), r"it holds object \(1, 3\)"),
    "pickle.npy": (pickle.dumps(Evil()), r"it is no \.npy file"),
    "huge.npy": (npy(XYZ).replace(b"(50, 3)", b"(9999999999, 3)"), r"huge\.npy: "),
    "text.npz": (b"hello", r"it is no \.npz file, or it is cut short"),
    "cut.npz": (npz(arr_0=XYZ)[:-30], r"it is no \.npz file, or it is cut short"),
    "two.npz": (npz(a=XYZ, b=XYZ), r"it holds 2 arrays and none is arr_0: a, b"),
    "objects.npz": (npz(arr_0=np.array([[Evil(), 1, 2]], dtype=object)), r"it holds object"),
    "text.ply": (b"hello", r"it is no \.ply file"),
    "cut.ply": (ply()[:400], r"cut\.ply: .*accepted: a \.ply file"),
    "wrong.ply": (ply().replace(b"property float y", b"property float q"), r"has no y, only q, x, z"),
    "points.ply": (ply().replace(b"element vertex", b"element points"), r"it has no element vertex, only face, points"),
    "many.ply": (ply().replace(b"element face 2", b"element face 200000000000"), r"it is cut short: .*200000000000 of face"),
    "text.pcd": (b"hello\n", r"it is no \.pcd file"),
    "cut_ascii.pcd": (pcd_file("ascii")[:-300], r"it is cut short|has \d values"),
    "cut_binary.pcd": (pcd_file("binary")[:-1], r"it is cut short: 1199 bytes for 50 points of 24"),
    "cut_packed.pcd": (pcd_file("binary_compressed")[:-1], r"it is cut short: .* packed bytes"),
    "more.pcd": (pcd_file("binary", points=10**12), r"it is cut short"),
    "kind.pcd": (pcd_file("lossy"), r"its header says DATA lossy"),
    "noxyz.pcd": (pcd_file("binary").replace(b"FIELDS x", b"FIELDS u"), r"it has no field x, only u normal y z rgb"),
    "type.pcd": (pcd_file("binary").replace(b"TYPE F", b"TYPE Q"), r"field x has TYPE Q"),
    "word.pcd": (pcd_file("ascii").replace(b"\n0", b"\nzero", 1), r"word\.pcd: "),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_refused_by_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CloudFileError, match=message) as caught:
        read_cloud(path, name)
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(CloudFileError, match=r"away\.npy: no such file"):
        read_cloud(tmp_path / "away.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(CloudFileError, match="is a folder"):
        read_cloud(tmp_path / "folder.npy")
    with pytest.raises(CloudFileError, match="needs a name"):
        read_cloud(npy(XYZ))
    with pytest.raises(CloudFileError, match="needs a name"):
        read_cloud(io.BytesIO(npy(XYZ)))


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CloudFileError, match="it has 50 points; accepted: at most 49"):
        read_cloud(npy(XYZ), "a.npy", max_points=49)
    monkeypatch.setattr(cloud_files, "MAX_BYTES", 2**20)
    with pytest.raises(CloudFileError, match="larger than 1 MB"):
        read_cloud(b"\0" * (2**20 + 1), "a.npy")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:  # 4 MB of zeros in some kilobytes
        archive.writestr("arr_0.npy", npy(np.zeros((2**18, 4), np.float32)))
    with pytest.raises(CloudFileError, match="its array has 4 MB, more than 1"):
        read_cloud(stream.getvalue(), "bomb.npz")


def test_lzf() -> None:
    plain = bytes(300) + b"abcabcabc" + bytes(range(200)) + b"z" * 150
    packed = lzf_packed(plain)
    assert len(packed) < len(plain) and pcd.lzf_unpacked(packed, len(plain)) == plain
    assert pcd.lzf_unpacked(bytes([2]) + b"abc" + bytes([(4 << 5), 2]), 9) == b"abcabcabc"  # 6 bytes from 3 back
    for damaged, size in ((packed[:-1], len(plain)), (packed, len(plain) - 1), (bytes([32, 5]), 3)):
        with pytest.raises(ValueError, match="damaged"):
            pcd.lzf_unpacked(damaged, size)
