"""BLIP-2 (arXiv 2301.12597; salesforce/LAVIS): its two pre-training stages.

`blip2` is stage 1 (ITC, ITM, ITG), `blip2_opt` and `blip2_t5` are stage 2 (captions through a frozen LLM). They add nothing to
the shared model; what they train and freeze stands in their YAML files.
"""

from __future__ import annotations

from lavis.common.registry import registry
from lavis.models.query_model import QueryModel


@registry.register_model("blip2")
class Blip2Qformer(QueryModel):
    """BLIP-2 stage 1: the Q-Former learns from ITC, ITM and ITG."""

    PRETRAINED_MODEL_CONFIG_DICT = dict.fromkeys(("pretrain", "pretrain_vitL", "coco"), "configs/models/blip2.yaml")


@registry.register_model("blip2_opt")
class Blip2OPT(QueryModel):
    """BLIP-2 stage 2 with a frozen causal LLM."""

    PRETRAINED_MODEL_CONFIG_DICT = dict.fromkeys(
        ("pretrain_opt2.7b", "pretrain_opt6.7b", "caption_coco_opt2.7b", "caption_coco_opt6.7b"), "configs/models/blip2_opt.yaml"
    )
    llm_kind = "opt"


@registry.register_model("blip2_t5")
class Blip2T5(QueryModel):
    """BLIP-2 stage 2 with a frozen T5."""

    PRETRAINED_MODEL_CONFIG_DICT = dict.fromkeys(
        ("pretrain_flant5xl", "pretrain_flant5xl_vitL", "pretrain_flant5xxl", "caption_coco_flant5xl"),
        "configs/models/blip2_t5.yaml",
    )
    llm_kind = "t5"
