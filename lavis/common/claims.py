"""(arch, model_type) pairs that a model's default YAML takes over from another architecture, or brings into being.

``also: {blip2_t5: [LN_coco_flant5xl]}`` in the default YAML of ``regionvlm`` means that a configuration with
``arch: blip2_t5`` and ``model_type: LN_coco_flant5xl`` is one of ``regionvlm``. No file of blip2 is edited.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

from lavis.common.errors import ConfigError, listed, unknown
from lavis.common.registry import registry
from lavis.common.yaml_files import find_default_file, plain, read_yaml


class Claim(NamedTuple):
    """An architecture whose default YAML takes a further name: ``also: {blip2_t5: [LN_coco_flant5xl]}``."""

    arch: str  # that claims
    file: Path


def claims() -> dict[tuple[str, str], list[Claim]]:
    """{(arch, model_type): who claims it in its default YAML}. A file speaks for itself, not for what is based on it.

    ConfigError for an ``also`` that is no mapping of lists, or a claimed type that the claiming class does not have.
    """
    found: dict[tuple[str, str], list[Claim]] = {}
    for arch in registry.list_models():
        cls = registry.get_model_class(arch)
        table: dict[str, str] = getattr(cls, "PRETRAINED_MODEL_CONFIG_DICT", None) or {}
        for path in dict.fromkeys(table.values()):
            file = find_default_file(cls, path)
            if file is None:  # the error comes where this class is asked for
                continue
            for pair in _also(file, file.stat().st_mtime_ns):
                if pair[1] not in table:
                    raise ConfigError(f"{file}: also.{pair[0]} names {pair[1]!r}, which {arch} lacks; it has {listed(table)}")
                known = found.setdefault(pair, [])
                if all(claim.file != file for claim in known):  # several names of one class have one file
                    known.append(Claim(arch, file))
    return found


@functools.cache
def _also(file: Path, modified: int) -> list[tuple[str, str]]:
    """The (arch, model_type) pairs of a file's ``also``."""
    table = plain(read_yaml(file)).get("also") or {}
    if not isinstance(table, dict) or not all(isinstance(types, list) for types in table.values()):
        raise ConfigError(f"{file}: also must be a mapping of lists, {{arch: [model_type, ...]}}, not {table!r}")
    return [(str(arch), str(model_type)) for arch, types in table.items() for model_type in types]


def claiming_arch(arch: str, model_type: str | None) -> str:
    """The architecture that stands for a pair: the one that claims it, else ``arch`` itself.

    ConfigError naming both files where two claim it; for a name that exists by claims alone, with its types.
    """
    claimed = claims()
    own = arch in registry.list_models()
    if model_type is None:
        return arch if own else next((who[0].arch for (name, _), who in claimed.items() if name == arch), arch)
    who = claimed.get((arch, model_type), [])
    files = [str(claim.file) for claim in who]
    if own and who:
        cls = registry.get_model_class(arch)
        table = getattr(cls, "PRETRAINED_MODEL_CONFIG_DICT", None) or {}
        if model_type in table:
            files.insert(0, str(find_default_file(cls, table[model_type]) or table[model_type]))
    if len(files) > 1:
        raise ConfigError(f"arch {arch} with model_type {model_type} is claimed by {' and by '.join(files)}; one of them must go")
    types = [name for taken, name in claimed if taken == arch]
    if not own and not who and types:
        raise ConfigError(unknown(f"model.model_type of {arch}", model_type, types))
    return who[0].arch if who else arch
