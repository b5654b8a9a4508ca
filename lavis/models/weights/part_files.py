"""The file of one part of a model: its tensors out of a file of any known layout."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lavis.common.checkpoint import CheckpointError, load_weights, unwrap
from lavis.common.errors import ConfigError
from lavis.models.weights.layouts_all import KeyMap, load_into


def raw_state(path: str) -> dict[str, Tensor]:
    """The tensors of a file under its own names."""
    return dict(unwrap(load_weights(path)))


def part_of_file(path: str, part: str, *, hf_prefix: str | tuple[str, ...] = "") -> dict[str, Tensor]:
    """The tensors of one part in a file of any known layout, their names below the part. ConfigError where there are none.

    `hf_prefix`: what of a Hugging Face folder is read.
    """
    try:
        _, renamed = KeyMap(()).rename(unwrap(load_weights(path, prefix=hf_prefix)))
    except CheckpointError:
        raise
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    found = {name.removeprefix(part): tensor for name, tensor in renamed.items() if name.startswith(part)}
    if not found:
        raise ConfigError(f"{path} holds no {part.removesuffix('.')}; its first keys: {', '.join(sorted(renamed)[:4])}")
    return found


def load_part(part: nn.Module, state: Mapping[str, Tensor], path: str) -> list[str]:
    """Load a whole part; returns the names that were loaded. ConfigError where the file lacks any of it."""
    report = load_into(part, state, layout="part")
    if report.missing:
        first = next(iter(report.missing))
        raise ConfigError(f"{path} lacks {len(report.missing)} tensors of the {type(part).__name__}, the first: {first}")
    return report.loaded
