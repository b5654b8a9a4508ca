"""One evaluation of one dataset: batches to rows, rows to metrics, a line in evaluate.txt."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lavis.common import dist_utils
from lavis.common.logger import JsonlLog, MetricLogger, clock
from lavis.common.seeding import clear_step, seed_step
from lavis.datasets.loaders import eval_loader, share
from lavis.runners.step import amp_dtype, autocast, to_device

logger = logging.getLogger(__name__)


def evaluations(datasets: Mapping[str, Mapping[str, Any]], splits: Iterable[str]) -> Iterator[tuple[str, str, str, Any]]:
    """(result name, split, dataset name, dataset) of everything the splits ask for. The result name is the
    split, and begins with the dataset's name where several datasets have that split."""
    for split in splits:
        holders = [name for name, parts in datasets.items() if split in parts]
        for name in holders:
            yield (split if len(holders) == 1 else f"{name}_{split}"), split, name, datasets[name][split]


def evaluate_dataset(
    dataset: Any, *, task: Any, model: Any, run_cfg: Any, device: torch.device, name: str, epoch: int | str, output_dir: Path
) -> dict[str, Any]:
    """Metrics of one dataset, the same on every process.

    Each process works on its share alone (no collective within a batch, as shares may be unequal), then rows
    are gathered. The batches of a sharded model are collective all the same: a process that has fewer of them
    takes a batch again, and drops its rows, until all are done. Draws follow from the seed and the number of the
    batch, so an evaluation can be repeated.
    """
    start = time.perf_counter()
    shared = bool(run_cfg.use_dist_eval_sampler)
    rank, batch_size = dist_utils.get_rank(), int(run_cfg.batch_size_eval)
    split = {"rank": rank, "world_size": dist_utils.get_world_size()} if shared else {"rank": 0, "world_size": 1}
    loader = eval_loader(dataset, batch_size=batch_size, num_workers=int(run_cfg.num_workers), **split)
    low, high = share((0, len(dataset)), **split)
    was_training = model.training
    model.eval()
    task.before_evaluation(model=model, dataset=dataset)
    rows: list[dict[str, Any]] = []
    batches = math.ceil((high - low) / batch_size)
    shown = MetricLogger().log_every(loader, int(run_cfg.log_freq), f"evaluating {name}", total=batches)
    seed, dtype = int(run_cfg.seed), amp_dtype(run_cfg, device)
    rounds = max(dist_utils.all_gather_objects(batches)) if dist_utils.is_sharded(model) else batches
    with dist_utils.single_process(), torch.no_grad():
        samples: Any = None
        for index, samples in enumerate(shown):
            seed_step(seed, index, rank)
            with autocast(dtype, device):
                rows.extend(task.valid_step(model, to_device(samples, device)))
        for _ in range(rounds - batches):
            samples = samples or dataset.collater([dataset[0]])
            with autocast(dtype, device):
                task.valid_step(model, to_device(samples, device))
    clear_step()
    metrics = task.after_evaluation(
        rows if shared or rank == 0 else [], split_name=name, epoch=epoch, result_dir=output_dir / "result", dataset=dataset
    )
    model.train(was_training)
    if dist_utils.is_main_process():
        values = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items() if isinstance(value, float))
        logger.info("%s, epoch %s: %s (%s)", name, epoch, values, clock(time.perf_counter() - start))
    log = JsonlLog(output_dir / "evaluate.txt", enabled=dist_utils.is_main_process())
    log.write({name: metrics, "epoch": epoch, "dataset": getattr(dataset, "name", "")})
    return metrics
