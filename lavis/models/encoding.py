"""Encoder half of the shared model: pictures and clouds in, the tokens that queries look at out.

Only encoders that some modality row reads are built. Parameter names are the published ones: `visual_encoder`, `ln_vision`,
`point_encoder`, `pc_adapter`.

Shapes: I encoded inputs (several rows may share one), T tokens, C width of the encoder tokens that the Q-Former reads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lavis.common.checkpoint import content_hash
from lavis.common.dist_utils import is_sharded
from lavis.common.errors import ConfigError
from lavis.common.feature_cache import FeatureCache
from lavis.common.precision import without_autocast
from lavis.common.seeding import step_draws
from lavis.models import parts
from lavis.models.modality import Modality
from lavis.models.qformer.qformer import EncoderTokens


class Encoding:
    """Mixed into `Blip2Base`."""

    feature_cache: FeatureCache | None = None  # takes what the frozen ViT computed, where a run keeps it

    def setup_encoders(self: Any) -> None:
        """Build the encoders that the rows name."""
        read = {row.encoder for row in self.rows.values()}
        if "image" in read:
            self.visual_encoder = parts.build_vit(self.cfg)
            self.ln_vision = nn.LayerNorm(self.cfg.vit.embed_dim)
        if "pointcloud" in read:
            self.point_encoder = parts.build_point_encoder(self.cfg)
            self.pc_adapter = nn.Linear(self.cfg.pointbert.trans_dim, self.cfg.qformer.input_dim)

    def load_encoders(self: Any) -> None:
        """Weights of the encoders, from the files that the config names."""
        sources = (
            ("visual_encoder", "vit", parts.load_vit),
            ("point_encoder", "pointbert", parts.load_point_encoder),
        )
        for part, key, load in sources:
            if hasattr(self, part) and self.cfg[key].pretrained is not None:
                loaded = load(getattr(self, part), self.cfg[key].pretrained)
                self.bases[part] = self.cfg[key].pretrained
                self._loaded |= {f"{part}.{name}" for name in loaded}

    def freeze_encoders(self: Any) -> None:
        """No gradients and eval mode for the encoders that the config freezes."""
        if hasattr(self, "visual_encoder") and self.cfg.freeze_vit:
            self.freeze(self.visual_encoder)
        if hasattr(self, "point_encoder") and self.cfg.freeze_point_encoder:
            self.freeze(self.point_encoder)

    def encode(self: Any, samples: Mapping[str, Any], row: Modality) -> EncoderTokens:
        """Encoder tokens of a batch [I, T, C]; each input is encoded once, however many rows read it (`image_index`,
        `pointcloud_index`). `point_groups` [I, G, 1 + K]: the groups of the clouds, where a dataset found them
        (`lavis.processors.point_groups`).

        Samples may hold what a frozen encoder gave earlier in place of its inputs: `image_features` [I, T, C], as `vit_tokens`
        returns them; `pointcloud_features` [I, 1 + groups, C] with `pointcloud_centres` [I, groups, 3], as `point_tokens` does.
        """
        inputs, index = samples.get(row.encoder), samples.get(f"{row.encoder}_index")
        features = samples.get(f"{row.encoder}_features")
        if inputs is None and features is None:
            raise ValueError(f"modality {row.name!r} needs samples[{row.encoder!r}]")
        index = None if index is None else index.to(self.device)
        if row.encoder == "image":
            return EncoderTokens(self.normalised_tokens(self.image_features(samples)), index)
        if features is not None:
            centres = samples.get("pointcloud_centres")
            centres = None if centres is None else centres.to(self.device)
            return EncoderTokens(self.pc_adapter(features.to(self.device)), index, centres)
        assert inputs is not None
        groups = samples.get("point_groups")
        start = self.start_points(samples, inputs.shape[:2], index) if groups is None else None
        embeds, centres = self.cloud_groups(inputs, start=start, groups=groups)
        return EncoderTokens(embeds, index, centres)

    def image_features(self: Any, samples: Mapping[str, Any]) -> Tensor:
        """ViT tokens [I, T, C] of a batch, those that it has as `image_features` among them.

        A batch of the feature cache may have both, `image` [M, 3, S, S] and features of the others; then `image_order` [I] says
        where among these, one after the other, each is.
        """
        features, order = samples.get("image_features"), samples.get("image_order")
        if features is not None and order is None:
            return features.to(self.device)
        computed: Tensor = self.vit_tokens(samples["image"])
        if self.feature_cache is not None:
            self.feature_cache.add(samples, computed)
        if features is None or order is None:
            return computed
        return torch.cat([computed, features.to(computed)])[order.to(self.device)]

    def feature_identity(self: Any, *, autocast: torch.dtype) -> dict[str, Any]:
        """What decides the ViT's tokens of a picture: plain values, the weights by a hash. `autocast`: what a step computes in.

        ConfigError where tokens of one picture are not the same every time, so that they must not be kept.
        """
        problem = ""
        if not hasattr(self, "visual_encoder"):
            problem = "no modality of this model reads pictures"
        elif not self.cfg.freeze_vit:
            problem = "model.freeze_vit is false: what a ViT in training gives changes with every step"
        elif self.visual_encoder.training:
            problem = "the ViT is in training mode, in which drop path draws"
        elif is_sharded(self.visual_encoder):
            problem = "run.shard puts the ViT in shards, whose passes all processes take together; llm leaves it whole"
        if problem:
            raise ConfigError(f"run.feature_cache keeps the outputs of a frozen ViT, but {problem}; accepted here: null")
        dtype = self.visual_encoder.patch_embed.proj.weight.dtype  # float32: autocast decides, see `vit_tokens`
        return {
            "encoder": type(self.visual_encoder).__name__,
            "config": {key: value for key, value in self.cfg.vit.items() if key not in ("pretrained", "use_grad_checkpoint")},
            "weights": content_hash(dict(self.visual_encoder.state_dict())),
            "dtype": str(dtype),
            "computed_in": str(autocast if dtype == torch.float32 else dtype),
            "device": self.device.type,
        }

    def feature_shape(self: Any) -> tuple[int, int]:
        """T and C of the ViT's tokens [T, C] of a picture."""
        tokens, width = self.visual_encoder.pos_embed.shape[-2:]
        return int(tokens), int(width)

    def image_tokens(self: Any, image: Tensor) -> Tensor:
        """image [I, 3, S, S] -> [I, T, C]."""
        return self.normalised_tokens(self.vit_tokens(image))

    def normalised_tokens(self: Any, tokens: Tensor) -> Tensor:
        """ViT tokens [I, T, C] -> what the Q-Former reads. ln_vision computes in float32, as published."""
        with without_autocast(tokens.device):
            return self.ln_vision(tokens.float())

    def vit_tokens(self: Any, image: Tensor) -> Tensor:
        """image [I, 3, S, S] -> ViT tokens [I, T, C], in the type of its weights; without a graph when it is frozen.

        Autocast stays out where the weights are in low precision: it would only convert them again at every step.
        """
        dtype = self.visual_encoder.patch_embed.proj.weight.dtype
        as_it_is = contextlib.nullcontext() if dtype == torch.float32 else without_autocast(self.device)
        with as_it_is, torch.set_grad_enabled(torch.is_grad_enabled() and not self.cfg.freeze_vit):
            return self.visual_encoder(image.to(self.device, dtype))

    def start_points(self: Any, samples: Mapping[str, Any], shape: Sequence[int], index: Tensor | None) -> Tensor | None:
        """The points [I] at which the sampling of clouds [I, N, C] begins: anywhere in training, None (point 0) in evaluation.

        In a step of a runner a cloud's point follows from seed, step and the cloud's name (`cloud_key`, else `image_id`): it is
        the same whichever process holds the cloud, also where two hold regions of one.
        """
        if not self.training:
            return None
        clouds, points = shape
        keys = samples.get("cloud_key")
        if keys is None and index is None:
            keys = samples.get("image_id")
        drawn = None if keys is None else step_draws(keys, points)
        if drawn is None:
            return torch.randint(points, (clouds,), device=self.device)
        start = torch.tensor(drawn, device=self.device)
        return start if index is None else start.new_zeros(clouds).scatter(0, index, start)

    def cloud_tokens(self: Any, pointcloud: Tensor) -> Tensor:
        """pointcloud [I, N, 3 or 6] -> [I, 1 + groups, C]. Sampling starts at point 0 in evaluation, anywhere in training."""
        return self.cloud_groups(pointcloud, start=self.start_points({}, pointcloud.shape[:2], None))[0]

    def cloud_groups(
        self: Any, pointcloud: Tensor, *, start: Tensor | None, groups: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `cloud_tokens`, with the points `start` [I] where sampling begins (None: 0), or the `groups` [I, G, 1 + K] in place
        of sampling; and the centres of the groups [I, G, 3] in the cloud's coordinates."""
        tokens, centres = self.point_tokens(pointcloud, start=start, groups=groups)
        return self.pc_adapter(tokens), centres

    def point_tokens(
        self: Any, pointcloud: Tensor, *, start: Tensor | None, groups: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `cloud_groups`, before the adapter that makes the tokens C wide. Autocast stays out of a trained encoder, whose
        batch norms learn statistics."""
        frozen = self.cfg.freeze_point_encoder
        as_it_is = contextlib.nullcontext() if frozen and self.cfg.pointbert.autocast else without_autocast(self.device)
        with as_it_is, torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            cloud = pointcloud.to(self.device, torch.float32)
            tokens, centres = self.point_encoder(cloud, start=start, index=groups, with_centres=True)
        return tokens, centres
