"""Models and batches of the sizes that the published implementation was measured at, made on the spot with random weights.

ViT 384 x 12 at 224 px (patch 14: 257 tokens), Point-BERT 384 x 12 with 512 groups of 32, Q-Former 384 x 6 with 32 queries,
OPT 512 x 8, vocabularies of 8,192, batches of 8, the published freeze flags. Heads are 64 wide and feed-forwards 4 times the
width. Texts fill max_txt_len (32 tokens), drawn from made-up words by Zipf's law: of the published figures it is known that a
region step does about 14 GFLOP per sample beside the ViT, and a cloud step about 20 beside its encoder, and that is the work of
texts of 32 tokens (with RefCOCO's 4 words it would be 7).

Shapes: B rows, I images or clouds, N points.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, GPT2Tokenizer, OPTConfig, PreTrainedTokenizerFast, T5Config

from lavis.models import load_model_from_config

MODALITIES = ("image", "image_region", "pointcloud", "pointcloud_region")
WORDS = 32  # of a text, more than fit
TEXT = 32  # tokens of a text: max_txt_len
POINTS_OF = {"pointcloud": 8192, "pointcloud_region": 40000}
ROWS = 8
EXPRESSIONS = 6  # of one image in a training batch of regions: 8 rows are 6 of one image and 2 of the next


@dataclass(frozen=True)
class Size:
    """Numbers of a model; `MEASURED` is what the published implementation was measured at, `SMALL` is for tests."""

    vit: tuple[int, int, int] = (384, 12, 6)  # width, depth, heads
    vit_ratio: float = 4.0
    image: int = 224
    points: tuple[int, int, int] = (384, 12, 6)
    groups: tuple[int, int] = (512, 32)
    encoder_dims: int = 256
    qformer: tuple[int, int, int] = (384, 6, 6)
    queries: int = 32
    llm: tuple[int, int, int] = (512, 8, 8)
    vocabulary: int = 8192  # of the Q-Former and the language model
    llm_vocabulary: int | None = None  # of the language model, where it has another
    t5: tuple[int, int, int, int] | None = (
        None  # width, depth of encoder and of decoder, heads of 64, feed-forward; in the place of OPT
    )
    words: int = 3000
    spread: float = 0.08  # of random weights: enough for attention that is not uniform, so that an error in it would show
    shrink: int = 1  # clouds have so many times fewer points


MEASURED = Size()
SMALL = Size(
    vit=(32, 2, 2), image=28, points=(32, 2, 2), groups=(16, 8), encoder_dims=32, qformer=(32, 2, 2), queries=4, llm=(32, 2, 2),
    vocabulary=500, words=40, shrink=64,
)  # fmt: skip
REAL = Size(  # EVA-ViT-g, BERT-base, Point-BERT, OPT-2.7B
    vit=(1408, 39, 16), vit_ratio=4.3637, qformer=(768, 12, 12), llm=(2560, 32, 32), vocabulary=30523, llm_vocabulary=50272,
    spread=0.02,
)  # fmt: skip
T5_XL = (2048, 24, 32, 5120)


def words(count: int) -> list[str]:
    """Made-up words, the shortest first."""
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprst", "aeiou")]
    longer = (itertools.product(syllables, repeat=length) for length in (1, 2, 3))
    return ["".join(parts) for parts in itertools.islice(itertools.chain(*longer), count)]


def captions(rows: int, *, vocabulary: int, seed: int) -> list[str]:
    """Texts of `WORDS` words by Zipf's law."""
    rng, known = random.Random(seed), words(vocabulary)
    weights = [1 / (rank + 2) for rank in range(vocabulary)]
    return [" ".join(rng.choices(known, weights, k=WORDS)) for _ in range(rows)]


def write_bert(folder: Path, size: Size) -> None:
    """A BERT folder without weights, its vocabulary `size.vocabulary` - 1 words ([DEC] is added)."""
    folder.mkdir(parents=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words(size.words)]
    pieces += [f"[unused{i}]" for i in range(size.vocabulary - 1 - len(pieces))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    width, depth, heads = size.qformer
    BertConfig(
        vocab_size=len(pieces), hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * width, initializer_range=size.spread,
    ).save_pretrained(folder)  # fmt: skip


def write_opt(folder: Path, size: Size) -> None:
    """An OPT folder without weights, with a byte-level BPE tokenizer that knows the made-up words."""
    folder.mkdir(parents=True)
    bpe = ByteLevelBPETokenizer()
    texts = [" " + word for word in words(8 * size.words)]  # more than captions use: every id has a text
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(texts, vocab_size=min(size.vocabulary, 8192), min_frequency=1, special_tokens=specials)
    bpe.save_model(str(folder))
    tokenizer = GPT2Tokenizer.from_pretrained(
        folder, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>", add_bos_token=True
    )
    tokenizer.save_pretrained(folder)
    width, depth, heads = size.llm
    OPTConfig(
        vocab_size=size.llm_vocabulary or size.vocabulary, hidden_size=width, ffn_dim=4 * width, num_hidden_layers=depth,
        num_attention_heads=heads, word_embed_proj_dim=width, max_position_embeddings=512, bos_token_id=2, eos_token_id=2,
        pad_token_id=1, init_std=size.spread,
    ).save_pretrained(folder)  # fmt: skip


def write_t5(folder: Path, size: Size) -> None:
    """A Flan-T5 folder without weights, its tokenizer of whole words."""
    assert size.t5 is not None
    folder.mkdir(parents=True)
    known = ["<pad>", "</s>", "<unk>", *words(size.words)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>").save_pretrained(
        folder
    )
    width, depth, heads, wide = size.t5
    settings: dict[str, Any] = {
        "vocab_size": size.llm_vocabulary or size.vocabulary, "d_model": width, "d_kv": 64, "d_ff": wide, "num_layers": depth,
        "num_heads": heads, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "pad_token_id": 0,
        "eos_token_id": 1, "decoder_start_token_id": 0,
    }  # fmt: skip
    T5Config(**settings).save_pretrained(folder)


def write_folders(folder: Path, size: Size = MEASURED) -> None:
    """The Hugging Face folders that a model of `size` is built from."""
    write_bert(folder / "bert", size)
    (write_t5 if size.t5 else write_opt)(folder / "llm", size)


def build_model(folder: Path, size: Size = MEASURED, *, autocast: torch.dtype = torch.float32) -> Any:
    """RegionBLIP of `size` with random weights, over the folders that `write_folders` wrote; in float32 unless it is built for a
    GPU, or for an autocast.

    Adapters start with a B of zero; here it is random, so that a wrong adapter would show in the losses.
    """
    vit, points = size.vit, size.points
    config = {
        "arch": "regionblip_t5" if size.t5 else "regionblip_opt",
        "bert_path": str(folder / "bert"),
        "t5_model" if size.t5 else "opt_model": str(folder / "llm"),
        "qformer": {"input_dim": vit[0], "num_query_token": size.queries},
        "vit": {"img_size": size.image, "embed_dim": vit[0], "depth": vit[1], "num_heads": vit[2], "mlp_ratio": size.vit_ratio},
        "pointbert": {
            "trans_dim": points[0], "depth": points[1], "num_heads": points[2], "num_group": size.groups[0],
            "group_size": size.groups[1], "encoder_dims": size.encoder_dims,
        },
        "enable_aux_regloss": True,
        "allow_random_init": True,
    }  # fmt: skip
    torch.manual_seed(0)
    model = load_model_from_config(OmegaConf.create(config), autocast=autocast)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.5)
    return model


def regions(rows: int, *, corners: bool, generator: torch.Generator) -> Tensor:
    """Boxes [B, 4] x1 y1 x2 y2 in [0, 1], or corners [B, 8, 3] in metres."""
    if not corners:
        return torch.rand(rows, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
    centre, half = torch.randn(rows, 1, 3, generator=generator), torch.rand(rows, 1, 3, generator=generator) + 0.1
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
    return centre + signs * half


def batch(modality: str, size: Size = MEASURED, *, rows: int = ROWS, inputs: int | None = None, seed: int = 0) -> dict[str, Any]:
    """A batch of `rows`; with `inputs`, rows share so many images or clouds: 6 rows read the first, the next 6 the second, and
    the last takes what is left."""
    generator = torch.Generator().manual_seed(seed)
    encoder = modality.removesuffix("_region")
    count = rows if inputs is None else inputs
    samples: dict[str, Any] = {
        "modality": modality,
        "text_input": captions(rows, vocabulary=size.words, seed=seed),
        "image_id": [str(row) for row in range(rows)],
    }
    if encoder == "image":
        samples["image"] = torch.randn(count, 3, size.image, size.image, generator=generator)
    else:
        samples["pointcloud"] = torch.randn(count, POINTS_OF[modality] // size.shrink, 3, generator=generator)
    if inputs is not None:
        samples[f"{encoder}_index"] = torch.tensor([min(row // EXPRESSIONS, inputs - 1) for row in range(rows)])
    if modality.endswith("_region"):
        corners = encoder == "pointcloud"
        samples["box_corners" if corners else "box"] = regions(rows, corners=corners, generator=generator)
    return samples
