"""The published models at their real sizes on the meta device: names, shapes and parameter counts, without weights or download.

Counts are the published ones where they are known (OPT, Flan-T5: their model cards and papers), else worked out here by hand from
the layer sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavis.common.config import merge_model_config
from lavis.models import load_model_from_config
from lavis.models.public_sizes import BERT, bert_stand_in, llm_stand_in
from lavis.models.public_sizes import LLMS as PUBLISHED

LLMS = {
    "opt2.7b": PUBLISHED["opt-2.7b"],
    "opt6.7b": PUBLISHED["opt-6.7b"],
    "flant5xl": PUBLISHED["flan-t5-xl"],
    "flant5xxl": PUBLISHED["flan-t5-xxl"],
}
LLM_PARAMETERS = {"opt2.7b": 2_651_596_800, "opt6.7b": 6_658_473_984, "flant5xl": 2_849_757_184, "flant5xxl": 11_135_332_352}
LLM_WIDTH = {"opt2.7b": 2560, "opt6.7b": 4096, "flant5xl": 2048, "flant5xxl": 4096}
LORA_PAIRS = {"opt2.7b": 32 * 2, "opt6.7b": 32 * 2, "flant5xl": 24 * 2 + 24 * 4, "flant5xxl": 24 * 2 + 24 * 4}  # q and v
LORA_WIDTH = {"opt2.7b": 2560, "opt6.7b": 4096, "flant5xl": 2048, "flant5xxl": 4096}
VOCAB = 30522  # of bert-base-uncased; [DEC] is one more
WIDTH, FFN, LAYERS, VIT_WIDTH, QUERIES = 768, 3072, 12, 1408, 32


def build(tmp_path: Path, arch: str, llm: str | None = None, **changes: Any) -> Any:
    """A model of real size on the meta device."""
    source = {} if llm is None else {"t5_model" if "t5" in llm else "opt_model": llm_stand_in(tmp_path / llm, LLMS[llm])}
    with torch.device("meta"):
        model = load_model_from_config({"arch": arch, "bert_path": bert_stand_in(tmp_path / "bert", BERT), **source, **changes})
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    return model


def count(module: Any, *, adapters: bool = False) -> int:
    """Parameters of a module, each once; its LoRA pairs apart."""
    return sum(p.numel() for name, p in module.named_parameters() if (".lora_" in name) == adapters)


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def eva_parameters(width: int, depth: int, hidden: int, tokens: int) -> int:
    """Patches, class token, positions; per block two norms, q and v biases, qkv, projection and MLP.

    985,894,528 at 224 pixels: Hugging Face's 985,952,256 less its k biases and post_layernorm (ln_vision here).
    """
    block = 2 * 2 * width + 2 * width + 3 * width * width + linear(width, width) + linear(width, hidden) + linear(hidden, width)
    return linear(3 * 14 * 14, width) + width + tokens * width + depth * block


def qformer_parameters() -> int:
    """BERT-base with a second feed-forward for queries, cross-attention in every other layer, and the LM head (decoder tied)."""
    norm = 2 * WIDTH
    attention = 4 * linear(WIDTH, WIDTH) + norm
    cross = 2 * linear(WIDTH, WIDTH) + 2 * linear(VIT_WIDTH, WIDTH) + norm
    ffn = linear(WIDTH, FFN) + linear(FFN, WIDTH) + norm
    embeddings = (VOCAB + 1 + 512) * WIDTH + norm
    head = linear(WIDTH, WIDTH) + norm + VOCAB + 1
    return embeddings + LAYERS * (attention + 2 * ffn) + LAYERS // 2 * cross + head


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("llm", list(LLMS))
def test_regionblip_at_its_real_size(tmp_path: Path, llm: str) -> None:
    kind = "t5" if "t5" in llm else "opt"
    model = build(tmp_path, f"regionblip_{kind}", llm, enable_aux_regloss=True)
    assert count(model.llm) == LLM_PARAMETERS[llm]
    assert count(model.llm, adapters=True) == LORA_PAIRS[llm] * 4 * 2 * 8 * LORA_WIDTH[llm]  # modalities, A and B, rank
    assert count(model.visual_encoder) == eva_parameters(VIT_WIDTH, 39, 6144, 257) == 985_952_256 - 39 * VIT_WIDTH - 2 * VIT_WIDTH
    for qformer in (model.Qformer, model.Qformer_pc):
        assert count(qformer) == qformer_parameters()
        in_self, in_cross = 4 * WIDTH, 3 * WIDTH + VIT_WIDTH  # ins and outs of query and value; the cross value reads the ViT
        assert count(qformer, adapters=True) == 4 * 8 * (LAYERS * in_self + LAYERS // 2 * in_cross)
    published = {model.key_map.from_lavis(name, "regionblip"): shape for name, shape in shapes(model).items()}
    width = LLM_WIDTH[llm]
    for suffix, numbers in (("img", 0), ("img_region", 4), ("pc", 0), ("pc_region", 24)):
        assert published[f"query_tokens_{suffix}"] == (1, QUERIES, WIDTH)
        assert published[f"{kind}_proj_{suffix}.weight"] == (width, WIDTH)
        assert published[f"stage1_proj_{suffix}.weight"] == (256, WIDTH)
        if numbers:
            assert published[f"{suffix}_posembed.0.weight"] == (128, numbers)
            assert published[f"reg_{suffix}.weight"] == (numbers, WIDTH)
    assert published["Qformer.bert.embeddings.word_embeddings.weight"] == (30523, WIDTH)
    assert published["Qformer.bert.encoder.layer.10.crossattention.self.value.lora_A_pc"] == (8, VIT_WIDTH)
    assert "Qformer.bert.encoder.layer.11.crossattention.self.value.weight" not in published
    assert published["visual_encoder.blocks.38.mlp.fc1.weight"] == (6144, VIT_WIDTH)
    assert "visual_encoder.blocks.39.mlp.fc1.weight" not in published
    assert published["pc_adapter.weight"] == (VIT_WIDTH, 384) and published["point_encoder.cls_pos"] == (1, 1, 384)
    layer = {
        "opt": "opt_model.model.decoder.layers.31.self_attn.q_proj.lora_B_pc_region",
        "t5": "t5_model.decoder.block.23.layer.1.EncDecAttention.v.lora_B_pc_region",
    }[kind]
    assert published[layer] == (width, 8)


@pytest.mark.parametrize("llm", list(LLMS))
def test_blip2_stage2_at_its_real_size(tmp_path: Path, llm: str) -> None:
    kind = "t5" if "t5" in llm else "opt"
    model = build(tmp_path, f"blip2_{kind}", llm, vit={"img_size": 364})
    assert count(model.llm) == LLM_PARAMETERS[llm]
    assert count(model.visual_encoder) == eva_parameters(VIT_WIDTH, 39, 6144, 26 * 26 + 1)
    heads = linear(WIDTH, 256) * 2 + linear(WIDTH, 2) + 1 + QUERIES * WIDTH + linear(WIDTH, LLM_WIDTH[llm]) + 2 * VIT_WIDTH
    parts = LLM_PARAMETERS[llm] + count(model.visual_encoder) + qformer_parameters() + heads
    assert count(model) == parts == model.show_n_params(return_str=False)
    published = {model.key_map.from_lavis(name, "blip2"): shape for name, shape in shapes(model).items()}
    assert published[f"{kind}_proj.weight"] == (LLM_WIDTH[llm], WIDTH) and published["query_tokens"] == (1, QUERIES, WIDTH)


def test_blip2_stage1_with_clip_at_its_real_size(tmp_path: Path) -> None:
    """CLIP ViT-L/14: 303,179,776 parameters in 24 blocks with both norms (OpenAI's release without its projection)."""
    vit = {"vit_model": "clip_L", "embed_dim": 1024, "depth": 23, "mlp_ratio": 4.0}
    model = build(tmp_path, "blip2", vit=vit, qformer={"input_dim": 1024})
    block = 4 * 1024 + 4 * linear(1024, 1024) + linear(1024, 4096) + linear(4096, 1024)
    assert count(model.visual_encoder) == 303_179_776 - block - 2 * 1024
    names, _ = model.key_map.write(model.state_dict(), "blip2")
    assert names["visual_encoder.transformer.resblocks.22.attn.in_proj_weight"].shape == (3072, 1024)
    assert names["visual_encoder.positional_embedding"].shape == (257, 1024)


def test_every_registered_size_is_one_of_these() -> None:
    """The default configs of all archs name EVA-ViT-g, BERT-base and LLMs that this file builds."""
    for arch in ("blip2", "blip2_opt", "blip2_t5", "regionblip_opt", "regionblip_t5"):
        cfg = merge_model_config({"arch": arch})
        assert (cfg.vit.embed_dim, cfg.vit.depth, cfg.vit.num_heads, cfg.qformer.num_query_token) == (VIT_WIDTH, 39, 16, QUERIES)
        assert int(cfg.vit.embed_dim * cfg.vit.mlp_ratio) == 6144 and cfg.bert_path == "bert-base-uncased"
