"""RegionBLIP at its real sizes on a GPU: how much of what the device can do a training step uses, with random weights.

    python -m benchmarks.gpu [--llm opt t5] [--rows 64] [--steps 20] [--output gpu.json]
    python -m benchmarks.gpu --device cpu --toy          whether it runs at all

NOT RUN ON A GPU SO FAR: no figure of it stands anywhere. The toy run is tested.

EVA-ViT-g at 224 pixels in training and 364 in captioning, BERT-base Q-Formers, Point-BERT, OPT-2.7B or Flan-T5-XL; frozen parts
in bf16, what is trained in float32 under bf16 autocast. Measured:

    image_region     a training step on pictures that a loader decodes and resizes; the time that the device waits for it
    cached           the same with the ViT's tokens at hand (`image_features`), where the model takes them
    mixture          the four modalities in turn, batches already on the device
    captions         beam-5 captions of regions at 364 pixels

MFU is the work that has to be done (`flops.py`) per second over the device's dense bf16 peak; `of_matmul` is of the rate of a
large matrix product, measured. What is frozen counts forward only, what gradients pass through twice, what is trained three
times, and what sharing or a cache saves is listed apart and counts nowhere. Every loss is looked at: `not_finite` counts those
that are not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import flops, measure, others, sizes
from benchmarks.work import CAPTION, FEATURES, RUN
from lavis.common.optims import build_optimizer
from lavis.common.precision import building_for
from lavis.common.registry import registry
from lavis.datasets.loaders import TaskLoader
from lavis.runners.step import TrainStep, autocast, to_device

PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # dense bf16 TFLOP/s by NVIDIA's data sheets (SXM)
TOY_T5 = (32, 2, 2, 64)

Batches = Iterator[Mapping[str, Any]]


class Device:
    """A device, its clock and its limits."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.is_cuda = self.device.type == "cuda"
        self.name = torch.cuda.get_device_name() if self.is_cuda else "cpu"
        self.peak = next((peak for part, peak in PEAKS.items() if part in self.name), None)

    def now(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        if self.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def matmul(self, size: int) -> float:
        """TFLOP/s of a product of two bf16 matrices."""
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(3):
            a @ b
        start = self.now()
        for _ in range(10):
            a @ b
        return 20 * size**3 / (self.now() - start) / 1e12

    def reset_memory(self) -> None:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> float | None:
        """Most bytes that were taken since `reset_memory`, in GiB."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.is_cuda else None

    def shares(self, work: flops.Work, seconds: float, matmul: float) -> dict[str, Any]:
        """MFU and what it is made of."""
        rate = work.total / seconds / 1000
        parts = {f"gflop_{name}": round(getattr(work, name), 4) for name in ("frozen", "passed", "trained", "saved")}
        mfu = None if self.peak is None else round(rate / self.peak, 4)
        return {**parts, "tflops": round(rate, 4), "mfu": mfu, "of_matmul": round(rate / matmul, 4)}


def train(
    model: Any, device: Device, size: sizes.Size, batches: Batches, *, steps: int, warm: int, matmul: float
) -> dict[str, Any]:
    """Steps as a runner takes them; the host looks at losses only at the end."""
    model.train()
    cfg = SimpleNamespace(**RUN, amp_dtype=None)
    step = TrainStep(build_optimizer(model, cfg), run_cfg=cfg, device=device.device)
    losses, left_out, waited, work, rows = [], [], 0.0, flops.Work(), 0
    start = device.now()
    for number in range(warm + steps):
        if number == warm:
            device.reset_memory()
            start, waited, work, rows = device.now(), 0.0, flops.Work(), 0
        asked = time.perf_counter()
        samples = next(batches)
        waited += time.perf_counter() - asked
        count = len(samples["text_input"])
        work, rows = work + owed(model, size, samples), rows + count
        found = step(partial(model, to_device(samples, device.device)), step=number, window=1, update=True)
        losses.append(found["loss"])
        left_out.append(step.left_out)
    seconds = device.now() - start
    return {
        "ms_per_step": round(1000 * seconds / steps, 2),
        "samples_per_second": round(rows / seconds, 1),
        "waiting_for_data": round(waited / seconds, 4),
        **device.shares(work, seconds, matmul),
        "memory_gib": device.memory(),
        "not_finite": int((~torch.isfinite(torch.stack(losses))).sum()),
        "left_out": int(torch.stack(left_out).sum()),
        "steps": warm + steps,
    }


def owed(model: Any, size: sizes.Size, samples: Mapping[str, Any]) -> flops.Work:
    """The work of a batch, as long as its texts are."""
    modality, texts = samples["modality"], samples["text_input"]
    text = min(sizes.TEXT, max(map(len, model.tokenizer(list(texts)).input_ids)))
    encoder = modality.removesuffix("_region")
    cached = samples.get(FEATURES) is not None
    inputs = len(samples[FEATURES] if cached else samples[encoder])
    return flops.giga(flops.train(size, modality, text=text, rows=len(texts), inputs=inputs, cached=cached))


def captions(model: Any, device: Device, size: sizes.Size, *, rows: int, matmul: float) -> dict[str, Any]:
    """Beam-5 captions of regions, six of a picture."""
    samples = to_device(made("image_region", size, rows), device.device)
    model.eval()
    seconds = []
    for _ in range(3):
        start = device.now()
        with autocast(torch.bfloat16 if device.is_cuda else torch.float32, device.device):
            model.generate(samples, **CAPTION)
        seconds.append(device.now() - start)
    found = {"ms_per_caption": round(1000 * min(seconds) / rows, 2)}
    if size.t5 is None:
        work = flops.caption(size, "image_region", rows=rows, inputs=len(samples["image"]))
        found |= device.shares(flops.giga(work), min(seconds), matmul)
    return found


def made(modality: str, size: sizes.Size, rows: int) -> dict[str, Any]:
    """A made-up batch; regions share pictures by sixes."""
    shared = math.ceil(rows / sizes.EXPRESSIONS) if modality == "image_region" else None
    return sizes.batch(modality, size, rows=rows, inputs=shared)


def loaded(folder: Path, size: sizes.Size, rows: int, workers: int) -> Batches:
    """Batches of regions from JPEG files without end, as a run loads them."""
    if not folder.exists():
        others.write_pictures(folder)
    dataset = registry.get_builder_class("general_box_caption")(others.region_config(folder, size.image)).build_datasets(
        splits=["train"]
    )["train"]
    loader = TaskLoader(dataset, batch_size=rows, seed=0, num_workers=workers)
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def cached(model: Any, size: sizes.Size, rows: int, device: Device) -> dict[str, Any]:
    """A batch with the ViT's tokens in the place of pictures."""
    samples = to_device(made("image_region", size, rows), device.device)
    with torch.no_grad():
        features = model.encoders["image"].compute(samples.pop("image"))
    return {**samples, FEATURES: features}


def built(folder: Path, size: sizes.Size, device: Device) -> Any:
    """A model on the device, its random weights made there."""
    with torch.device(device.device), building_for(device.device):
        model = sizes.build_model(folder, size)
    return model.to(device.device)


def trainings(
    kind: str, given: argparse.Namespace, folder: Path, size: sizes.Size, device: Device, matmul: float
) -> dict[str, Any]:
    """The training rows of one language model."""
    model, rows = built(folder / kind, size, device), given.rows
    settings: dict[str, Any] = {"steps": given.steps, "warm": given.warm, "matmul": matmul}
    mixture = [to_device(made(modality, size, rows), device.device) for modality in sizes.MODALITIES]
    batches: dict[str, Callable[[], Batches]] = {
        "image_region": lambda: loaded(folder / "data", size, rows, given.workers),
        "cached": lambda: itertools.repeat(cached(model, size, rows, device)),
        "mixture": lambda: itertools.cycle(mixture),
    }
    found: dict[str, Any] = {}
    for name, make in batches.items():
        found[name] = attempt(lambda make=make: train(model, device, size, make(), **settings))  # type: ignore[misc]
        print(kind, name, json.dumps(found[name]), flush=True)
    return found


def measure_llm(kind: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rows of one language model."""
    device = Device(given.device)
    size = sizes.SMALL if given.toy else sizes.REAL
    if kind == "t5":
        size = replace(size, t5=TOY_T5 if given.toy else sizes.T5_XL, llm_vocabulary=None if given.toy else 32128)
    matmul = device.matmul(128 if given.toy else 8192)
    sizes.write_folders(folder / kind, size)
    found: dict[str, Any] = {"device": device.name, "matmul_tflops": round(matmul, 3), "peak_tflops": device.peak}
    found |= trainings(kind, given, folder, size, device, matmul)
    size = size if given.toy else replace(size, image=364)
    model = built(folder / kind, size, device)
    found["captions"] = attempt(lambda: captions(model, device, size, rows=given.rows, matmul=matmul))
    print(kind, "captions", json.dumps(found["captions"]), flush=True)
    return found


def attempt(job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a job gives, or why it gives nothing: an old model without `image_features`, or no memory."""
    try:
        return job()
    except (ValueError, torch.OutOfMemoryError) as error:
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", nargs="+", default=["opt", "t5"], choices=("opt", "t5"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm", type=int, default=5)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--toy", action="store_true", help="toy sizes")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    logging.getLogger("lavis").setLevel(logging.ERROR)
    results: dict[str, Any] = {"machine": measure.machine(), "toy": given.toy}
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.llm:
            results[kind] = measure_llm(kind, given, Path(folder))
    if given.output:
        given.output.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
