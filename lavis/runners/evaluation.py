"""One evaluation of one dataset: batches to rows, rows to metrics, a line in evaluate.txt.

Batches are cut the same way whatever the number of processes (`eval_bounds`), and a batch is worked on by one process alone,
with draws that follow from its number: so rows and metrics are those of one process, bit by bit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lavis.common import dist_utils
from lavis.common.feature_cache import FeatureCache
from lavis.common.logger import JsonlLog, MetricLogger, clock
from lavis.common.seeding import clear_step, seed_step
from lavis.datasets.loaders import eval_bounds, eval_loader, share
from lavis.runners import signals
from lavis.runners.features import counts_of, finish_batch
from lavis.runners.partial import PartialResults, remove, results_key
from lavis.runners.step import amp_dtype, autocast, to_device
from lavis.tasks.base_task import Row

logger = logging.getLogger(__name__)


def evaluations(datasets: Mapping[str, Mapping[str, Any]], splits: Iterable[str]) -> Iterator[tuple[str, str, str, Any]]:
    """(result name, split, dataset name, dataset) of everything the splits ask for. The result name is the
    split, and begins with the dataset's name where several datasets have that split."""
    for split in splits:
        holders = [name for name, parts in datasets.items() if split in parts]
        for name in holders:
            yield (split if len(holders) == 1 else f"{name}_{split}"), split, name, datasets[name][split]


def divide(total: int, done: Collection[int], *, rank: int, world_size: int) -> tuple[list[int], range]:
    """What process `rank` does of `total` batches when those in `done` are finished: the batches it works on, a run of those that
    are left, and the run of all batches whose rows it hands on. Over all ranks in order, the latter are 0 to total."""
    left = [number for number in range(total) if number not in done]
    low, high = share((0, len(left)), rank=rank, world_size=world_size)
    ends = [*left, total]
    return left[low:high], range(ends[low] if rank else 0, ends[high] if rank + 1 < world_size else total)


def evaluate_dataset(
    dataset: Any,
    *,
    task: Any,
    model: Any,
    run_cfg: Any,
    device: torch.device,
    name: str,
    epoch: int | str,
    output_dir: Path,
    settings: Mapping[str, Any] | None = None,
    kept: list[PartialResults] | None = None,
    features: FeatureCache | None = None,
) -> dict[str, Any]:
    """Metrics of one dataset, the same on every process.

    Where ``run.reuse_partial_results`` is set, batches that an evaluation of the same weights, data and settings finished before
    it was stopped are not done again, whatever the number of processes was. ``settings``: the configuration of model and
    datasets, which decides rows as well; without it nothing is kept for later. ``kept``: takes what was kept, for a caller that
    has several evaluations to do and removes it when all are done; without it this is done here. ``features``: where those of a
    frozen encoder are kept.
    """
    start = time.perf_counter()
    shared = bool(run_cfg.use_dist_eval_sampler)
    rank, world_size = (dist_utils.get_rank(), dist_utils.get_world_size()) if shared else (0, 1)
    was_training = model.training
    model.eval()
    task.before_evaluation(model=model, dataset=dataset)
    folder: Path | None = None
    if run_cfg.reuse_partial_results and task.rows_are_json and settings is not None:
        identity = {"model": model, "dataset": dataset, "run_cfg": run_cfg, "device": device, "split_name": name}
        folder = output_dir / "result" / "partial" / f"{name}_{results_key(settings=settings, **identity)}"
    partial = PartialResults(folder, name=name)
    total = len(eval_bounds(len(dataset), batch_size=int(run_cfg.batch_size_eval)))
    found = partial.read(total=total)
    batches, span = divide(total, found, rank=rank, world_size=world_size)
    found = {number: rows for number, rows in found.items() if number in span}
    writes = shared or dist_utils.is_main_process()
    results = predict(dataset, batches, task=task, model=model, run_cfg=run_cfg, device=device, name=name, features=features)
    for number, rows in results:
        found[number] = rows
        if writes:
            partial.add(number, rows)
    counts_of(features, name)
    metrics = task.after_evaluation(
        [row for number in sorted(found) for row in found[number]] if writes else [],
        split_name=name,
        epoch=epoch,
        result_dir=output_dir / "result",
        dataset=dataset,
    )
    model.train(was_training)
    log = JsonlLog(output_dir / "evaluate.txt", enabled=dist_utils.is_main_process())
    log.write({name: metrics, "epoch": epoch, "dataset": getattr(dataset, "name", "")})
    if dist_utils.is_main_process():
        task.illustrate(split_name=name, epoch=epoch, output_dir=output_dir, dataset=dataset)
    if kept is not None:
        kept.append(partial)
    else:
        remove([partial])
    if dist_utils.is_main_process():
        values = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items() if isinstance(value, float))
        logger.info("%s, epoch %s: %s (%s)", name, epoch, values, clock(time.perf_counter() - start))
    return metrics


def predict(
    dataset: Any,
    batches: Sequence[int],
    *,
    task: Any,
    model: Any,
    run_cfg: Any,
    device: torch.device,
    name: str,
    features: FeatureCache | None = None,
) -> Iterator[tuple[int, list[Row]]]:
    """(number, rows) of each batch in turn.

    No collective is entered within a batch, as processes may have different numbers of them. The batches of a sharded model are
    collective all the same: a process that has fewer of them takes a batch again, and drops its rows, until all are done.
    """
    batch_size, seed, dtype = int(run_cfg.batch_size_eval), int(run_cfg.seed), amp_dtype(run_cfg, device)
    loader = eval_loader(dataset, batch_size=batch_size, num_workers=int(run_cfg.num_workers), batches=batches)
    shown = MetricLogger().log_every(loader, int(run_cfg.log_freq), f"evaluating {name}", total=len(batches))
    rounds = max(dist_utils.all_gather_objects(len(batches))) if dist_utils.is_sharded(model) else len(batches)

    def step(number: int, samples: Any) -> list[Row]:
        seed_step(seed, number, 0)
        with dist_utils.single_process(), torch.no_grad(), autocast(dtype, device):
            return task.valid_step(model, to_device(samples, device))

    again: Any = None
    for number, samples in zip(batches, shown, strict=True):
        signals.stop_if_received()  # what is done is kept in files
        again = samples
        rows = step(number, samples)
        finish_batch(features, samples)
        yield number, rows
    for _ in range(rounds - len(batches)):
        again = again or dataset.collater([dataset[0]])
        step(0, again)
    clear_step()
