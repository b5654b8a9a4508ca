"""Weight files of the miniature: tiny parts with random weights, under the names that the released files have.

BLIP-2 of stage 2 and RegionBLIP hold what was trained, as released: of the rest, BERT's folder, the language model's, the EVA
file and the Point-BERT file are read. Language models of different names have different widths, so that a run that takes the
wrong file fails.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForPreTraining

from lavis.models import load_model_from_config
from tests import tiny

# Overridden in every run, beside paths: how large a model is. Keys below `model`.
SIZES: dict[str, int | float] = {
    "embed_dim": 16,
    **{"qformer.input_dim": 24, "qformer.num_query_token": 4},
    **{"vit.embed_dim": 24, "vit.depth": 2, "vit.num_heads": 2, "vit.mlp_ratio": 2.0},
    **{"pointbert.trans_dim": 16, "pointbert.depth": 1, "pointbert.num_heads": 2, "pointbert.encoder_dims": 16},
    **{"pointbert.group_size": 4, "pointbert.num_group": 8},
}
WIDTHS = {"opt-2.7b": 32, "opt-6.7b": 48, "flan-t5-xl": 32, "flan-t5-xxl": 48}
STAGE1_ONLY = re.compile(  # what a stage-2 file of LAVIS lacks
    r"(visual_encoder|llm|text_proj|itm_head|branches\.image\.itc_proj)\..*|temp|Qformer\.cls\..*|Qformer\.bert\.embeddings\..*"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*"
)
TIED = re.compile(
    r".*\.position_ids|Qformer(_pc)?\.cls\.predictions\.decoder\..*|opt_model\.lm_head\.weight"
    r"|t5_model\.(encoder|decoder)\.embed_tokens\.weight"
)


def nested(sizes: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as a mapping of mappings."""
    plain: dict[str, Any] = {}
    for key, value in sizes.items():
        block, _, name = key.rpartition(".")
        (plain.setdefault(block, {}) if block else plain)[name] = value
    return plain


def write(folder: Path) -> None:
    """Every file and folder of `$WEIGHTS`."""
    bert = folder / "bert-base-uncased"
    tiny.bert_folder(bert)
    torch.manual_seed(1)
    BertForPreTraining(BertConfig.from_pretrained(bert)).save_pretrained(bert)
    for name, width in WIDTHS.items():
        (tiny.t5_folder if "t5" in name else tiny.opt_folder)(folder / name, width=width)
    for name in WIDTHS:
        kind = "t5" if "t5" in name else "opt"
        short = name.replace("-", "")  # opt2.7b, flant5xl
        common = {"bert_path": str(bert), f"{kind}_model": str(folder / name), "allow_random_init": True}
        sizes = nested(SIZES)
        model = load_model_from_config({**common, **sizes, "arch": f"regionblip_{kind}"})
        torch.save(regionblip_file(model), folder / f"regionblip_pretrain_{short}.pth")
        images = {key: value for key, value in sizes.items() if key != "pointbert"}
        blip2 = load_model_from_config({**common, **images, "arch": f"blip2_{kind}"})
        torch.save({"model": stage2(blip2)}, folder / f"blip2_pretrained_{short}.pth")
        if name == "opt-2.7b":
            torch.save(eva_file(model), folder / "eva_vit_g.pth")
            torch.save(point_bert_file(model), folder / "point_bert_pretrained.pt")
    config = {**images, "arch": "blip2", "model_type": "coco", "bert_path": str(bert), "allow_random_init": True}
    state, left_out = (stage1 := load_model_from_config(config)).key_map.write(stage1.state_dict(), "blip2")
    assert not left_out
    torch.save({"model": state}, folder / "blip2_finetune_coco.pth")


def stage2(blip2: Any) -> dict[str, Tensor]:
    """What LAVIS' runner keeps of BLIP-2 over a language model."""
    kept = {name: tensor for name, tensor in blip2.state_dict().items() if not STAGE1_ONLY.fullmatch(name)}
    state, left_out = blip2.key_map.write(kept, "blip2")
    assert {"query_tokens", "ln_vision.weight"} <= set(state) and not left_out
    return dict(state)


def regionblip_file(model: Any) -> dict[str, Any]:
    """What the published runner keeps: trained parameters, buffers, and second names of tied tensors, frozen ones too."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained |= {name for name, _ in model.named_buffers()}
    names = {model.key_map.from_lavis(name, "regionblip") for name in trained}
    state, left_out = model.key_map.write(model.state_dict(), "regionblip")
    assert not left_out
    kept = {name: tensor for name, tensor in state.items() if name in names or TIED.fullmatch(name)}
    return {"model": kept, "optimizer": {}, "config": {}, "scaler": None, "epoch": 29}


def eva_file(model: Any) -> dict[str, Tensor]:
    """One block more than is read, a norm and a head, in half precision."""
    state = {name: tensor.half() for name, tensor in model.visual_encoder.state_dict().items()}
    depth = int(SIZES["vit.depth"])
    last = {name: tensor for name, tensor in state.items() if name.startswith(f"blocks.{depth - 1}.")}
    state |= {name.replace(f".{depth - 1}.", f".{depth}.", 1): tensor for name, tensor in last.items()}
    width = int(SIZES["vit.embed_dim"])
    return {**state, "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width), "head.weight": torch.zeros(8, width)}


def point_bert_file(model: Any) -> dict[str, Any]:
    """Point-BERT's pre-training file: the encoder as `transformer_q`, its momentum copy, heads and a queue."""
    state = model.point_encoder.state_dict()
    keys = {f"module.transformer_{copy}.{name}": tensor for copy in "qk" for name, tensor in state.items()}
    return {"base_model": {**keys, "module.transformer_q.mask_token": torch.zeros(1, 1, 16), "module.queue": torch.zeros(2, 8)}}
