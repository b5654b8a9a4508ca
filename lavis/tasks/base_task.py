"""The interface between a runner and what is to be learned or measured."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig, ListConfig

from lavis.common import dist_utils
from lavis.common.config import Config
from lavis.common.errors import ConfigError, listed
from lavis.common.registry import registry

logger = logging.getLogger(__name__)
Row = dict[str, Any]
Datasets = dict[str, dict[str, Any]]  # dataset name -> split -> dataset


class BaseTask:
    """Builds model and datasets, takes a training step, turns batches into result rows and rows into
    metrics."""

    rows_are_json: ClassVar[bool] = True  # rows hold what JSON gives back as it was; False: no evaluation goes on from them

    def __init__(self, run_cfg: DictConfig) -> None:
        self.run_cfg = run_cfg

    @classmethod
    def setup_task(cls, cfg: Config) -> BaseTask:
        return cls(cfg.run_cfg)

    def build_model(self, cfg: Config) -> Any:
        """The model of the configuration, with the weights it names."""
        return registry.get_model_class(cfg.model_cfg.arch).from_config(cfg.model_cfg)

    def build_datasets(self, cfg: Config, *, splits: Iterable[str] | None = None) -> Datasets:
        """{dataset name: {split: dataset}}; with ``splits`` only those, so that evaluation needs no training
        file.

        Raises ConfigError where no dataset is configured, and for a split that no dataset has.
        """
        if not cfg.datasets_cfg:
            raise ConfigError(f"datasets: none is configured. Known: {listed(registry.list_builders())}.")
        wanted = None if splits is None else list(dict.fromkeys(splits))
        built: Datasets = {}
        for name, dataset_cfg in cfg.datasets_cfg.items():
            builder_cls = registry.get_builder_class(str(name))
            root = {"cache_root": cfg.env_cfg.cache_root} if cfg.env_cfg.cache_root else {}
            there = _splits_with_files(dataset_cfg)
            if wanted is None or there is None:
                parts = builder_cls(dataset_cfg, **root).build_datasets()
            elif chosen := [split for split in wanted if split in there]:
                parts = builder_cls(dataset_cfg, **root).build_datasets(splits=chosen)
            else:
                logger.info("dataset %s has none of the splits %s; left out", name, listed(wanted))
                continue
            built[str(name)] = {split: part for split, part in parts.items() if wanted is None or split in wanted}
        _check_splits(wanted or (), built)
        if cfg.run_cfg.group_in_workers:
            _group_clouds(built, cfg.model_cfg)
        return built

    # Steps

    def before_training(self, *, model: Any, datasets: Datasets) -> None:
        """Called once, before the first step."""
        if hasattr(model, "before_training"):
            model.before_training(datasets=datasets)

    def before_evaluation(self, *, model: Any, dataset: Any) -> None:
        """Called before each evaluation."""
        if hasattr(model, "before_evaluation"):
            model.before_evaluation(dataset=dataset, task_type=type(self))

    def train_step(self, model: Any, samples: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """Losses by name, 0-dim tensors; ``loss`` is the one that is minimised."""
        return model(samples)

    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[Row]:
        """The result rows of one batch: of nothing but the batch, and JSON values unless ``rows_are_json`` is False."""
        raise NotImplementedError

    def after_evaluation(
        self, rows: list[Row], *, split_name: str, epoch: int | str, result_dir: Path, dataset: Any
    ) -> dict[str, Any]:
        """Metrics of all processes' rows, the same on every process; ``agg_metrics`` is what a best
        checkpoint is chosen by (larger is better). Every process calls it, with its own rows: those of a run of
        batches, which over all processes in rank order are those of the dataset."""
        raise NotImplementedError

    def illustrate(self, *, split_name: str, epoch: int | str, output_dir: Path, dataset: Any) -> None:
        """Pages that show an evaluation, where ``run`` asks for them. Called on the main process when the metrics are written;
        never raises, as an evaluation is not to be lost for a page of it."""


def gather_rows(rows: list[Row], *, unique: str | None = None) -> list[Row]:
    """Every process's rows in rank order; of rows with the same ``unique`` value only the first."""
    gathered = [row for part in dist_utils.all_gather_objects(rows) for row in part]
    if unique is None:
        return gathered
    first: dict[Any, Row] = {}
    for row in gathered:
        first.setdefault(row[unique], row)
    return list(first.values())


def save_result(rows: list[Row], *, result_dir: Path, name: str) -> Path:
    """Write ``<result_dir>/<name>.json`` (on the main process); returns its path on every process."""
    path = Path(result_dir) / f"{name}.json"
    if dist_utils.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
        temporary.replace(path)
    return path


def batch_length(samples: Mapping[str, Any]) -> int:
    """B: how many samples a batch holds (its lists and, where there are none, its tensors say so)."""
    lists = [value for key, value in samples.items() if isinstance(value, list) and key != "skipped"]
    tensors = [value for value in samples.values() if isinstance(value, torch.Tensor) and value.dim()]
    if not lists and not tensors:
        raise ValueError(f"a batch without lists or tensors: {listed(samples)}")
    return len((lists or tensors)[0])


def _splits_with_files(dataset_cfg: DictConfig) -> list[str] | None:
    """The splits whose mapping names a path; None where the configuration has another layout."""
    annotations = (dataset_cfg.get("build_info") or dataset_cfg).get("annotations")
    if not isinstance(annotations, DictConfig):
        return None
    return [
        str(split)
        for split, entry in annotations.items()
        if any(isinstance(value, (str, ListConfig)) and value for value in (entry or {}).values())
    ]


def _group_clouds(built: Datasets, model_cfg: DictConfig) -> None:
    """Have datasets of clouds find the groups that the point encoder reads."""
    sizes = model_cfg.get("pointbert")
    for dataset in (dataset for parts in built.values() for dataset in parts.values()):
        if sizes is not None and hasattr(dataset, "group_clouds"):
            dataset.group_clouds(num_group=sizes.num_group, group_size=sizes.group_size)


def _check_splits(wanted: Iterable[str], built: Datasets) -> None:
    there = {split for parts in built.values() for split in parts}
    for split in wanted:
        if split not in there:
            raise ConfigError(f"run asks for the split '{split}', which no dataset has. Splits there: {listed(there)}.")


def count_samples(rows: list[Row], *, path: Path, unreadable: str) -> dict[str, int]:
    """num_samples and num_unreadable of result rows; a warning says what becomes of those that could not be read."""
    lost = sum(not row["readable"] for row in rows)
    if lost:
        logger.warning("%s: %d of %d samples could not be read; they %s", path, lost, len(rows), unreadable)
    return {"num_samples": len(rows), "num_unreadable": lost}
