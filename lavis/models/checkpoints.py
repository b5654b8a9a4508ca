"""Weights half of the shared model: what is loaded from where, and what is still random.

Mixed into `Blip2Base`. Layouts and their renaming are in `weights.py`, the parts' own files in `parts.py`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lavis.common.checkpoint import load_checkpoint_file
from lavis.common.errors import ConfigError
from lavis.models import parts
from lavis.models.encoders.eva_vit import interpolate_pos_embed
from lavis.models.weights import KeyMap, LoadReport, load_into

logger = logging.getLogger(__name__)

UNREAD_BY_CAPTIONS = re.compile(r"itc_proj|text_proj|itm_head|temp$|region\.reg\.|intermediate\.|\.output\.|\.cls\.|embeddings\.")
BASE_PARTS = ("Qformer", "visual_encoder", "point_encoder")  # even trainable, these want weights to start from


class Weights:
    """Loading and accounting of weights."""

    @staticmethod
    def check_config(cfg: DictConfig) -> None:
        """ConfigError for a weight file that the config names and that is not there; nothing is built."""
        parts.check_files(cfg)

    @property
    def key_map(self: Any) -> KeyMap:
        return KeyMap(self.rows.values(), llm=self.llm_kind or "opt")

    def load_checkpoint_from_config(self: Any, cfg: DictConfig) -> None:
        """`finetuned` when load_finetuned, else `pretrained` when load_pretrained."""
        for kind in ("finetuned", "pretrained"):
            if cfg[f"load_{kind}"]:
                self.load_checkpoint(cfg[kind])
                return

    def load_checkpoint(self: Any, path: str | Path | Mapping[str, Any]) -> LoadReport:
        """Load a file, or a state already read, in our layout, RegionBLIP's or LAVIS BLIP-2's (recognised by its keys).

        ValueError: unknown layout, other sizes. Returns a report; keys without a place are listed, not fatal.
        """
        content = load_checkpoint_file(path) if isinstance(path, str | Path) else path
        state = content.get("model", content)
        layout, renamed = self.key_map.rename(state)
        self.check_bases(content.get("frozen_bases") or {}, path)
        position = renamed.get("visual_encoder.pos_embed")
        if position is not None and hasattr(self, "visual_encoder"):  # a ViT saved at another picture size
            grid = self.visual_encoder.patch_embed.grid_size[0]
            renamed["visual_encoder.pos_embed"] = interpolate_pos_embed(position, grid)
        report = load_into(self, renamed, layout=layout, loaded_before=self._loaded)
        name = path if isinstance(path, str | Path) else "the state"
        if not report.loaded:
            raise ConfigError(f"nothing in {name} fits this model: {report}")
        self._loaded |= set(report.loaded)
        logger.info("%s: %s", name, report)
        return report

    def check_bases(self: Any, saved: Mapping[str, Mapping[str, str]], path: Any) -> None:
        """ConfigError when a checkpoint was trained over other frozen files than this model stands on."""
        for part, base in saved.items():
            if part in self.bases and base["sha256"] != parts.source_hash(self.bases[part]):
                raise ConfigError(
                    f"{path} was trained over another {part} (then {base['path']}, sha256 {base['sha256'][:12]}; now "
                    f"{self.bases[part]}): its adapters do not fit these frozen weights"
                )

    def random_parts(self: Any, *, for_evaluation: bool = False) -> list[str]:
        def part_of(name: str) -> str:
            return ".".join(name.split(".")[: 2 if name.startswith("branches.") else 1])

        loaded_parts = {part_of(name) for name in self._loaded}
        random = set()
        for name, parameter in self.named_parameters():
            if ".lora_" not in name and name not in self._loaded:
                part = part_of(name)
                base_from_nowhere = part.startswith(BASE_PARTS) and part not in loaded_parts
                untrained = for_evaluation and not UNREAD_BY_CAPTIONS.search(name)
                if base_from_nowhere or untrained or not parameter.requires_grad:
                    random.add(part)
        return sorted(random)

    def frozen_bases(self: Any) -> dict[str, dict[str, str]]:
        return {part: {"path": str(path), "sha256": parts.source_hash(path)} for part, path in self.bases.items()}
