"""Quickstart base, part 4 of 4: train the small Point-BERT to read the things that its groups of points belong to.

    python run_scripts/quickstart/pretrain_pointbert.py --output output/quickstart-base/pointbert.safetensors

Half of a batch are single objects (y up, normalised and augmented as in training), half are rooms (z up, metres). From
every group's token a linear head reads the kind, the proportion and the posture of the thing that the group lies on;
a group on the floor has a kind of its own. At first attention from one thing's groups to another's is damped, because
kinds are learned faster so; then the damping fades. The heads are thrown away. Objects and rooms are drawn from other seeds
than the quickstart's; no box and no caption is used. (The released Point-BERT learned by aligning clouds with images
and texts; that needs far more data than a quickstart has.) The result is a bare state dict with the released names.
"""

from __future__ import annotations

import lavis  # noqa: F401  # isort: skip (before torch)

import argparse
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lavis.datasets import cloud_geometry
from lavis.models.encoders.point_bert import PointBert
from lavis.models.encoders.point_ops import group_points
from lavis.quickstart.clouds import OBJECT_POINTS, draw_room, y_up
from lavis.quickstart.objects import KINDS, POSTURES, PROPORTIONS, Thing3D, draw_object, random_thing

log = logging.getLogger("pretrain_pointbert")

POINTBERT = {"trans_dim": 128, "depth": 4, "num_heads": 4, "group_size": 8, "num_group": 96, "encoder_dims": 128}
POINTS = 2048  # of a sample
FLOOR = len(KINDS)
IGNORED = -100  # label of a group on the floor, which has no proportion and no posture
WORDS = {"kind": [*KINDS, "floor"], "proportion": list(PROPORTIONS), "posture": list(POSTURES)}


def label(thing: Thing3D) -> list[int]:
    """Numbers of kind, proportion and posture."""
    return [WORDS["kind"].index(thing.kind), WORDS["proportion"].index(thing.proportion), WORDS["posture"].index(thing.posture)]


@dataclass
class Bank:
    """Clouds drawn once: objects [N, P, 3] with labels [N, 4]; rooms [M, R, 3] with the label of every point, [M, R, 4]."""

    objects: np.ndarray
    object_labels: np.ndarray
    rooms: np.ndarray
    room_labels: np.ndarray  # the last column numbers the things of a room

    @classmethod
    def draw(cls, objects: int, rooms: int, *, seed: int) -> Bank:
        rng = np.random.RandomState(seed)
        things = [random_thing(rng) for _ in range(objects)]
        clouds = np.stack([y_up(draw_object(thing, OBJECT_POINTS, rng)).astype(np.float32) for thing in things])
        floor = [FLOOR, IGNORED, IGNORED]
        drawn = [draw_room(rng) for _ in range(rooms)]
        tables = [np.array([[*row, i] for i, row in enumerate((*map(label, standing), floor))]) for _, standing, _ in drawn]
        labels = [table[owners] for table, (_, _, owners) in zip(tables, drawn, strict=True)]  # -1, the floor, is the last row
        points = np.stack([points.astype(np.float32) for points, _, _ in drawn])
        return cls(clouds, np.array([[*label(thing), 0] for thing in things]), points, np.stack(labels).astype(np.int16))

    def batch(self, size: int, rng: np.random.RandomState, *, augment: bool) -> tuple[Tensor, Tensor]:
        """Half objects, half rooms: clouds [B, N, 3] and the label of every point [B, N, 4]."""
        clouds, labels = [], []
        for index in rng.randint(len(self.objects), size=size // 2):
            points = cloud_geometry.unit_sphere(cloud_geometry.shuffled(self.objects[index], POINTS, rng))
            clouds.append(cloud_geometry.augment_object(points, rng) if augment else points)
            labels.append(np.broadcast_to(self.object_labels[index], (POINTS, 4)))
        for index in rng.randint(len(self.rooms), size=size - size // 2):
            chosen = rng.choice(self.rooms.shape[1], POINTS, replace=False)
            points = self.rooms[index, chosen]
            if augment:
                points = points @ cloud_geometry.rotation("z", rng.uniform(0, 2 * np.pi)).T
            clouds.append(points)
            labels.append(self.room_labels[index, chosen])
        return torch.from_numpy(np.stack(clouds).astype(np.float32)), torch.from_numpy(np.stack(labels).astype(np.int64))


def labels_of_groups(clouds: Tensor, labels: Tensor) -> Tensor:
    """The label of the point at each group's centre: [B, G, 4]."""
    _, centres = group_points(clouds, POINTBERT["num_group"], 1)
    nearest = torch.cdist(centres, clouds).argmin(dim=-1)
    return labels.gather(1, nearest.unsqueeze(-1).expand(-1, -1, labels.shape[-1]))


def damping_bias(things: Tensor, damping: float) -> Tensor:
    """Attention bias [B, 1, 1 + G, 1 + G]: -damping between groups of different things [B, G], 0 elsewhere."""
    bias = things.new_zeros((len(things), 1, 1 + things.shape[1], 1 + things.shape[1]), dtype=torch.float32)
    bias[:, 0, 1:, 1:] = -damping * (things[:, :, None] != things[:, None, :]).float()
    return bias


def damped_tokens(encoder: PointBert, clouds: Tensor, bias: Tensor) -> Tensor:
    """What the encoder gives when `bias` is added to every attention score: tokens [B, 1 + G, D]."""
    groups, centres = group_points(clouds, encoder.num_group, encoder.group_size)
    tokens = encoder.reduce_dim(encoder.encoder(groups))
    cls = encoder.cls_token.expand(len(tokens), -1, -1)
    position = torch.cat([encoder.cls_pos.expand(len(tokens), -1, -1), encoder.pos_embed(centres)], dim=1)
    tokens = torch.cat([cls, tokens], dim=1)
    for block in encoder.blocks.blocks:
        tokens = block(tokens + position, attn_mask=bias)
    return encoder.norm(tokens)


def damping_at(progress: float, start: float) -> float:
    """`start` for the first quarter of training, then falling as a parabola to 0 at 70 per cent."""
    return start * min(1.0, max(0.0, (0.7 - progress) / 0.45)) ** 2


class GroupHeads(nn.Module):
    """Tokens of groups [B, G, C] -> scores per word list: kind, proportion, posture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(words)) for name, words in WORDS.items()})

    def forward(self, tokens: Tensor) -> list[Tensor]:
        return [head(tokens) for head in self.heads.values()]


@torch.no_grad()
def held_out_accuracy(encoder: PointBert, heads: GroupHeads, bank: Bank, *, batches: int = 6) -> dict[str, float]:
    """Shares read right on clouds never seen: of objects by the mean of their groups' scores, of rooms per group."""
    encoder.eval()
    rng = np.random.RandomState(7)
    right: dict[str, list[float]] = {}
    for _ in range(batches):
        clouds, labels = bank.batch(96, rng, augment=False)
        scores = heads(encoder(clouds)[:, 1:])
        wanted = labels_of_groups(clouds, labels)
        names = list(WORDS)
        whole = [s[:48].log_softmax(-1).mean(dim=1).argmax(-1) == wanted[:48, 0, i] for i, s in enumerate(scores)]
        on_thing = wanted[48:, :, 0] != FLOOR
        group = [(s[48:].argmax(-1) == wanted[48:, :, i])[on_thing] for i, s in enumerate(scores)]
        found = {f"object {name}": hit for name, hit in zip(names, whole, strict=True)}
        found |= {"object all": whole[0] & whole[1] & whole[2], "room kind": group[0], "room proportion": group[1]}
        for name, hit in found.items():
            right.setdefault(name, []).append(hit.float().mean().item())
    encoder.train()
    return {name: round(float(np.mean(shares)), 4) for name, shares in right.items()}


def train(args: argparse.Namespace) -> tuple[PointBert, dict[str, float]]:
    """Train for `args.steps` steps; returns the encoder and its held-out accuracies."""
    torch.manual_seed(args.seed)
    rng = np.random.RandomState(args.seed)
    bank = Bank.draw(args.objects, args.rooms, seed=args.seed + 11)
    held_out = Bank.draw(600, 200, seed=args.seed + 12)
    encoder, heads = PointBert(**POINTBERT, drop_path_rate=0.0), GroupHeads(POINTBERT["trans_dim"])
    parameters = [*encoder.parameters(), *heads.parameters()]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=args.lr, total_steps=args.steps, pct_start=0.1)
    begin = time.perf_counter()
    scores: dict[str, float] = {}
    for step in range(1, args.steps + 1):
        clouds, labels = bank.batch(args.batch_size, rng, augment=True)
        wanted = labels_of_groups(clouds, labels)
        damping = damping_at(step / args.steps, args.damping)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            tokens = damped_tokens(encoder, clouds, damping_bias(wanted[..., 3], damping)) if damping else encoder(clouds)
            read = [scores.float() for scores in heads(tokens[:, 1:])]
        losses = [cross_entropy(s.flatten(0, 1), wanted[..., i].flatten(), ignore_index=IGNORED) for i, s in enumerate(read)]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % args.log_every == 0 or step == args.steps:
            if step % (5 * args.log_every) == 0 or step == args.steps:
                scores = held_out_accuracy(encoder, heads, held_out)
            shown = " ".join(f"{name} {loss.item():.3f}" for name, loss in zip(WORDS, losses, strict=True))
            seconds = time.perf_counter() - begin
            log.info("step %d/%d  damping %.1f  loss %s  held out %s  %.0f s", step, args.steps, damping, shown, scores, seconds)
    return encoder, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write (half precision)")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--damping", type=float, default=8.0)
    parser.add_argument("--bf16", action="store_true", help="autocast: twice as fast on CPUs that multiply in bfloat16")
    parser.add_argument("--objects", type=int, default=8000)
    parser.add_argument("--rooms", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=50)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    encoder, scores = train(args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in encoder.state_dict().items()
    }
    save_file(state, args.output, metadata={"pointbert": json.dumps(POINTBERT), "held_out": json.dumps(scores)})
    log.info("%s: %.2f MB, held out %s", args.output, args.output.stat().st_size / 1e6, scores)


if __name__ == "__main__":
    main()
