"""Quickstart base, part 1 of 3: train the EVA-ViT on collages of single-thing crops.

    python run_scripts/quickstart/pretrain_vit.py --output output/quickstart-base/vit.safetensors

A collage is a 3 x 3 grid of cells; each cell is empty or shows one cut-out thing (training scans only), and
the label of a cell is the label of its crop. A linear head reads, from every patch token, the colour and the
kind of the thing in that patch's cell, so afterwards what and where can be read at each cell. The head is
thrown away. At first every crop is as good as alone: attention from one cell to another is damped by
`--damping`, because kinds are learned many times faster so; then the damping fades, and for the last part of the
steps the ViT runs as it will be used and learns to find its cells by position. No scene of the quickstart and no
box is used. The result is a bare state dict with the published EVA names.
"""

from __future__ import annotations

import lavis  # noqa: F401  # isort: skip (before torch)

import argparse
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lavis.models.encoders.eva_vit import EvaViT
from lavis.quickstart.things import CELL, COLOURS, GRID, KINDS, PICTURE, CutOuts, split_scans

log = logging.getLogger("pretrain_vit")

VIT = {"img_size": PICTURE, "patch_size": 12, "embed_dim": 128, "depth": 6, "num_heads": 4, "mlp_ratio": 4.0}
MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)) * 255  # CLIP's, as the image processors use
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)) * 255


class CellHead(nn.Module):
    """patch tokens [B, P, C] -> colour scores [B, P, 9] and kind scores [B, P, 17]; the last class: empty."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.colour = nn.Linear(width, len(COLOURS) + 1)
        self.kind = nn.Linear(width, len(KINDS) + 1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.norm(tokens)
        return self.colour(tokens), self.kind(tokens)


def position_waves(grid: int, width: int, *, amplitude: float) -> Tensor:
    """Sines and cosines of row and column, [1, 1 + grid * grid, width]: where the learned positions start."""
    rates = 1.0 / 10.0 ** (torch.arange(width // 4) / (width // 4))
    angle = torch.arange(grid)[:, None] * rates
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = wave[:, None].expand(-1, grid, -1), wave[None].expand(grid, -1, -1)
    patches = torch.cat([rows, columns], dim=2).reshape(grid * grid, width)
    return amplitude * torch.cat([torch.zeros(1, width), patches])[None]


def cell_of_patch(patch: int) -> Tensor:
    """Index (0..8, row by row) of the cell that holds each patch's centre, [P]."""
    side = (torch.arange(PICTURE // patch) * patch + patch / 2).div(CELL, rounding_mode="floor").long()
    return (side[:, None] * GRID + side[None, :]).flatten()


def cell_damping(cells: Tensor) -> Tensor:
    """Attention bias [1 + P, 1 + P]: -1 between patches of different cells, 0 elsewhere (class token: 0)."""
    bias = torch.zeros(1 + len(cells), 1 + len(cells))
    bias[1:, 1:] = -(cells[:, None] != cells[None, :]).float()
    return bias


def damped_tokens(vit: EvaViT, image: Tensor, bias: Tensor) -> Tensor:
    """What the ViT gives when `bias` is added to every attention score: tokens [B, 1 + P, C]."""
    cls = vit.cls_token.expand(len(image), -1, -1)
    tokens = torch.cat([cls, vit.patch_embed(image)], dim=1) + vit.pos_embed
    for block in vit.blocks:
        tokens = block(tokens, attn_mask=bias)
    return tokens


def damping_at(progress: float, start: float) -> float:
    """`start` for the first quarter of training, then falling as a parabola to 0 at 60 per cent."""
    return start * min(1.0, max(0.0, (0.6 - progress) / 0.35)) ** 2


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] with CLIP's mean and standard deviation."""
    return ((torch.from_numpy(pictures).float() - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def collage_batch(bank: CutOuts, size: int, rng: np.random.RandomState) -> tuple[Tensor, Tensor, Tensor]:
    """image [B, 3, S, S], and colour and kind of every cell, [B, 9] (last class: empty)."""
    pictures, colours, kinds = bank.collages(size, rng=rng, filled=rng.uniform(0.4, 1.0))
    colour = torch.from_numpy(np.where(colours < 0, len(COLOURS), colours)).reshape(size, -1)
    kind = torch.from_numpy(np.where(kinds < 0, len(KINDS), kinds)).reshape(size, -1)
    return to_tensor(pictures), colour, kind


def reading_loss(scores: tuple[Tensor, Tensor], colour: Tensor, kind: Tensor) -> Tensor:
    """Cross entropy of colour and kind; scores [B, P, classes], labels [B, P]."""
    pairs = zip(scores, (colour, kind), strict=True)
    return torch.stack([cross_entropy(s.flatten(0, 1), label.flatten()) for s, label in pairs]).sum()


@torch.no_grad()
def held_out_accuracy(vit: EvaViT, head: CellHead, bank: CutOuts, *, batches: int = 8) -> dict[str, float]:
    """Shares of the cells with a thing (colour, kind, both) and of the empty cells read right, test scans."""
    vit.eval()
    rng = np.random.RandomState(7)
    cells = nn.functional.one_hot(cell_of_patch(VIT["patch_size"]), GRID**2).float()
    right: dict[str, list[Tensor]] = {"colour": [], "kind": [], "thing": [], "empty": []}
    for _ in range(batches):
        image, colour, kind = collage_batch(bank, 128, rng)
        scores = [torch.einsum("bpk,pc->bck", s.log_softmax(-1), cells) for s in head(vit(image)[:, 1:])]
        colour_right, kind_right = scores[0].argmax(-1) == colour, scores[1].argmax(-1) == kind
        there = kind < len(KINDS)
        right["colour"].append(colour_right[there])
        right["kind"].append(kind_right[there])
        right["thing"].append((colour_right & kind_right)[there])
        right["empty"].append(kind_right[~there])
    vit.train()
    return {name: round(torch.cat(parts).float().mean().item(), 4) for name, parts in right.items()}


def build_vit() -> EvaViT:
    """A fresh ViT whose position embeddings start from waves."""
    vit = EvaViT(**VIT)
    with torch.no_grad():
        vit.pos_embed.copy_(position_waves(PICTURE // VIT["patch_size"], VIT["embed_dim"], amplitude=0.3))
    return vit


def train(args: argparse.Namespace) -> tuple[EvaViT, dict[str, float]]:
    """Train for `args.steps` steps; returns the ViT and its held-out accuracies."""
    torch.manual_seed(args.seed)
    rng = np.random.RandomState(args.seed)
    scans = split_scans()
    bank = CutOuts(args.cut_outs, seed=args.seed + 1, scans=scans["train"])
    held_out = CutOuts(4000, seed=args.seed + 2, scans=scans["test"])
    vit, head = build_vit(), CellHead(VIT["embed_dim"])
    parameters = [*vit.parameters(), *head.parameters()]
    groups = [
        {"params": [p for p in parameters if p.dim() == 2 or p.dim() == 4], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.dim() not in (2, 4)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=args.lr, total_steps=args.steps, pct_start=0.1, div_factor=20, final_div_factor=50
    )
    begin = time.perf_counter()
    scores: dict[str, float] = {}
    cell = cell_of_patch(VIT["patch_size"])
    bias = cell_damping(cell)
    for step in range(1, args.steps + 1):
        image, colour, kind = collage_batch(bank, args.batch_size, rng)
        damping = damping_at(step / args.steps, args.damping)
        tokens = damped_tokens(vit, image, bias * damping) if damping else vit(image)
        loss = reading_loss(head(tokens[:, 1:]), colour[:, cell], kind[:, cell])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % args.log_every == 0 or step == args.steps:
            if step == args.steps or (not damping and step % (4 * args.log_every) == 0):
                scores = held_out_accuracy(vit, head, held_out)
            done = f"step {step}/{args.steps}  damping {damping:.1f}  loss {loss.item():.3f}"
            log.info("%s  held out %s  %.0f s", done, scores, time.perf_counter() - begin)
    return vit, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write (half precision)")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch-size", type=int, default=64, help="collages a step")
    parser.add_argument("--damping", type=float, default=8.0)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--cut-outs", type=int, default=24000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=50)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    vit, scores = train(args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in vit.state_dict().items()}
    save_file(state, args.output, metadata={"vit": json.dumps(VIT), "held_out": json.dumps(scores)})
    log.info("%s: %.2f MB, held-out cells %s", args.output, args.output.stat().st_size / 1e6, scores)


if __name__ == "__main__":
    main()
