"""Checkpoint files: written whole or not at all, and checked when read.

A file is written under a temporary name beside its target, fsynced and renamed. It carries the hash of its
own content, so that a damaged file is told from a good one. Reading executes nothing: ``weights_only`` or
safetensors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lavis.common.errors import ConfigError
from lavis.common.files import replacing

logger = logging.getLogger(__name__)
HASH_KEY = "content_hash"
FOLDER_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
WRAPPERS = ("model", "state_dict", "base_model", "module")  # keys under which publishers put a state dict
_NAME = re.compile(r"checkpoint_(\d+)(?:_step(\d+))?\.pth$")


class CheckpointError(ConfigError):
    """A checkpoint file that cannot be used; the message says what is wrong with it."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """No file where a checkpoint was asked for."""


def file_hash(path: str | os.PathLike[str]) -> str:
    """sha256 of a file's bytes; of a folder: over the names and bytes of its files, sorted by name."""
    path = Path(path)
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def content_hash(state: Any) -> str:
    """sha256 over a nested state: dict keys (in sorted order), numbers, strings, and each tensor's dtype,
    shape and bytes.

    The order of dict keys and the device of tensors do not matter. TypeError on a value that ``weights_only``
    could not load again, with the path to it.
    """
    digest = hashlib.sha256()
    _update(digest, state, "")
    return digest.hexdigest()


def _update(digest: Any, value: Any, where: str) -> None:
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"t{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        digest.update(f"d{len(value)}".encode())
        for key in sorted(value, key=lambda key: (type(key).__name__, key)):
            _update(digest, key, f"{where}.{key}")
            _update(digest, value[key], f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        digest.update(f"{type(value).__name__}{len(value)}".encode())
        for index, item in enumerate(value):
            _update(digest, item, f"{where}[{index}]")
    elif value is None or type(value) in (bool, int, float, str):
        digest.update(f"{type(value).__name__}{value!r};".encode())
    else:
        raise TypeError(f"state{where} is a {type(value).__name__}; a checkpoint holds tensors and plain values only")


def _detached(value: Any) -> Any:
    """The state on the CPU, with no tensor dragging a larger storage along."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_detached(item) for item in value)
    return value


def save_checkpoint(state: dict[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write ``state`` (nested dicts and lists of tensors and plain values) to ``path`` as a whole; returns
    the path.

    Whatever happens on the way, a file that stood at ``path`` stays good: OSError (a full disk) leaves no
    temporary file.
    """
    path = Path(path)
    plain = _detached({key: value for key, value in state.items() if key != HASH_KEY})
    plain[HASH_KEY] = content_hash(plain)
    with replacing(path) as stream:
        try:
            torch.save(plain, stream)
        except RuntimeError as error:  # torch closes its zip file in the wake of a full disk, and complains of that instead
            cause = error.__context__
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise (cause or error) from None
    return path


def save_weights(state: dict[str, torch.Tensor], path: str | os.PathLike[str], *, beside: dict[str, Any] | None = None) -> Path:
    """Write a state dict as a whole: flat for ``.safetensors``, what is ``beside`` it as JSON in the metadata; else as
    ``{"model": state}`` and what is ``beside`` it.

    ConfigError for another suffix than .safetensors, .pth, .pt or .bin.
    """
    path = Path(path)
    if path.suffix in (".pth", ".pt", ".bin"):
        return save_checkpoint({"model": state, **(beside or {})}, path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: the suffix says no format; accepted: .safetensors, .pth, .pt, .bin")
    from safetensors.torch import save_file

    seen: set[int] = set()
    plain = {}
    for name, tensor in _detached(state).items():  # safetensors wants every tensor to own its bytes
        plain[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    with replacing(path) as stream:
        save_file(
            plain, stream.name, metadata={"format": "pt", **{key: json.dumps(value) for key, value in (beside or {}).items()}}
        )
    return path


def weight_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The weight files of a Hugging Face folder: all shards of its index, or its one file.

    MissingCheckpointError names the file or the shard that is not there.
    """
    folder = Path(folder)
    found = next((file for name in FOLDER_FILES if (file := folder / name).is_file()), None)
    if found is None:
        raise MissingCheckpointError(f"folder {folder} holds no weights; accepted: {', '.join(FOLDER_FILES)}")
    if found.suffix != ".json":
        return [found]
    try:
        shards = sorted({Path(name).name for name in json.loads(found.read_text())["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{found} is no index of weight files: it lacks a weight_map ({error!r})") from error
    for shard in shards:
        if not (folder / shard).is_file():
            raise MissingCheckpointError(f"folder {folder} lacks the shard {shard}, which {found.name} names")
    return [folder / shard for shard in shards]


def load_weights(
    path: str | os.PathLike[str],
    *,
    prefix: str | tuple[str, ...] = "",
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The content of a checkpoint file, or the state dict of a Hugging Face folder over all its shards.

    ``prefix``: of a folder, only the tensors whose names start so. ``progress`` is told of each file before it is read.
    Errors are those of ``load_checkpoint_file`` and ``weight_files``.
    """
    path = Path(path)
    files = weight_files(path) if path.is_dir() else [path]
    state: dict[str, Any] = {}
    for number, file in enumerate(files, 1):
        if progress is not None and file.is_file():
            progress(f"reading {file.name} ({number} of {len(files)}, {file.stat().st_size / 1e9:.2f} GB)")
        content = load_checkpoint_file(file)
        if not path.is_dir():
            return content
        state.update({key: value for key, value in content.items() if key.startswith(prefix)})
    return state


def unwrap(content: dict[str, Any]) -> dict[str, Any]:
    """The state dict in a checkpoint's content: under ``model``, ``state_dict``, ``base_model`` or ``module``, or itself.

    CheckpointError where no tensor is found.
    """
    state = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"the checkpoint holds no weights; its keys are {', '.join(map(str, list(content)[:6])) or 'none'}")
    return tensors


def load_checkpoint_file(path: str | os.PathLike[str], *, verify: bool = True) -> dict[str, Any]:
    """The content of a ``.pth``/``.pt``/``.bin`` or ``.safetensors`` file, tensors on the CPU.

    Raises MissingCheckpointError, or CheckpointError for an empty, truncated, HTML or otherwise foreign file,
    and (with ``verify``) for one of ours whose content does not match its own hash.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise MissingCheckpointError(f"checkpoint {path} {kind}")
    _refuse_foreign(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for damaged files
        raise CheckpointError(f"checkpoint {path} {_why_unreadable(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(state).__name__}, not a dict of weights")
    if verify and HASH_KEY in state:
        found = content_hash({key: value for key, value in state.items() if key != HASH_KEY})
        if found != state[HASH_KEY]:
            raise CheckpointError(f"checkpoint {path} is damaged: its content does not match its own hash")
    return state


def check_header(path: str | os.PathLike[str]) -> None:
    """See whether a file of weights is one and is whole, without reading the weights: a few milliseconds for any size.

    MissingCheckpointError, or CheckpointError for an empty, truncated or foreign file. Files that torch wrote before version 1.6
    have no table of contents; of these only the beginning is looked at.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingCheckpointError(f"checkpoint {path} does not exist")
    _refuse_foreign(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                file.keys()
            return
        with path.open("rb") as stream:
            start = stream.read(2)
        if start == b"PK":
            with zipfile.ZipFile(path) as archive:
                if not any(name.endswith("data.pkl") for name in archive.namelist()):
                    raise ValueError("an archive without data.pkl")
        elif start[:1] != b"\x80":
            raise ValueError("no file of torch.save")
    except Exception as error:  # zipfile and safetensors raise several kinds for damaged files
        raise CheckpointError(f"checkpoint {path} {_why_unreadable(error)}") from error


def _refuse_foreign(path: Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(256).lstrip().lower()
    if not head:
        raise CheckpointError(f"checkpoint {path} is empty")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"checkpoint {path} is a web page, not weights: the download did not reach the file")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"checkpoint {path} is a git-lfs pointer, not weights: fetch the file with git lfs pull")


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    first = text.splitlines()[0] if text else type(error).__name__
    if "weights_only" in text or "Unsupported global" in text or "WeightsUnpickler" in text:
        return f"holds Python objects other than tensors and plain values, which are not loaded: {first}"
    return f"cannot be read; it may be truncated, or no checkpoint at all ({type(error).__name__}: {first})"


def progress_of(path: Path) -> tuple[int, float] | None:
    """(epoch, step) that a file's name states, step infinite for a finished epoch; None for other names."""
    match = _NAME.match(path.name)
    return (int(match[1]), float(match[2] or "inf")) if match else None


def list_checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """``checkpoint_<epoch>.pth`` and ``checkpoint_<epoch>_step<n>.pth`` of a folder, the furthest first; no
    best ones."""
    found = [(progress, path) for path in Path(output_dir).glob("checkpoint_*.pth") if (progress := progress_of(path))]
    return [path for _, path in sorted(found, reverse=True)]


def find_latest(output_dir: str | os.PathLike[str]) -> Path | None:
    """The furthest training checkpoint of a run that can be read and whose hash holds; a warning names each one
    passed over, and why. Best checkpoints do not count: one is written in the middle of what ends an epoch."""
    for path in list_checkpoints(output_dir):
        try:
            state = load_checkpoint_file(path)
            if HASH_KEY not in state or not isinstance(state.get("progress"), dict):
                raise CheckpointError(f"checkpoint {path} is not a training checkpoint of ours")
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
            continue
        return path
    return None
