"""RegionBLIP (arXiv 2308.02299): a frozen BLIP-2 that learns regions and further modalities through adapters of their own.

Differs from `blip2` in four things: every modality has LoRA pairs in the Q-Former and the LLM, regions enter by position (PaFE),
the BLIP-2 half stays frozen so that image captions stay what they were, and BLIP-2 checkpoints load into the image branch.
`regionblip_opt` and `regionblip_t5` are two names of one class. Its ablations are switches of the config (`check_switches`,
`lavis/models/regions`).
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from omegaconf import DictConfig

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.models.modality import Modality, blip2_entry
from lavis.models.qformer.lora import adapter_parameters, inject_modality_lora
from lavis.models.query_model import QueryModel

logger = logging.getLogger(__name__)

QFORMER_TARGETS = "query|value"  # of self- and cross-attention
NO_TARGETS = "none"  # leaves the adapters of a part out
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


class RegionBLIP(QueryModel):
    """RegionBLIP over any language model of the language interface."""

    @classmethod
    def read_specs(cls, cfg: DictConfig) -> dict[str, Modality]:
        """The entries with the switches applied: weight of the box regression, whose Q-Former clouds read."""
        check_switches(cfg)
        factor = cfg.aux_regloss_weight if cfg.enable_aux_regloss else 0.0
        specs = super().read_specs(cfg)
        for name, spec in specs.items():
            losses = {loss: weight * factor if loss == "reg" and weight else weight for loss, weight in spec.losses.items()}
            qformer = spec.qformer if cfg.enable_pointcloud_qformer else "Qformer"
            specs[name] = replace(spec, losses=losses, qformer=qformer)
        return specs

    def adapt(self) -> None:
        """Adapters in the Q-Formers and the LLM; then what BLIP-2 brought is frozen, as the switches say."""
        lora, shared = self.cfg.lora, self.qformers["Qformer"]
        base = list(shared.parameters())
        qformer_targets = lora.qformer_targets or QFORMER_TARGETS
        assert self.llm is not None, "every arch of RegionBLIP has a language model"
        llm_targets = lora.llm_targets or self.llm.lora_targets
        for part, targets in [*((q, qformer_targets) for q in self.qformers.values()), (self.llm.model, llm_targets)]:
            if targets != NO_TARGETS:
                inject_modality_lora(part, self.router, targets, rank=lora.rank, alpha=lora.alpha)
        if self.cfg.freeze_qformer:
            for parameter in base:
                parameter.requires_grad_(False)
            self.lock_eval(shared)
        if not self.cfg.qformer_pc_dropout:
            for name, qformer in self.qformers.items():
                if name != "Qformer":
                    self.lock_eval(qformer)
        if self.cfg.freeze_blip2_pretrain:
            self.freeze_blip2()

    def freeze_blip2(self) -> None:
        """Freeze what BLIP-2 brought: ln_vision, the image queries and projection, and the image adapters (zero B: no effect)."""
        if hasattr(self, "ln_vision"):
            self.freeze(self.get_submodule("ln_vision"))
        image = blip2_entry(self.specs.values())
        if image is None:
            return
        branch = self.branch(image)
        assert self.llm is not None and branch.llm_proj is not None
        self.freeze(branch.llm_proj)
        branch.query_tokens.requires_grad_(False)
        for model in (self.qformers["Qformer"], self.llm):
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
        image = blip2_entry(self.specs.values())
        if image is None:
            raise ConfigError("model.regions_from_image needs an entry of model.modalities with blip2: true")
        source = self.branch(image)
        for name, spec in self.specs.items():
            branch = self.branch(name)
            if name != image and spec.encoder == self.specs[image].encoder:
                branch.query_tokens.copy_(source.query_tokens)
                for part in ("llm_proj", "itc_proj"):
                    branch.get_submodule(part).load_state_dict(source.get_submodule(part).state_dict())
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
