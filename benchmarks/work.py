"""What is measured: every row as two functions, ours and the published way, on the same batch.

A row says how many samples a call of it has, what the published implementation took per sample (`listed`, milliseconds), and
how to tell that both sides compute the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks import sizes
from benchmarks.published.model import Published, PublishedStep
from lavis.common.optims import build_optimizer
from lavis.common.seeding import clear_step
from lavis.runners.step import TrainStep, autocast

CAPTION = {"num_beams": 5, "max_length": 30, "min_length": 8}
RUN = {
    "init_lr": 1e-4, "weight_decay": 0.05, "beta2": 0.999, "lr_layer_decay": 1, "seed": 0, "amp": True, "grad_clip_norm": None,
}  # fmt: skip


@dataclass
class Row:
    """`sides`: name -> call. `differ`: how far the sides' results are apart, and what that number is."""

    sides: dict[str, Callable[[], object]]
    samples: int
    listed: float | None = None
    differ: Callable[[], dict[str, float]] = field(default=dict)


class Bench:
    """Our model and a copy that is computed the published way."""

    def __init__(self, model: Any, size: sizes.Size) -> None:
        self.model, self.size = model, size
        self.published = Published(copy.deepcopy(model))
        self.theirs = PublishedStep(self.published)
        self.steps: dict[torch.dtype, TrainStep] = {}

    def mode(self, training: bool) -> None:
        clear_step()
        for model in (self.model, self.published.model):
            model.train(training)

    def step(self, dtype: torch.dtype) -> TrainStep:
        """A training step of ours that computes in `dtype`."""
        if dtype not in self.steps:
            name = "bf16" if dtype == torch.bfloat16 else None
            cfg = SimpleNamespace(**RUN, amp_dtype=name)
            self.steps[dtype] = TrainStep(build_optimizer(self.model, cfg), run_cfg=cfg, device=torch.device("cpu"))
        return self.steps[dtype]

    # -- training -------------------------------------------------------------------------------------------------------------
    def train(self, modality: str, dtype: torch.dtype, *, inputs: int | None = None, listed: float | None = None) -> Row:
        """A training step of a batch; with `inputs`, its rows share so many images (the published way copies them)."""
        samples = sizes.batch(modality, self.size, inputs=inputs)
        copied = spread(samples)
        step = self.step(dtype)
        self.mode(True)
        sides: dict[str, Callable[[], object]] = {
            "published": lambda: self.theirs(copied),
            "ours": lambda: step(lambda: self.model(samples), step=0, window=1, update=True),
        }
        return Row(sides, sizes.ROWS, listed, lambda: self.loss_difference(samples, copied, dtype))

    def loss_difference(self, samples: Mapping[str, Any], copied: Mapping[str, Any], dtype: torch.dtype) -> dict[str, float]:
        """Largest relative difference of a loss, without dropout, from the same weights and draws."""
        self.mode(False)
        self.published.model.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            torch.manual_seed(1)
            with autocast(dtype, torch.device("cpu")):
                ours = self.model(samples)
            torch.manual_seed(1)
            theirs = self.published(copied)
        self.mode(True)
        found = {name: abs(float(ours[name]) - float(value)) / max(abs(float(value)), 1e-6) for name, value in theirs.items()}
        return {"loss": max(found.values())}

    # -- captions -------------------------------------------------------------------------------------------------------------
    def caption(
        self,
        modality: str,
        dtype: torch.dtype,
        *,
        rows: int = sizes.ROWS,
        inputs: int | None = None,
        one_by_one: bool = False,
        listed: float | None = None,
    ) -> Row:
        """Beam-5 captions of a batch in one call of ours, against a batch, or one row at a time, the published way."""
        samples = sizes.batch(modality, self.size, rows=rows, inputs=inputs)
        samples = {key: value for key, value in samples.items() if key not in ("text_input", "image_id")}
        copied = spread(samples)
        calls = [one(copied, row) for row in range(rows)] if one_by_one else [copied]
        self.mode(False)

        def ours() -> list[str]:
            with autocast(dtype, torch.device("cpu")):
                return self.model.generate(samples, **CAPTION)

        def theirs() -> list[str]:
            return [text for call in calls for text in self.published.generate(call, **CAPTION)]

        def differ() -> dict[str, float]:
            self.published.model.load_state_dict(self.model.state_dict())
            pairs = list(zip(ours(), theirs(), strict=True))
            return {"captions that differ": sum(a != b for a, b in pairs) / len(pairs)}

        return Row({"published": theirs, "ours": ours}, rows, listed, differ)


def spread(samples: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of the published loaders: a picture or cloud for every row."""
    found = dict(samples)
    for encoder in ("image", "pointcloud"):
        index = found.pop(f"{encoder}_index", None)
        if index is not None:
            found[encoder] = found[encoder][index]
    return found


def one(samples: Mapping[str, Any], row: int) -> dict[str, Any]:
    """One row of a batch."""
    return {key: value[row : row + 1] if isinstance(value, Tensor) else value for key, value in samples.items()}


def rows(bench: Bench, dtype: torch.dtype) -> dict[str, Callable[[], Row]]:
    """Every row of the table, made when it is its turn."""
    return {
        "train_image": lambda: bench.train("image", dtype, listed=163.5),
        "train_image_region": lambda: bench.train("image_region", dtype, inputs=2, listed=177.0),
        "train_pointcloud": lambda: bench.train("pointcloud", dtype, listed=764.0),
        "train_pointcloud_region": lambda: bench.train("pointcloud_region", dtype, listed=851.0),
        "caption_image": lambda: bench.caption("image", dtype, listed=275.0),
        "caption_regions_of_one_image": lambda: bench.caption("image_region", dtype, inputs=1, one_by_one=True),
        "caption_image_region": lambda: bench.caption("image_region", dtype, inputs=1, listed=272.0),
        "caption_pointcloud": lambda: bench.caption("pointcloud", dtype, listed=662.0),
        "caption_objects_of_one_scene": lambda: bench.caption("pointcloud_region", dtype, rows=4, inputs=1, listed=778.0),
    }
