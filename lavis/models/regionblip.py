"""RegionBLIP (arXiv 2308.02299): a frozen BLIP-2 that learns regions and further modalities through adapters of their own.

Differs from `blip2` in four things: every modality has LoRA pairs in the Q-Former and the LLM, regions enter by position (PaFE),
the BLIP-2 half stays frozen so that image captions stay what they were, and BLIP-2 checkpoints load into the image branch.
`regionblip_opt` and `regionblip_t5` are two names of one class.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from omegaconf import DictConfig

from lavis.common.registry import registry
from lavis.models import parts
from lavis.models.blip2 import Blip2Base
from lavis.models.modality_lora import adapter_parameters, inject_modality_lora
from lavis.models.qformer import QFormer

logger = logging.getLogger(__name__)

QFORMER_TARGETS = "query|value"  # of self- and cross-attention


class RegionBLIP(Blip2Base):
    """RegionBLIP over any language model of the language interface."""

    IMAGE = "image"  # the modality that BLIP-2 brings

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

    def freeze_blip2(self) -> None:
        """Freeze what BLIP-2 brought: ln_vision, the image queries and projection, and the image adapters (zero B: no effect)."""
        branch = self.branch(self.IMAGE)
        assert self.llm is not None and branch.llm_proj is not None
        self.freeze(self.ln_vision)
        self.freeze(branch.llm_proj)
        branch.query_tokens.requires_grad_(False)
        for model in (self.Qformer, self.llm):
            for parameter in adapter_parameters(model, self.IMAGE):
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
        source = self.branch(self.IMAGE)
        for name in self.rows:
            branch = self.branch(name)
            if name != self.IMAGE and self.rows[name].encoder == self.rows[self.IMAGE].encoder:
                branch.query_tokens.copy_(source.query_tokens)
                for part in ("llm_proj", "itc_proj"):
                    getattr(branch, part).load_state_dict(getattr(source, part).state_dict())
                logger.info("modality %s starts from the queries and projections of %s", name, self.IMAGE)


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
