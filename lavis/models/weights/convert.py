"""Checkpoints from one layout into another, tensor by tensor and without building a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from lavis.common.checkpoint import load_weights, save_weights, unwrap
from lavis.common.config import Config, merge_model_config
from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.models.weights.layouts_all import KeyMap

T5 = re.compile(r"t5_(model|proj)|language_model\.(encoder|decoder|shared)\.|llm\.model\.(encoder|decoder|shared)\.")
CAUSAL = re.compile(r"opt_(model|proj)|language_model\.|llm\.")
LLM_PROJECTION = re.compile(r"language_projection\.|branches\.\w+\.llm_proj\.")


@dataclass
class Conversion:
    """What became of a file's tensors."""

    source: str
    layout: str  # of the source
    read: int  # tensors in the source
    target: str
    target_layout: str
    written: int  # tensors in the target
    left_out: list[str]  # names without a place in the target's layout
    warnings: list[str]

    def __str__(self) -> str:
        shown = ", ".join(self.left_out[:6]) + (", ..." if len(self.left_out) > 6 else "")
        megabytes = Path(self.target).stat().st_size / 1e6
        lines = [
            f"{self.source}: {self.layout} layout, {self.read} tensors",
            f"{self.target}: {self.target_layout} layout, {self.written} tensors, {megabytes:.1f} MB",
            f"left out: {len(self.left_out)}{f' ({shown})' if shown else ''}",
            *(f"note: {line}" for line in self.warnings),
        ]
        return "\n".join(lines)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    layout: str = "lavis",
    config: str | Path | None = None,
    with_llm: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> Conversion:
    """Read a file or folder in any known layout and write it in `layout`, whole or not at all.

    `config`: a YAML whose model has other modalities, another arch or another ViT depth than the published RegionBLIP.
    `with_llm`: False leaves the language model's own weights out (its adapters stay). ConfigError says what cannot be done.
    """
    if Path(source).resolve() == Path(target).resolve():
        raise ConfigError(f"{target} is the input; give another output")
    content = load_weights(source, progress=progress)
    state = unwrap(content)
    cfg = Config.from_file(config).model if config is not None else merge_model_config({"arch": f"regionblip_{llm_kind(state)}"})
    model_class = registry.get_model_class(cfg.arch)
    rows = list(model_class.read_specs(cfg).values())
    key_map = KeyMap(rows, llm=model_class.llm_kind or "opt")
    try:
        found, ours = key_map.rename(state)
        fitted = _fitted(ours, found, cfg, with_llm=with_llm)
        written, left_out = key_map.write(fitted, layout)
        if not written:
            raise ConfigError(f"nothing in it has a place in layout {layout}")
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    warnings = _warnings(fitted, left_out, key_map.blip2)
    progress(f"writing {Path(target).name} ({sum(t.numel() * t.element_size() for t in written.values()) / 1e9:.2f} GB)")
    save_weights(written, target, beside={key: content[key] for key in ("frozen_bases",) if key in content})
    return Conversion(
        source=str(source),
        layout=found,
        read=len(state),
        target=str(target),
        target_layout=layout,
        written=len(written),
        left_out=sorted({*left_out, *(ours.keys() - fitted.keys())}),
        warnings=warnings,
    )


def llm_kind(keys: Iterable[str]) -> str:
    """Which published names a checkpoint's keys ask for: "opt" (any causal model) or "t5".

    ConfigError where the keys have a projection to an LLM and nothing that tells which.
    """
    keys = list(keys)
    if any(T5.match(key) for key in keys):
        return "t5"
    if not any(CAUSAL.match(key) for key in keys) and any(LLM_PROJECTION.match(key) for key in keys):
        raise ConfigError("the keys do not say which language model the checkpoint is for; give its YAML as config")
    return "opt"


def _fitted(state: dict[str, Tensor], layout: str, cfg: DictConfig, *, with_llm: bool) -> dict[str, Tensor]:
    """Our names without what nothing reads of an encoder file (last blocks, norm, head), and without the LLM if so asked."""

    def unread(name: str) -> bool:
        block = re.match(r"visual_encoder\.blocks\.(\d+)\.", name)
        of_vit = layout in ("eva", "clip") and re.match(r"visual_encoder\.(norm|fc_norm|head)\.", name)
        too_deep = layout in ("eva", "clip") and block is not None and int(block[1]) >= cfg.vit.depth
        return bool(of_vit or too_deep or (not with_llm and name.startswith("llm.") and ".lora_" not in name))

    return {name: tensor for name, tensor in state.items() if not unread(name)}


def _warnings(state: dict[str, Tensor], left_out: list[str], image: str | None) -> list[str]:
    """What a user should know of names left out: trained adapters of whole images change captions."""
    trained = [name for name in left_out if name.endswith(f".lora_B.{image}") and bool(state[name].any())]
    if not trained:
        return []
    return [f"{len(trained)} adapters of modality {image} are left out though they are not zero; captions of images will differ"]
