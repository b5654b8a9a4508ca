"""Pickles as data: what is in them is read, nothing of it is run."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import numpy as np


def _encode(text: str, encoding: str) -> bytes:
    """How a pickle of protocol 2 spells bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"asks for text in {encoding!r}")
    return text.encode(encoding)


_PARTS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        (module, container.__name__): container
        for module in ("builtins", "__builtin__")  # of Python 3, of Python 2
        for container in (list, tuple, dict, set, frozenset)
    },
    **{
        (module, name): value
        for core in ("numpy.core", "numpy._core")
        for module, name, value in (
            (f"{core}.multiarray", "_reconstruct", np.zeros(1).__reduce__()[0]),
            (f"{core}.multiarray", "scalar", np.float64(0).__reduce__()[0]),
            (f"{core}.numeric", "_frombuffer", np.zeros(1).__reduce_ex__(5)[0]),
        )
    },
}


class DataUnpickler(pickle.Unpickler):
    """Reads containers, numbers, texts and numpy arrays. UnpicklingError for whatever else a pickle asks for, so that
    reading one runs no code of its own."""

    def __init__(self, file: IO[bytes], *, encoding: str) -> None:
        super().__init__(file, encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PARTS:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which is not plain data; it is not run")
        return _PARTS[module, name]


def read_pickle(path: str | Path, *, encoding: str = "bytes") -> Any:
    """The content of a pickle file. `encoding`: what becomes of the byte strings that Python 2 wrote, `bytes` (they stay
    bytes) or a codec such as `latin1`. ValueError for a file that is missing, broken, cut short, or more than data."""
    try:
        with open(path, "rb") as file:
            return DataUnpickler(file, encoding=encoding).load()
    except Exception as error:  # a broken pickle raises almost anything
        raise ValueError(f"{path}: cannot be read as a pickle of data ({type(error).__name__}: {error})") from error


def as_text(value: Any) -> Any:
    """The value with every byte string in it, keys included, decoded: as UTF-8, or as Latin-1 where it is not UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin1")
    if isinstance(value, dict):
        return {as_text(key): as_text(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_text(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
