"""Files of the Point Cloud Library, .pcd: a header of text lines, then points as text, as bytes, or as packed bytes.

Format: pointclouds.org/documentation/tutorials/pcd_file_format.html; packed bytes are LZF (liblzf, after Marc Lehmann), the
fields one after the other.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_HEADER = 64 * 1024  # bytes
MAX_UNPACKED = 512 * 2**20  # bytes
DATA = ("ascii", "binary", "binary_compressed")
KEYS = ("FIELDS", "SIZE", "TYPE", "POINTS", "DATA")
_KINDS = {"F": "f", "I": "i", "U": "u"}


def read(content: bytes) -> NDArray[np.float64]:
    """The points of a file's bytes: [N, 3] x, y, z, or [N, 6] with red, green, blue of 0 to 255. ValueError otherwise."""
    header, start = _header(content)
    fields = _fields(header)
    count = int(header["POINTS"][0])
    kind, body = header["DATA"][0], content[start:]
    if count > len(body) and kind != "binary_compressed":
        raise ValueError(f"it is cut short: {len(body)} bytes for {count} points")
    if kind == "ascii":
        rows = _rows_of_text(body, fields, count)
    elif kind == "binary":
        rows = _rows_of_bytes(body, fields, count)
    else:
        rows = _rows_of_packed(body, fields, count)
    columns = [rows[axis].reshape(count, -1)[:, 0].astype(np.float64) for axis in "xyz"]
    return np.stack([*columns, *_colour(rows, count)], axis=1)


def _header(content: bytes) -> tuple[dict[str, list[str]], int]:
    """The header by key, and where the points begin."""
    header: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in header:
        end = content.find(b"\n", at, MAX_HEADER)
        if end < 0:
            raise ValueError("it is no .pcd file, or its header is cut short")
        key, *values = content[at:end].decode("ascii", "replace").split() or ["#"]
        if not key.startswith("#"):
            header[key.upper()] = values
        at = end + 1
    if missing := [key for key in KEYS if not header.get(key)]:
        raise ValueError(f"its header lacks {', '.join(missing)}")
    if not header["POINTS"][0].isdecimal():
        raise ValueError(f"its header says POINTS {' '.join(header['POINTS'])}")
    if header["DATA"][0] not in DATA:
        raise ValueError(f"its header says DATA {' '.join(header['DATA'])}")
    return header, at


def _fields(header: dict[str, list[str]]) -> np.dtype[Any]:
    """One point as a numpy record; a field of several values has a shape."""
    names, sizes, kinds = header["FIELDS"], header["SIZE"], header["TYPE"]
    counts = header.get("COUNT") or ["1"] * len(names)
    if not len(names) == len(sizes) == len(kinds) == len(counts):
        raise ValueError("its header has unequal numbers of FIELDS, SIZE, TYPE and COUNT")
    if missing := [axis for axis in "xyz" if axis not in names]:
        raise ValueError(f"it has no field {', '.join(missing)}, only {' '.join(names)}")
    fields = []
    for index, (name, size, kind, number) in enumerate(zip(names, sizes, kinds, counts, strict=True)):
        if kind not in _KINDS or not number.isdecimal() or not 1 <= int(number) <= 4096:
            raise ValueError(f"field {name} has TYPE {kind} and COUNT {number}")
        try:
            dtype = np.dtype(f"<{_KINDS[kind]}{size}")
        except TypeError as error:
            raise ValueError(f"field {name} has TYPE {kind} and SIZE {size}") from error
        unused = name == "_" or name in names[:index]
        fields.append((f"unused_{index}" if unused else name, dtype, (int(number),)))
    return np.dtype(fields)


def _rows_of_text(body: bytes, fields: np.dtype[Any], count: int) -> NDArray[Any]:
    lines = body.split(b"\n")[:count]
    words = [line.split() for line in lines if line.strip()]
    width = sum(fields[name].shape[0] for name in fields.names or ())
    if len(words) < count:
        raise ValueError(f"it is cut short: {len(words)} of {count} points")
    if wrong := next((number for number, row in enumerate(words, 1) if len(row) != width), None):
        raise ValueError(f"point {wrong} has {len(words[wrong - 1])} values, not {width}")
    rows, at = np.zeros(count, dtype=fields), 0
    for name in fields.names or ():
        number = fields[name].shape[0]
        rows[name] = np.array([row[at : at + number] for row in words]).astype(fields[name].base)
        at += number
    return rows


def _rows_of_bytes(body: bytes, fields: np.dtype[Any], count: int) -> NDArray[Any]:
    if len(body) < count * fields.itemsize:
        raise ValueError(f"it is cut short: {len(body)} bytes for {count} points of {fields.itemsize}")
    return np.frombuffer(body, dtype=fields, count=count)


def _rows_of_packed(body: bytes, fields: np.dtype[Any], count: int) -> NDArray[Any]:
    if len(body) < 8:
        raise ValueError("it is cut short: no sizes before the packed points")
    packed, unpacked = struct.unpack("<II", body[:8])
    if unpacked != count * fields.itemsize or unpacked > MAX_UNPACKED:
        raise ValueError(f"it says {unpacked} unpacked bytes for {count} points of {fields.itemsize}")
    if len(body) - 8 < packed:
        raise ValueError(f"it is cut short: {len(body) - 8} of {packed} packed bytes")
    plain, rows, at = lzf_unpacked(body[8 : 8 + packed], unpacked), np.zeros(count, dtype=fields), 0
    for name in fields.names or ():
        field, number = fields[name].base, fields[name].shape[0]
        values = np.frombuffer(plain, dtype=field, count=count * number, offset=at)
        rows[name], at = values.reshape(count, number), at + values.nbytes
    return rows


def lzf_unpacked(packed: bytes, size: int) -> bytes:
    """LZF bytes unpacked to exactly `size` bytes; ValueError where they do not give that.

    A control byte below 32: as many plain bytes and one more follow. Else its top three bits are a length (7: one more byte adds
    to it) and the rest with the next byte a distance back from which length + 2 bytes are copied.
    """
    out, at = bytearray(), 0
    try:
        while at < len(packed) and len(out) <= size:
            control = packed[at]
            at += 1
            if control < 32:
                plain = packed[at : at + control + 1]
                out += plain
                at += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += packed[at]
                at += 1
            start = len(out) - ((control & 31) << 8) - packed[at] - 1
            at += 1
            if start < 0:
                raise ValueError("its packed points are damaged")
            length += 2
            piece = bytes(out[start : start + length])  # shorter than length where it runs into what it writes
            out += (piece * (length // len(piece) + 1))[:length]
    except IndexError:
        pass
    if len(out) != size:
        raise ValueError(f"its packed points are damaged: {len(out)} bytes, not {size}")
    return bytes(out)


def _colour(rows: NDArray[Any], count: int) -> list[NDArray[np.float64]]:
    """Red, green and blue [N] of a packed field rgb or rgba (a float's bits are the colour), or of fields r, g, b; else none."""
    names = rows.dtype.names or ()
    for name in ("rgb", "rgba"):
        if name in names and rows.dtype[name].base.itemsize == 4:
            bits = np.ascontiguousarray(rows[name].reshape(count, -1)[:, 0]).view(np.uint32)
            return [((bits >> shift) & 255).astype(np.float64) for shift in (16, 8, 0)]
    if {"r", "g", "b"} <= set(names):
        return [rows[name].reshape(count, -1)[:, 0].astype(np.float64) for name in "rgb"]
    return []
