"""A profile: where the time of a row goes, part by part, on both sides.

    python -m benchmarks.parts --work train_image_region [--dtype float32] [--calls 3] [--clock cpu] [--small]

A part's time is its own: what another part of the list took within it is taken off. Backward and the optimizer are parts too.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, sizes
from benchmarks.published import beam, opt, points, vit
from benchmarks.published.model import Published
from benchmarks.work import DTYPES, SPECS, Bench
from lavis.models.encoders import point_bert

PASSES = ("passes_at_once", "query_pass", "text_pass", "lm_pass", "lm_logits", "joint_pass")


class Parts:
    """Seconds by part, while calls of `around` are watched."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.stack = now, [0.0]
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.undo: list[Callable[[], None]] = []

    def around(self, owner: Any, name: str, part: str) -> None:
        """Watch a method or function by its owner; one that is not there is passed over."""
        original = getattr(owner, name, None)
        if original is None:
            return
        own = name in vars(owner)

        def timed(*args: Any, **keywords: Any) -> Any:
            with self.part(part):
                return original(*args, **keywords)

        setattr(owner, name, timed)
        self.undo.append((lambda: setattr(owner, name, original)) if own else (lambda: delattr(owner, name)))

    @contextlib.contextmanager
    def part(self, part: str) -> Iterator[None]:
        """Add the time of a block to a part, less what is watched inside."""
        start = self.now()
        self.stack.append(0.0)
        try:
            yield
        finally:
            took, inside = self.now() - start, self.stack.pop()
            self.spent[part] += took - inside
            self.stack[-1] += took

    def restore(self) -> None:
        """Take the watching away."""
        while self.undo:
            self.undo.pop()()


def watch_ours(parts: Parts, bench: Bench, dtype: str) -> None:
    model = bench.ours(dtype)
    parts.around(model.visual_encoder, "forward", "ViT")
    parts.around(point_bert, "group_points", "sampling and grouping")
    parts.around(model.point_encoder.encoder, "forward", "mini-PointNet")
    parts.around(model.point_encoder, "forward", "Point-BERT blocks")
    for qformer in (model.Qformer, model.Qformer_pc):
        for name in PASSES:
            parts.around(qformer, name, f"Q-Former {name}")
    parts.around(model.llm.model, "forward", "language model")
    parts.around(model.llm, "loss", "language loss")
    parts.around(model.llm, "generate", "beams")
    parts.around(bench.step(dtype).optimizer, "step", "optimizer")


def watch_published(parts: Parts, bench: Bench) -> None:
    parts.around(vit, "eva", "ViT")
    parts.around(points, "group", "sampling and grouping")
    parts.around(points, "mini_pointnet", "mini-PointNet")
    parts.around(points, "point_bert", "Point-BERT blocks")
    parts.around(Published, "look", "Q-Former query_pass")
    parts.around(Published, "matching", "Q-Former joint_pass")
    parts.around(Published, "language", "Q-Former lm_pass")
    parts.around(opt.Opt, "run", "language model")
    parts.around(Published, "captioning", "language loss")
    parts.around(beam, "search", "beams")
    parts.around(bench.theirs.optimizer, "step", "optimizer")


def profile(bench: Bench, name: str, dtype: str, *, calls: int, clock: str) -> dict[str, dict[str, float]]:
    """Side -> part -> ms per sample."""
    row = bench.row(name, [dtype])
    found: dict[str, dict[str, float]] = {}
    for side, call in row.sides.items():
        call()
        parts = Parts(measure.CLOCKS[clock])
        parts.around(torch.Tensor, "backward", "backward")
        if side == "published":
            watch_published(parts, bench)
        else:
            watch_ours(parts, bench, dtype)
        try:
            for _ in range(calls):
                with parts.part("the rest"):
                    call()
        finally:
            parts.restore()
        found[side] = {part: seconds * 1000 / calls / row.samples for part, seconds in parts.spent.items()}
    return found


def show(found: dict[str, dict[str, float]]) -> str:
    """A table, the most expensive of the published side first."""
    sides = list(found)
    names = sorted({part for times in found.values() for part in times}, key=lambda part: -found[sides[0]].get(part, 0.0))
    totals = {side: sum(times.values()) for side, times in found.items()}
    lines = [f"{'ms per sample':24}" + "".join(f"{side:>20}" for side in sides)]
    for part in names:
        cells = (f"{found[side].get(part, 0.0):12.2f} {found[side].get(part, 0.0) / totals[side]:6.1%}" for side in sides)
        lines.append(f"{part:24}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join([*lines, f"{'all':24}" + "".join(f"{totals[side]:13.2f}       " for side in sides)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=SPECS, default=["train_image_region"])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--clock", choices=measure.CLOCKS, default="wall")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    given = parser.parse_args(arguments)
    logging.getLogger("lavis").setLevel(logging.ERROR)
    size = sizes.SMALL if given.small else sizes.MEASURED
    with tempfile.TemporaryDirectory() as folder:
        sizes.write_folders(Path(folder), size)
        bench = Bench(Path(folder), size)
        for name in given.work:
            found = profile(bench, name, given.dtype, calls=given.calls, clock=given.clock)
            print(f"{name}, {given.dtype}\n{show(found)}\n", flush=True)


if __name__ == "__main__":
    main()
