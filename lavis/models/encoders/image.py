"""The encoder of images: a frozen vision tower, and ln_vision behind it (BLIP-2, arXiv 2301.12597).

`model.vit.vit_model` selects the tower: eva_clip_g, clip_L, or timm:NAME for any model of timm.

Shapes: M images computed now, I images in all, S image side in pixels, T tokens, C their width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Protocol, cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lavis.common.checkpoint import content_hash
from lavis.common.dist_utils import is_sharded
from lavis.common.errors import ConfigError
from lavis.common.precision import frozen_dtype, without_autocast
from lavis.common.registry import registry
from lavis.models.encoders.base import Encoder, Features, Inputs, Samples, index_of, tensor_of
from lavis.models.encoders.clip_vit import ClipViT
from lavis.models.encoders.eva_vit import EvaViT, fit_vit_state_dict
from lavis.models.encoders.timm_tower import PREFIX, TimmTower, timm_tower
from lavis.models.qformer.tokens import Tokens
from lavis.models.weights.part_files import load_part, part_of_file, raw_state

TOWERS: dict[str, type[EvaViT] | type[ClipViT]] = {"eva_clip_g": EvaViT, "clip_L": ClipViT}


class FeatureSink(Protocol):
    """What keeps features for later runs (`run.feature_cache`)."""

    def add(self, entry: object, features: Tensor) -> None:
        """Features [M, T, C] of the images that a batch did not find, as its `image_cache` names them."""


@registry.register_encoder("image")
class ImageEncoder(Encoder):
    """image [I, 3, S, S] -> tokens [I, T, C]."""

    key, block, tower = "image", "vit", "visual_encoder"

    def __init__(self, visual_encoder: EvaViT | ClipViT | TimmTower, *, settings: DictConfig, frozen: bool) -> None:
        super().__init__()
        self.visual_encoder = visual_encoder
        self.ln_vision = nn.LayerNorm(settings.embed_dim)
        self.settings, self.frozen = settings, frozen
        self.sink: FeatureSink | None = None

    @classmethod
    def from_config(cls, cfg: DictConfig) -> ImageEncoder:
        return cls(build_tower(cfg), settings=cfg.vit, frozen=bool(cfg.freeze_vit))

    @property
    def unplaced(self) -> int:
        """Number of class tokens in front."""
        return int(getattr(self.visual_encoder, "num_prefix_tokens", 1))

    def read(self, samples: Samples, *, device: torch.device, training: bool) -> Inputs:
        """`image` [I, 3, S, S], or `image_features` [I, T, C] that the tower gave earlier, or both of a batch of which a feature
        cache has some: then `image_order` [I] says where among these, one after the other, each is. `image_index` [B]."""
        image, known, order = (tensor_of(samples, key) for key in ("image", "image_features", "image_order"))
        if image is None and known is None:
            raise ValueError("an entry with encoder image needs samples['image']")
        features = None if known is None else Features(known.to(device))
        order = None if order is None else order.to(device)
        return Inputs(image, features, order, index_of(samples, "image", device), entry=samples.get("image_cache"))

    def features(self, inputs: Inputs) -> Features:
        if inputs.known is not None and inputs.order is None:
            return inputs.known
        assert inputs.raw is not None
        computed = self.compute(inputs.raw)
        if self.sink is not None:
            self.sink.add(inputs.entry, computed)
        if inputs.known is None:
            return Features(computed)
        assert inputs.order is not None
        return Features(torch.cat([computed, inputs.known.embeds.to(computed)])[inputs.order])

    def compute(self, image: Tensor) -> Tensor:
        """image [M, 3, S, S] -> the tower's tokens [M, T, C], in the type of its weights; without a graph when it is frozen.

        Autocast stays out where the weights are in low precision: it would only convert them again at every step.
        """
        first = next(self.visual_encoder.parameters())
        as_it_is = contextlib.nullcontext() if first.dtype == torch.float32 else without_autocast(first.device)
        with as_it_is, torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return cast(Tensor, self.visual_encoder(image.to(first.device, first.dtype)))

    def tokens(self, features: Features, index: Tensor | None) -> Tokens:
        """ln_vision computes in float32, as published."""
        with without_autocast(features.embeds.device):
            return Tokens(self.ln_vision(features.embeds.float()), index, unplaced=self.unplaced)

    def load(self, path: str) -> list[str]:
        """The tower from its released file, or from a BLIP-2 or RegionBLIP checkpoint that holds it."""
        if isinstance(self.visual_encoder, TimmTower):
            return load_part(self.visual_encoder, self.visual_encoder.fit(raw_state(path)), path)
        state = part_of_file(path, "visual_encoder.", hf_prefix=("vision_model.", "query_tokens", "qformer.l"))
        return load_part(self.visual_encoder, self.fit(state), path)

    def fit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if isinstance(self.visual_encoder, TimmTower):
            return dict(state)
        return fit_vit_state_dict(state, self.visual_encoder)[0]

    def example(self, rows: int, *, device: str) -> dict[str, Tensor]:
        return {"image": torch.empty(rows, 3, self.settings.img_size, self.settings.img_size, device=device)}

    # -- what a feature cache must know --------------------------------------------------------------------------------------
    def identity(self, *, autocast: torch.dtype) -> dict[str, object]:
        """What decides the tower's tokens of an image: plain values, the weights by a hash. `autocast`: what a step computes in.

        ConfigError where tokens of one image are not the same every time, so that they must not be kept.
        """
        problem = ""
        if not self.frozen:
            problem = "model.freeze_vit is false: what a ViT in training gives changes with every step"
        elif self.visual_encoder.training:
            problem = "the ViT is in training mode, in which drop path draws"
        elif is_sharded(self.visual_encoder):
            problem = "run.shard puts the ViT in shards, whose passes all processes take together; llm leaves it whole"
        if problem:
            raise ConfigError(f"run.feature_cache keeps the outputs of a frozen ViT, but {problem}; accepted here: null")
        first = next(self.visual_encoder.parameters())  # float32: autocast decides, see `compute`
        ignored = ("pretrained", "use_grad_checkpoint")
        return {
            "encoder": type(self.visual_encoder).__name__,
            "config": {key: value for key, value in self.settings.items() if key not in ignored},
            "weights": content_hash(dict(self.visual_encoder.state_dict())),
            "dtype": str(first.dtype),
            "computed_in": str(autocast if first.dtype == torch.float32 else first.dtype),
            "device": first.device.type,
        }

    @torch.no_grad()
    def shape(self) -> tuple[int, int]:
        """T and C of the tower's tokens [T, C] of an image."""
        positions = getattr(self.visual_encoder, "pos_embed", None)
        if isinstance(positions, Tensor):
            return int(positions.shape[-2]), int(positions.shape[-1])
        first = next(self.visual_encoder.parameters())
        side = self.settings.img_size
        tokens, width = self.compute(torch.zeros(1, 3, side, side, device=first.device)).shape[1:]
        return int(tokens), int(width)


def build_tower(cfg: DictConfig) -> EvaViT | ClipViT | TimmTower:
    """The tower that `model.vit` describes, with random weights. ConfigError for settings that do not fit one another."""
    vit = cfg.vit
    name = str(vit.vit_model)
    if name not in TOWERS and not name.startswith(PREFIX):
        accepted = ", ".join([*TOWERS, f"{PREFIX}NAME (a model of timm)"])
        raise ConfigError(f"model.vit.vit_model is {vit.vit_model!r}; accepted: {accepted}")
    dtype = frozen_dtype(vit.vit_precision, "model.vit.vit_precision")
    if not cfg.freeze_vit and dtype != torch.float32:
        raise ConfigError(f"model.freeze_vit is false, but vit_precision is {vit.vit_precision}; trained weights need fp32")
    if vit.embed_dim != cfg.qformer.input_dim:
        raise ConfigError(
            f"model.qformer.input_dim is {cfg.qformer.input_dim}, but the ViT is {vit.embed_dim} wide (vit.embed_dim)"
        )
    if name.startswith(PREFIX):
        return timm_tower(vit).to(dtype)
    build: Callable[..., EvaViT | ClipViT] = TOWERS[name]
    sizes = {
        key: vit[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "drop_path_rate")
    }
    return build(**sizes, grad_checkpoint=vit.use_grad_checkpoint).to(dtype)
