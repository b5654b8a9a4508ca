"""What every model offers: LAVIS' loading interface, trainable parts, parameter groups."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lavis.common.config import ConfigError
from lavis.models.weights.layouts_all import LoadReport

logger = logging.getLogger(__name__)


def is_decayed(name: str, parameter: nn.Parameter, owner: nn.Module) -> bool:
    """Whether weight decay acts on a parameter of this dotted name, which belongs to the module `owner`.

    It acts on matrices that are neither a norm's nor a bias. The published rule looks for "bias", "ln" and "bn" anywhere in the
    name and gives the same groups for the published models; here "bias" must be a whole word of the name, because a part of it
    may be a modality that the user named. A table of biases is a matrix too: T5's `relative_attention_bias.weight`.
    """
    words = name.replace("_", ".").split(".")
    return parameter.ndim >= 2 and "bias" not in words and not isinstance(owner, nn.LayerNorm)


class Losses(dict[str, Tensor]):
    """Losses by name (`loss` is their sum), also readable as attributes. All are 0-dim tensors.

    `counts`: of how many terms (tokens, rows) of the global batch a loss is the mean; only losses that were computed are there.
    Means over several batches are exact when each counts by its terms.
    """

    def __init__(self, *args: Any, counts: Mapping[str, Tensor | int] | None = None, **losses: Tensor) -> None:
        super().__init__(*args, **losses)
        self.counts = dict(counts or {})

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no loss {name!r}; there are {', '.join(self)}") from None


class BaseModel(nn.Module):
    """Base of all registered models."""

    PRETRAINED_MODEL_CONFIG_DICT: dict[str, str] = {}

    def __init__(self) -> None:
        super().__init__()
        self._eval_locked: list[nn.Module] = []
        self._loaded: set[str] = set()  # names of parameters that came from a file

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    # -- building -----------------------------------------------------------------------------------------------------------
    @classmethod
    def default_config_path(cls, model_type: str) -> str:
        """Path of the default YAML of a type, relative to the package; ConfigError names the types."""
        try:
            return cls.PRETRAINED_MODEL_CONFIG_DICT[model_type]
        except KeyError:
            types = ", ".join(cls.PRETRAINED_MODEL_CONFIG_DICT) or "none"
            raise ConfigError(f"unknown model_type {model_type!r} of {cls.__name__}; accepted: {types}") from None

    @classmethod
    def from_config(cls, cfg: DictConfig) -> BaseModel:
        """Build from a merged model config (see `lavis.models.load_model_from_config` for a partial one)."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, model_type: str) -> BaseModel:
        """Build a type with the weights that its default YAML names; ConfigError names those that cannot be had."""
        from lavis.models.weights.pretrained import pretrained_config  # it needs the parts, which need this module's neighbours

        arch = OmegaConf.load(Path(__file__).parents[1] / cls.default_config_path(model_type)).model.arch
        return cls.from_config(pretrained_config(arch, model_type))

    # -- weights ------------------------------------------------------------------------------------------------------------
    def load_checkpoint(self, path: str | Path | Mapping[str, Any]) -> LoadReport:
        """Load a checkpoint file (or its content) in any known layout; returns what was loaded, missing and ignored."""
        raise NotImplementedError

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Trainable parameters, and the buffers of modules that have some: what a checkpoint must hold."""
        keep = {name for name, p in self.named_parameters() if p.requires_grad}
        for prefix, module in self.named_modules():
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                persistent = module.state_dict(prefix=f"{prefix}." if prefix else "")
                keep |= {f"{prefix}.{name}" for name, _ in module.named_buffers(recurse=False)} & persistent.keys()
        return {name: tensor.detach() for name, tensor in self.state_dict().items() if name in keep}

    def random_parts(self, *, for_evaluation: bool = False) -> list[str]:
        """Parts that work with random weights: frozen ones of which anything was not loaded, base ones loaded from nowhere.

        Adapters do not count (their B starts at zero), nor do new trainable heads, unless the model is to be evaluated.
        """
        return []

    def frozen_bases(self) -> dict[str, dict[str, str]]:
        """The files that frozen parts came from: {part: {path, sha256}}."""
        return {}

    # -- training -----------------------------------------------------------------------------------------------------------
    def lock_eval(self, module: nn.Module) -> None:
        """Keep a frozen module in eval mode whatever `.train()` says."""
        self._eval_locked.append(module)
        module.eval()

    def train(self, mode: bool = True) -> BaseModel:
        super().train(mode)
        for module in self._eval_locked:
            module.eval()
        return self

    def get_optimizer_params(self, weight_decay: float, lr_scale: float = 1.0) -> list[dict[str, Any]]:
        """Parameter groups: weight decay for matrices, none for biases, norms and vectors.

        `lr_scale` is LAVIS' layer decay: block i of n of `visual_encoder` learns at lr_scale ** (n - i) of the rate, its
        embeddings at lr_scale ** (n + 1); everything else at the full rate.
        """
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                decayed = is_decayed(name, parameter, self.get_submodule(name.rpartition(".")[0]))
                groups.setdefault((decayed, self._layer_scale(name, lr_scale)), []).append(parameter)
        return [
            {"params": params, "weight_decay": weight_decay if decayed else 0.0, "lr_scale": scale}
            for (decayed, scale), params in groups.items()
        ]

    def _layer_scale(self, name: str, rate: float) -> float:
        if rate == 1.0 or not name.startswith("visual_encoder."):
            return 1.0
        encoder: Any = self.visual_encoder
        depth = len(encoder.blocks)
        block = re.match(r"visual_encoder\.blocks\.(\d+)\.", name)
        return rate ** (depth - int(block.group(1)) if block else depth + 1)

    def before_training(self, **kwargs: Any) -> None:
        """Hook of LAVIS, called once before training."""

    def before_evaluation(self, **kwargs: Any) -> None:
        """Hook of LAVIS, called before each evaluation."""

    def show_n_params(self, return_str: bool = True) -> str | int:
        """Number of parameters, as a number or as '1.2M'."""
        total = sum(p.numel() for p in self.parameters())
        if not return_str:
            return total
        return f"{total / 1e6:.1f}M" if total >= 1e6 else f"{total / 1e3:.1f}K"
