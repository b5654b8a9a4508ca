"""RegionBLIP (arXiv 2308.02299): a frozen BLIP-2 that learns regions and further modalities through adapters of their own.

Differs from `blip2` in four things: every modality has LoRA pairs in the Q-Former and the LLM, regions enter by position (PaFE),
the BLIP-2 half stays frozen so that image captions stay what they were, and BLIP-2 checkpoints load into the image branch.
`regionblip_opt` and `regionblip_t5` are two names of one class. Its ablations are switches of the config (`check_switches`,
`region_features.py`).

Shapes: B rows, T encoder tokens, Q queries, D Q-Former width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.models import parts
from lavis.models.modality import Modality, blip2_entry
from lavis.models.qformer.lora import adapter_parameters, inject_modality_lora
from lavis.models.qformer.qformer import EncoderTokens, QFormer
from lavis.models.regions import geometry as region_features
from lavis.models.systems.blip2 import Blip2Base

logger = logging.getLogger(__name__)

QFORMER_TARGETS = "query|value"  # of self- and cross-attention
ENCODER_OF = {"box": "image", "corners": "pointcloud"}  # whose tokens a region kind can be laid over
SWITCHES: dict[str, tuple[str | None, ...]] = {
    "region_features": (None, "roi"),
    "region_attention": ("all", "region"),
    "corner_axes": ("published", "plain"),
}


def check_switches(cfg: DictConfig) -> None:
    """ConfigError for an ablation switch whose value is unknown."""
    for key, accepted in SWITCHES.items():
        if cfg[key] not in accepted:
            names = ", ".join(value or "null" for value in accepted)
            raise ConfigError(f"model.{key} is {cfg[key]!r}; accepted: {names}")
    if cfg.lora.rank < 1:
        raise ConfigError(f"model.lora.rank is {cfg.lora.rank}; accepted: whole numbers from 1")
    if cfg.aux_regloss_weight < 0:
        raise ConfigError(f"model.aux_regloss_weight is {cfg.aux_regloss_weight}; accepted: numbers from 0")


class RegionBLIP(Blip2Base):
    """RegionBLIP over any language model of the language interface."""

    def __init__(self, cfg: DictConfig) -> None:
        check_switches(cfg)
        super().__init__(cfg)

    @classmethod
    def modality_rows(cls, cfg: DictConfig) -> dict[str, Any]:
        """The table with the switches applied: weight of the box regression, clouds through the shared Q-Former or their own."""
        rows = super().modality_rows(cfg)
        for row in rows.values():
            if row["losses"].get("reg"):
                row["losses"]["reg"] *= cfg.aux_regloss_weight if cfg.enable_aux_regloss else 0.0
            if not cfg.enable_pointcloud_qformer:
                row["qformer"] = "Qformer"
        return rows

    def setup_qformers(self) -> None:
        super().setup_qformers()
        if any(row.qformer == "Qformer_pc" for row in self.rows.values()):
            self.Qformer_pc: QFormer = parts.build_qformer(self.cfg, self.tokenizer)

    def setup_branches(self) -> None:
        super().setup_branches()
        roi, limited = self.cfg.region_features == "roi", self.cfg.region_attention == "region"
        for name, row in self.rows.items():
            region = self.branch(name).region
            if region is None or not (roi or limited):
                continue
            if row.encoder != ENCODER_OF[region.kind]:
                raise ConfigError(
                    f"modalities.{name}: a {region.kind} does not say which tokens of encoder {row.encoder} lie in it; "
                    "model.region_features and model.region_attention want a box on image or corners on pointcloud"
                )
            if roi:
                region.setup_roi(self.cfg.qformer.input_dim)

    def load_parts(self) -> None:
        super().load_parts()
        if hasattr(self, "Qformer_pc"):
            self.load_bert("Qformer_pc")

    def setup_training(self) -> None:
        super().setup_training()
        lora = self.cfg.lora
        settings = {"rank": lora.rank, "alpha": lora.alpha}
        base = [p for p in self.Qformer.parameters()]
        for qformer in filter(None, (self.Qformer, getattr(self, "Qformer_pc", None))):
            inject_modality_lora(qformer, self.router, lora.qformer_targets or QFORMER_TARGETS, **settings)
        assert self.llm is not None
        inject_modality_lora(self.llm.model, self.router, lora.llm_targets or self.llm.lora_targets, **settings)
        if self.cfg.freeze_qformer:
            for parameter in base:
                parameter.requires_grad_(False)
            self.lock_eval(self.Qformer)
        if hasattr(self, "Qformer_pc") and not self.cfg.qformer_pc_dropout:
            self.lock_eval(self.Qformer_pc)
        if self.cfg.freeze_blip2_pretrain:
            self.freeze_blip2()

    # -- regions: the ablations beside the position embedding -----------------------------------------------------------------
    def encode(self, samples: Mapping[str, Any], row: Modality) -> EncoderTokens:
        """Encoder tokens of a batch; under `region_attention: region` with what each row's queries may see of them."""
        tokens = super().encode(samples, row)
        if row.region is not None and self.cfg.region_attention == "region":
            inside = self.tokens_in_region(samples, row, tokens)
            tokens.seen = torch.cat([torch.ones_like(inside[:, :1]), inside], dim=1)  # the class token comes first
        return tokens

    def queries(self, samples: Mapping[str, Any], row: Modality, tokens: EncoderTokens) -> Tensor:
        """Query embeddings [B, Q, D]; under `region_features: roi` with the features of the region added to each query."""
        queries = super().queries(samples, row, tokens)
        region = self.branch(row.name).region
        if region is None or region.roi is None:
            return queries
        located = tokens.embeds[:, 1:]
        if region.kind == "box":
            position = self.position(samples, row, tokens.rows)
            assert position is not None
            features = region_features.pool_box(located, region.flatten(position), tokens.index)
        else:
            features = region_features.pool_inside(tokens.per_row(located), self.tokens_in_region(samples, row, tokens))
        return queries + region.roi(features.to(region.roi.weight.dtype)).unsqueeze(1)

    def tokens_in_region(self, samples: Mapping[str, Any], row: Modality, tokens: EncoderTokens) -> Tensor:
        """Which tokens lie in each row's region, the class token left out: bool [B, T - 1], all of them where none does.

        A box holds the patches that it overlaps, corners the groups of points whose centre lies in their hull.
        """
        position, region = self.position(samples, row, tokens.rows), self.branch(row.name).region
        assert position is not None and region is not None
        if region.kind == "box":
            inside = region_features.cells_in_box(region.flatten(position), round((tokens.embeds.shape[1] - 1) ** 0.5))
        else:
            assert tokens.centres is not None
            corners = region.flatten(position).unflatten(1, (8, 3))
            if self.cfg.corner_axes == "published":
                corners = region_features.corners_in_space(corners)
            inside = region_features.points_in_hull(tokens.per_row(tokens.centres), corners)
        return region_features.all_if_none(inside)

    def freeze_blip2(self) -> None:
        """Freeze what BLIP-2 brought: ln_vision, the image queries and projection, and the image adapters (zero B: no effect)."""
        if hasattr(self, "ln_vision"):
            self.freeze(self.ln_vision)
        image = blip2_entry(self.rows.values())
        if image is None:
            return
        branch = self.branch(image)
        assert self.llm is not None and branch.llm_proj is not None
        self.freeze(branch.llm_proj)
        branch.query_tokens.requires_grad_(False)
        for model in (self.Qformer, self.llm):
            for parameter in adapter_parameters(model, image):
                parameter.requires_grad_(False)

    def load_checkpoint_from_config(self, cfg: DictConfig) -> None:
        """BLIP-2 first (`load_blip2_pretrain`), then `finetuned` or `pretrained` over it."""
        if cfg.load_blip2_pretrain:
            self.load_checkpoint(cfg.blip2_pretrain)
            self.bases["blip2"] = cfg.blip2_pretrain
            if cfg.regions_from_image:
                self.start_regions_from_image()
        super().load_checkpoint_from_config(cfg)

    @torch.no_grad()
    def start_regions_from_image(self) -> None:
        """Start the queries and projections of the other image modalities from those of the whole image."""
        image = blip2_entry(self.rows.values())
        if image is None:
            raise ConfigError("model.regions_from_image needs an entry of model.modalities with blip2: true")
        source = self.branch(image)
        for name in self.rows:
            branch = self.branch(name)
            if name != image and self.rows[name].encoder == self.rows[image].encoder:
                branch.query_tokens.copy_(source.query_tokens)
                for part in ("llm_proj", "itc_proj"):
                    getattr(branch, part).load_state_dict(getattr(source, part).state_dict())
                logger.info("modality %s starts from the queries and projections of %s", name, image)


@registry.register_model("regionblip_opt")
class RegionBLIPOPT(RegionBLIP):
    """RegionBLIP with OPT or another causal language model."""

    PRETRAINED_MODEL_CONFIG_DICT = dict.fromkeys(("pretrain_opt2.7b", "pretrain_opt6.7b"), "configs/models/regionblip_opt.yaml")
    llm_kind = "opt"


@registry.register_model("regionblip_t5")
class RegionBLIPT5(RegionBLIP):
    """RegionBLIP with Flan-T5. Prompts are those of training, whatever the samples say, as published."""

    PRETRAINED_MODEL_CONFIG_DICT = dict.fromkeys(("pretrain_flant5xl", "pretrain_flant5xxl"), "configs/models/regionblip_t5.yaml")
    llm_kind = "t5"
    ignores_prompts = True
