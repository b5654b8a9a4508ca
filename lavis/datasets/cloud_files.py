"""Point clouds from files that people have: .npy, .npz, .ply and .pcd.

`read_cloud` takes a path, bytes or a binary stream and gives x, y, z and, where the file has it, colour. Nothing in a file is
executed: arrays of Python objects are refused. Sizes are checked against the file before memory is asked for, so that a small
file cannot ask for much.

.npy   numbers [N, 3 or more]: x, y, z; columns 3, 4 and 5, where they are, count as red, green, blue; more are left out
.npz   the same, of `arr_0` or of the only array
.ply   element vertex with x, y, z and perhaps red, green, blue (or r, g, b); faces are left out
.pcd   fields x, y, z and perhaps rgb or rgba; DATA ascii, binary or binary_compressed
       (format: pointclouds.org/documentation/tutorials/pcd_file_format.html)
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis.common.errors import ConfigError, listed
from lavis.common.files import Source, read_bounded
from lavis.datasets import pcd
from lavis.datasets.cloud_geometry import as_cloud

MAX_POINTS = 5_000_000
MAX_BYTES = 512 * 2**20  # of a file, and of an array unpacked from one
COLOURS = (("red", "green", "blue"), ("r", "g", "b"))


class CloudFileError(ConfigError):
    """A file that holds no usable cloud: the message names the file, what is wrong with it and what is accepted."""


def read_cloud(source: Source, name: str | None = None, *, max_points: int = MAX_POINTS) -> NDArray[np.float32]:
    """The points of a file: float32 [N, 3], or [N, 6] where it has colour (of .ply and .pcd: 0 to 255; of arrays: as it is).

    `name` stands in messages, and its suffix says the format; bytes need one. CloudFileError (a ValueError) for a file that is
    missing, empty, cut short, too large, of another format, without points, with NaN or infinity, or of one repeated point.
    """
    name = name or _name_of(source)
    suffix = Path(name).suffix.lower()
    if suffix not in READERS:
        raise CloudFileError(f"{name}: {suffix or 'no suffix'} says no format of clouds; accepted: {', '.join(READERS)}")
    content = read_bounded(source, name, most=MAX_BYTES, error=CloudFileError)
    read, accepted = READERS[suffix]
    try:
        points = read(content)
        if not len(points):
            raise ValueError("it has no points")
        if len(points) > max_points:
            raise ValueError(f"it has {len(points)} points; accepted: at most {max_points}")
        return as_cloud(points, use_color=points.ndim == 2 and points.shape[1] >= 6)
    except Exception as error:  # numpy, zipfile and plyfile raise a dozen kinds for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CloudFileError(f"{name}: {reason}; accepted: {accepted}") from error


def _name_of(source: Source) -> str:
    if isinstance(source, bytes):
        raise CloudFileError("a cloud given as bytes needs a name, whose suffix says its format")
    named = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
    if not isinstance(named, str | os.PathLike):
        raise CloudFileError("a cloud given as a stream needs a name, whose suffix says its format")
    return os.fspath(named)


def _npy(content: bytes) -> NDArray[Any]:
    stream = io.BytesIO(content)
    if not content.startswith(np.lib.format.MAGIC_PREFIX):
        raise ValueError("it is no .npy file")
    version = np.lib.format.read_magic(stream)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in headers:
        raise ValueError(f"it is a .npy file of version {version}, which holds no plain numbers")
    shape, _, dtype = headers[version](stream)
    if dtype.kind not in "iuf" or len(shape) != 2 or shape[1] < 3:
        raise ValueError(f"it holds {dtype} {tuple(shape)}")
    if (missing := shape[0] * shape[1] * dtype.itemsize - (len(content) - stream.tell())) > 0:
        raise ValueError(f"it is cut short: {missing} bytes of its array {tuple(shape)} are missing")
    stream.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _npz(content: bytes) -> NDArray[Any]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile as error:
        raise ValueError("it is no .npz file, or it is cut short") from error
    with archive:
        arrays = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
        if "arr_0" not in arrays and len(arrays) != 1:
            raise ValueError(f"it holds {len(arrays)} arrays and none is arr_0: {listed(arrays, limit=8)}")
        chosen = arrays.get("arr_0") or next(iter(arrays.values()))
        if chosen.file_size > MAX_BYTES:
            raise ValueError(f"its array has {chosen.file_size >> 20} MB, more than {MAX_BYTES >> 20}")
        return _npy(archive.read(chosen))


def _ply(content: bytes) -> NDArray[Any]:
    from plyfile import PlyData

    head, end, body = content.partition(b"end_header")
    if not content.startswith(b"ply") or not end:
        raise ValueError("it is no .ply file, or its header is cut short")
    for element, count in re.findall(rb"^element\s+(\S+)\s+(\d+)", head, re.MULTILINE):
        if int(count) > len(body):  # every element takes at least a byte
            raise ValueError(f"it is cut short: {len(body)} bytes for {int(count)} of {element.decode('ascii', 'replace')}")
    ply = PlyData.read(io.BytesIO(content))
    if "vertex" not in ply:
        raise ValueError(f"it has no element vertex, only {listed(element.name for element in ply.elements)}")
    vertex = ply["vertex"].data
    names = vertex.dtype.names or ()
    if missing := [axis for axis in "xyz" if axis not in names]:
        raise ValueError(f"its element vertex has no {', '.join(missing)}, only {listed(names)}")
    columns = [np.asarray(vertex[axis], dtype=np.float64) for axis in "xyz"]
    found = next((colour for colour in COLOURS if set(colour) <= set(names)), ())
    for channel in found:
        values = np.asarray(vertex[channel])
        columns.append(values.astype(np.float64) * (255.0 if values.dtype.kind == "f" else 1.0))  # as floats: 0 to 1
    return np.stack(columns, axis=1)


_ARRAY = "numbers [N, 3 or more], x, y, z first"
READERS: dict[str, tuple[Callable[[bytes], NDArray[Any]], str]] = {  # suffix -> its reader, and what that accepts
    ".npy": (_npy, f"a .npy file of finite {_ARRAY}"),
    ".npz": (_npz, f"a .npz file of one array, or of arr_0, of finite {_ARRAY}"),
    ".ply": (_ply, "a .ply file whose element vertex has finite x, y, z"),
    ".pcd": (pcd.read, "a .pcd file with finite fields x, y, z, and DATA ascii, binary or binary_compressed"),
}
