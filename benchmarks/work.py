"""Training steps and captions as rows: ours and the published way on the same batch.

A row says how many samples a call of it has, what the published implementation took per sample (`listed`, milliseconds, where
it is known), the work that has to be done, and how to tell that both sides compute the same.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks import flops, sizes
from benchmarks.published.model import Published, PublishedStep
from lavis.common.optims import build_optimizer
from lavis.common.seeding import clear_step
from lavis.runners.step import TrainStep, autocast

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
CAPTION = {"num_beams": 5, "max_length": 30, "min_length": 30}  # 29 tokens each: no caption ends early on either side
RUN = {
    "init_lr": 1e-4, "weight_decay": 0.05, "beta2": 0.999, "lr_layer_decay": 1, "seed": 0, "amp": True, "grad_clip_norm": None,
}  # fmt: skip
LOSS_LIMITS = {"float32": 1e-4, "bf16": 0.02}  # relative
CAPTION_LIMITS = {"float32": 0.0, "bf16": 1.0}  # share of captions; in bf16 rounding decides between near beams of random weights
FEATURES = "image_features"  # the sample key of pictures that come as what the frozen ViT made of them


class NotYetError(Exception):
    """A row that this version cannot measure."""


@dataclass
class Row:
    """`sides`: "published" and the types that ours computes in -> call. `differ`: how far the results of a type are apart from
    the published ones. `limits`: up to where that is rounding. `listed`: ms per sample of the published implementation;
    `stands_on`: the row that has one, where this has not. `unit`: what a sample is."""

    sides: dict[str, Callable[[], object]]
    samples: int
    listed: float | None = None
    stands_on: str | None = None
    work: flops.Work | None = None
    differ: Callable[[str], float] | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    unit: str = "sample"


@dataclass(frozen=True)
class Spec:
    """What a training or caption row is of; `inputs`: rows share so many pictures or clouds; `cached`: the ViT's tokens are
    given; `alone`: the published way takes the rows one at a time."""

    kind: str  # "train" or "caption"
    modality: str
    rows: int = sizes.ROWS
    inputs: int | None = None
    cached: bool = False
    alone: bool = False
    listed: float | None = None
    stands_on: str | None = None


# The listed milliseconds are the published implementation's per sample, the middle where a range is known.
SPECS = {
    "train_image": Spec("train", "image", listed=163.5),
    "train_image_region": Spec("train", "image_region", inputs=2, listed=177.0),
    "train_image_region_cached": Spec("train", "image_region", inputs=2, cached=True, listed=177.0),
    "train_image_region_apart": Spec("train", "image_region", listed=177.0),
    "train_pointcloud": Spec("train", "pointcloud", listed=764.0),
    "train_pointcloud_region": Spec("train", "pointcloud_region", listed=851.0),
    "caption_image": Spec("caption", "image", listed=275.0),
    "caption_image_region": Spec("caption", "image_region", listed=272.0),
    "caption_8_regions": Spec("caption", "image_region", inputs=1, alone=True, stands_on="caption_image_region"),
    "caption_pointcloud": Spec("caption", "pointcloud", listed=662.0),
    "caption_4_objects": Spec("caption", "pointcloud_region", rows=4, inputs=1, listed=778.0),
}


class Bench:
    """Our model, and the same computed the published way over a copy; with one `side` alone, over the model itself.

    In bf16 our model is one that was built for it, as the runner does, with the same weights. `folder`: of `sizes.write_folders`.
    """

    def __init__(self, folder: Path, size: sizes.Size, *, side: str | None = None) -> None:
        self.folder, self.size = folder, size
        self.model = sizes.build_model(folder, size, autocast=DTYPES.get(side or "", torch.float32))
        self.models = {side if side in DTYPES else "float32": self.model}
        self.published = Published(self.model if side else copy.deepcopy(self.model))
        self.theirs = PublishedStep(self.published)
        self.steps: dict[str, TrainStep] = {}

    def ours(self, dtype: str) -> Any:
        """Our model for a type of autocast."""
        if dtype not in self.models:
            self.models[dtype] = sizes.build_model(self.folder, self.size, autocast=DTYPES[dtype])
            self.models[dtype].load_state_dict(self.model.state_dict())
        return self.models[dtype]

    def mode(self, training: bool) -> None:
        clear_step()
        for model in (*self.models.values(), self.published.model):
            model.train(training)

    def step(self, dtype: str) -> TrainStep:
        """A training step of ours that computes in `dtype`."""
        if dtype not in self.steps:
            cfg = SimpleNamespace(**RUN, amp_dtype=None if dtype == "float32" else dtype)
            self.steps[dtype] = TrainStep(build_optimizer(self.ours(dtype), cfg), run_cfg=cfg, device=CPU)
        return self.steps[dtype]

    def batch(self, spec: Spec) -> tuple[dict[str, Any], dict[str, Any]]:
        """The batch of a row as our loaders make it, and as the published ones do: a picture or cloud for every row."""
        samples = sizes.batch(spec.modality, self.size, rows=spec.rows, inputs=spec.inputs)
        if spec.kind == "caption":
            samples = {key: value for key, value in samples.items() if key not in ("text_input", "image_id")}
        copied = spread(samples)
        return (self.with_features(samples) if spec.cached else samples), copied

    def with_features(self, samples: dict[str, Any]) -> dict[str, Any]:
        """The batch with the ViT's tokens [I, T, C] in the place of pictures; NotYetError where the model wants pictures."""
        with torch.no_grad():
            self.mode(False)
            made = {
                FEATURES: self.model.encoders["image"].compute(samples["image"]),
                **{k: v for k, v in samples.items() if k != "image"},
            }
            try:
                self.model(made)
            except (KeyError, ValueError, AttributeError, TypeError) as error:
                raise NotYetError(f"the model takes no samples['{FEATURES}'] ({error})") from error
        return made

    def row(self, name: str, dtypes: Sequence[str]) -> Row:
        """A row by name, ready to be measured."""
        spec = SPECS[name]
        sharing: dict[str, Any] = {"rows": spec.rows, "inputs": spec.inputs, "cached": spec.cached}
        if spec.kind == "train":
            work = flops.train(self.size, spec.modality, text=sizes.TEXT, **sharing)
            return Row(
                self.train(spec, dtypes), spec.rows, spec.listed, spec.stands_on, flops.giga(work),
                lambda dtype: self.loss_difference(spec, dtype), LOSS_LIMITS,
            )  # fmt: skip
        work = flops.caption(self.size, spec.modality, **sharing)
        sides = self.caption(spec, dtypes)
        expected = functools.cache(sides["published"])
        return Row(
            sides, spec.rows, spec.listed, spec.stands_on, flops.giga(work),
            lambda dtype: self.caption_difference(sides[dtype], expected), CAPTION_LIMITS,
        )  # fmt: skip

    # -- training -------------------------------------------------------------------------------------------------------------
    def train(self, spec: Spec, dtypes: Sequence[str]) -> dict[str, Callable[[], object]]:
        """A training step of the batch: forward, backward, update."""
        samples, copied = self.batch(spec)
        steps = {dtype: self.step(dtype) for dtype in dtypes}
        self.mode(True)

        def ours(dtype: str) -> object:
            return steps[dtype](lambda: self.models[dtype](samples), step=0, window=1, update=True)

        return {"published": lambda: self.theirs(copied), **{dtype: functools.partial(ours, dtype) for dtype in dtypes}}

    def loss_difference(self, spec: Spec, dtype: str) -> float:
        """Largest relative difference of a loss, without dropout, from the same weights and draws."""
        samples, copied = self.batch(spec)
        model = self.ours(dtype)
        self.mode(False)
        self.published.model.load_state_dict(model.state_dict())
        with torch.no_grad():
            torch.manual_seed(1)
            with autocast(DTYPES[dtype], CPU):
                ours = model(samples)
            torch.manual_seed(1)
            theirs = self.published(copied)
        self.mode(True)
        return max(abs(float(ours[name]) - float(value)) / max(abs(float(value)), 1e-6) for name, value in theirs.items())

    # -- captions -------------------------------------------------------------------------------------------------------------
    def caption(self, spec: Spec, dtypes: Sequence[str]) -> dict[str, Callable[[], object]]:
        """Beam-5 captions of a batch: in one call of ours, in one call or one row at a time the published way."""
        samples, copied = self.batch(spec)
        calls = [one(copied, row) for row in range(spec.rows)] if spec.alone else [copied]
        models = {dtype: self.ours(dtype) for dtype in dtypes}
        self.mode(False)

        def ours(dtype: str) -> object:
            with autocast(DTYPES[dtype], CPU):
                return models[dtype].generate(samples, **CAPTION)

        def theirs() -> object:
            return [text for call in calls for text in self.published.generate(call, **CAPTION)]

        return {"published": theirs, **{dtype: functools.partial(ours, dtype) for dtype in dtypes}}

    def caption_difference(self, call: Callable[[], Any], expected: Callable[[], Any]) -> float:
        """The share of captions that differ, from the same weights."""
        self.published.model.load_state_dict(self.model.state_dict())
        ours, theirs = call(), expected()
        return sum(a != b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def call_once(folder: str, size: sizes.Size, name: str, side: str) -> None:
    """A side of a row over a model of its own, built from the folders below `folder`: one call, in training two, since AdamW's
    moments are there from the second on."""
    logging.getLogger("lavis").setLevel(logging.ERROR)
    bench = Bench(Path(folder), size, side=side)
    call = bench.row(name, [] if side == "published" else [side]).sides[side]
    for _ in range(2 if SPECS[name].kind == "train" else 1):
        call()


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
