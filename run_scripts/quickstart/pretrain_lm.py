"""Quickstart base, part 2 of 3: tokenizers built from the captions, and a small OPT, their language model.

    python run_scripts/quickstart/pretrain_lm.py --data data/quickstart --output output/quickstart-base

Writes Hugging Face folders `bert/` (word-piece vocabulary and the Q-Former's size) and `opt/` (byte-level BPE
and weights, half precision). Only texts are read: captions of the training images, region expressions, and what
can be said of objects and rooms, which no part of the base has seen as point clouds.

A large language model can already use what stands in its context; a small one must be taught. So a share of
the texts (`--noted`) comes after notes: one vector per clause, the sum of the embeddings of the clause's
content words ("red" + "seven" + "top" + "left"), in random slots between blanks, where a BLIP-2 puts its
soft prompts. As in BLIP-2's second stage the sequence is [slots, </s>, text, newline]; the loss is that of
all but the slots.
"""

from __future__ import annotations

import lavis  # noqa: F401  # isort: skip (before torch)

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import OPTConfig, OPTForCausalLM

from lavis.quickstart.clouds import cloud_texts, cloud_vocabulary

log = logging.getLogger("pretrain_lm")

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
OPT_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0..3, as in the released OPT
PAD, END = 1, 2
IGNORED = -100  # label of a position without loss
NOTE_NOISE = 0.03  # standard deviation of what is added to every slot
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.'-?!&/"
WIDTH, LAYERS, HEADS = 128, 4, 4
STOP_WORDS = frozenset(("a", "at", "the", "this", "is", "there", "here", "to", "on", "its", "one", "side", "upright"))
SHARES = (0.64, 0.2, 0.08, 0.08)  # of captions, region expressions, captions of objects and descriptions in rooms
MAX_SLOTS = 32


def read_texts(data: Path) -> tuple[list[list[str]], list[str]]:
    """Texts in the order of `SHARES`, and the vocabulary."""
    stems = ("coco_karpathy_train", "Refcoco_train", "vocabulary")
    captions, regions, words = (json.loads((data / "annotations" / f"{stem}.json").read_text("utf-8")) for stem in stems)
    written = [[row["caption"] for row in rows] for rows in (captions, regions)]
    return [*written, *cloud_texts()], sorted({*words, *cloud_vocabulary()})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_bert(folder: Path, words: Sequence[str]) -> None:
    """A BERT folder: one token per word, single characters as fallback, a config of the Q-Former's size."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*BERT_SPECIAL, *words, *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]
    vocabulary = list(dict.fromkeys(pieces))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = dict(zip(names, BERT_SPECIAL, strict=True))
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {"do_lower_case": True, "model_max_length": 64, "tokenizer_class": "BertTokenizer", **special},
    )
    _write_json(
        folder / "config.json",
        {
            "architectures": ["BertForMaskedLM"],
            "model_type": "bert",
            "vocab_size": len(vocabulary),
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": 4 * WIDTH,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "max_position_embeddings": 64,
            "type_vocab_size": 2,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-12,
            "pad_token_id": 0,
        },
    )


def write_opt_tokenizer(folder: Path, texts: Sequence[str], words: Sequence[str]) -> Tokenizer:
    """A byte-level BPE in which every word, with or without a space before it, is one token; newline too."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = ByteLevelBPETokenizer()
    corpus = [*texts, *(piece for word in words for piece in (word, f" {word}") for _ in range(3))]
    bpe.train_from_iterator(corpus, vocab_size=2000, min_frequency=2, special_tokens=list(OPT_SPECIAL), show_progress=False)
    bpe.save_model(str(folder))
    split = [word for word in words for piece in (word, f" {word}") if len(bpe.encode(piece).ids) != 1]
    if split or len(bpe.encode("\n").ids) != 1:
        raise ValueError(f"words of more than one token: {split}; a newline must be one token too")
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GPT2Tokenizer",
            "add_bos_token": True,
            "add_prefix_space": False,
            "errors": "replace",
            "model_max_length": 128,
            **special,
        },
    )
    return bpe


def opt_config(vocab_size: int) -> OPTConfig:
    """A small OPT without dropout; with init_std 0.09 it takes soft prompts better than with 0.02."""
    return OPTConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        ffn_dim=4 * WIDTH,
        word_embed_proj_dim=WIDTH,
        max_position_embeddings=128,
        dropout=0.0,
        attention_dropout=0.0,
        init_std=0.09,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=PAD,
    )


class NotedTexts:
    """Draws training batches: texts as token ids, and the notes that stand before them."""

    def __init__(self, sources: Sequence[Sequence[str]], bpe: Tokenizer, *, noted: float) -> None:
        self.sources = sources
        self.bpe = bpe
        self.noted = noted

    def _notes(self, text: str) -> list[list[int]]:
        """Token ids of the content words of every clause."""
        clauses = ([w for w in clause.split() if w not in STOP_WORDS] for clause in text.split(","))
        return [[self.bpe.encode(f" {word}").ids[0] for word in clause] for clause in clauses]

    def batch(self, size: int, table: Tensor, rng: np.random.RandomState) -> tuple[Tensor, Tensor, Tensor, int]:
        """inputs_embeds [B, K + L, C], attention mask and labels [B, K + L], and K, the slots of every row.

        `table` [V, C] is the embedding of the model; the notes pass gradient to it.
        """
        texts = [str(rng.choice(self.sources[rng.choice(len(SHARES), p=SHARES)])) for _ in range(size)]
        ids = [[END, *self.bpe.encode(text + "\n").ids] for text in texts]
        length = max(map(len, ids))
        tokens = torch.tensor([row + [PAD] * (length - len(row)) for row in ids])
        slots = int(rng.randint(4, MAX_SLOTS + 1)) if rng.uniform() < self.noted else 0
        prefix = torch.zeros(size, slots, WIDTH)
        if slots:
            places = [
                (row, int(slot), word)
                for row, text in enumerate(texts)
                for slot, note in zip(rng.permutation(slots), self._notes(text), strict=False)
                for word in note
            ]
            row, slot, word = torch.tensor(places).unbind(1)
            prefix = prefix.index_put((row, slot), table[word], accumulate=True)
            prefix = prefix + torch.from_numpy(rng.standard_normal(prefix.shape) * NOTE_NOISE).float()
        known = torch.cat([torch.full((size, slots), PAD), tokens], dim=1)
        mask = known != PAD
        mask[:, :slots] = True
        embeds = torch.cat([prefix, table[tokens]], dim=1)
        return embeds, mask.long(), known.masked_fill(known == PAD, IGNORED), slots


def train(model: OPTForCausalLM, texts: NotedTexts, args: argparse.Namespace) -> None:
    """Plain next-token training with a one-cycle learning rate."""
    rng = np.random.RandomState(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=args.lr, total_steps=args.steps, pct_start=0.1)
    table = model.get_input_embeddings().weight
    begin = time.perf_counter()
    recent: dict[str, list[tuple[float, float]]] = {"with notes": [], "without": []}
    for step in range(1, args.steps + 1):
        embeds, mask, labels, slots = texts.batch(args.batch_size, table, rng)
        logits = model(inputs_embeds=embeds, attention_mask=mask).logits[:, :-1]
        target = labels[:, 1:]
        loss = cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        right = (logits.argmax(-1) == target)[target != IGNORED].float().mean().item()
        recent["with notes" if slots else "without"].append((loss.item(), right))
        if step % args.log_every == 0 or step == args.steps:
            means = {name: np.mean(rows, axis=0).round(3).tolist() for name, rows in recent.items() if rows}
            seconds = time.perf_counter() - begin
            log.info("step %d/%d  (loss, tokens right) %s  %.0f s", step, args.steps, means, seconds)
            recent = {name: [] for name in recent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that quickstart.generate wrote")
    parser.add_argument("--output", type=Path, required=True, help="bert/ and opt/ are written below it")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--noted", type=float, default=0.7, help="share of batches with notes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=50)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    sources, words = read_texts(args.data)
    write_bert(args.output / "bert", words)
    bpe = write_opt_tokenizer(args.output / "opt", [text for source in sources for text in source], words)
    model = OPTForCausalLM(opt_config(bpe.get_vocab_size()))
    train(model, NotedTexts(sources, bpe, noted=args.noted), args)
    model.half().save_pretrained(args.output / "opt")
    size = sum(path.stat().st_size for path in (args.output / "opt").iterdir())
    log.info("%s: %.2f MB, %d tokens", args.output / "opt", size / 1e6, bpe.get_vocab_size())


if __name__ == "__main__":
    main()
