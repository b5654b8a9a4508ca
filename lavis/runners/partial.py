"""Finished batches of an evaluation that was stopped, kept for the next attempt.

Each process appends a line {"batch": number, "rows": [...]} per finished batch to a file of its own in
`<output_dir>/result/partial/<name>_<key>/`. The key is a hash of what decides the rows: the trainable weights and the files the
frozen ones came from, the configuration but for what changes no row, the dataset by its rows and files, the versions of this
package and of torch. What pictures and clouds hold is not looked at. The folder is removed when all evaluations of a call are
done.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from lavis import __version__
from lavis.common import dist_utils
from lavis.common.checkpoint import content_hash
from lavis.tasks.base_task import Row

logger = logging.getLogger(__name__)

# keys of `run` that change no row: where and when things run, what training does, how rows are scored
WITHOUT_EFFECT = {
    "runner", "evaluate", "train_splits", "valid_splits", "test_splits", "output_dir", "resume_ckpt_path",
    "max_epoch", "max_iters", "iters_per_inner_epoch", "num_workers", "use_dist_eval_sampler", "reuse_partial_results",
    "log_freq", "save_freq", "val_freq", "save_last", "keep_last", "tensorboard", "wandb", "max_skipped_steps",
    "group_by_image", "feature_cache", "feature_cache_gb",
    "distributed", "world_size", "dist_url", "dist_timeout_minutes", "annotation_file", "report_metric", "caption_metrics",
    "gallery",
}  # fmt: skip


class PartialResults:
    """The finished batches of one evaluation; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, *, name: str) -> None:
        self.folder, self.name = folder, name
        self.file = f"rank{dist_utils.get_rank()}_{uuid.uuid4().hex[:12]}.jsonl"  # another in every attempt, after torn lines

    def read(self, *, total: int) -> dict[int, list[Row]]:
        """Rows by number of batch, of `total` batches, as earlier attempts left them, on every process. Collective."""
        done: dict[int, list[Row]] = {}
        if self.folder is not None and dist_utils.is_main_process():
            lines = [line for path in sorted(self.folder.glob("*.jsonl")) for line in path.read_bytes().split(b"\n") if line]
            for line in lines:
                with contextlib.suppress(ValueError):  # a torn line
                    found = json.loads(line)
                    if found["batch"] < total:
                        done.setdefault(found["batch"], found["rows"])
            if done:
                logger.info("%s: %d of %d batches were finished by an evaluation that was stopped", self.name, len(done), total)
        return dist_utils.broadcast_object(done)

    def add(self, batch: int, rows: list[Row]) -> None:
        """Keep the rows of a finished batch. TypeError for a row that JSON would not give back as it is."""
        if self.folder is None:
            return
        for row in rows:
            _check(row, "row")
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / self.file).open("a", encoding="ascii") as stream:
            stream.write(json.dumps({"batch": batch, "rows": rows}) + "\n")


def remove(kept: Iterable[PartialResults]) -> None:
    """Remove what was kept of evaluations that are done, on every process, as their disks may not be shared. Collective."""
    dist_utils.barrier()  # it was needed until everything was written
    for partial in kept:
        if partial.folder is not None:
            shutil.rmtree(partial.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # there are others, of evaluations that were stopped
                partial.folder.parent.rmdir()


def _check(value: Any, where: str) -> None:
    """TypeError for what JSON would change or refuse."""
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{where} has the key {key!r}; {_ACCEPTED}")
            _check(item, f"{where}[{key!r}]")
    elif type(value) is list:
        for item in value:
            _check(item, f"{where}[]")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise TypeError(f"{where} is a {type(value).__name__}; {_ACCEPTED}")


_ACCEPTED = (
    "accepted in the rows of a task: dicts with texts as keys, lists, texts, Python numbers, true, false and null "
    "(a task whose rows hold more sets rows_are_json = False)"
)


def results_key(
    *, model: Any, dataset: Any, run_cfg: Any, settings: Mapping[str, Any], device: torch.device, split_name: str
) -> str:
    """A hash of all that decides the rows of an evaluation, the same on every process. Collective.

    `settings`: the configuration of model and datasets. The trainable weights are read once, by the main process.
    """
    weights = model.trainable_state_dict()
    key = ""
    if dist_utils.is_main_process():
        run = OmegaConf.to_container(run_cfg, resolve=True)
        assert isinstance(run, dict)
        identity = dataset.identity() if hasattr(dataset, "identity") else {"name": getattr(dataset, "name", "")}
        bases = {part: base.get("sha256", "") for part, base in model.frozen_bases().items()}
        state = {
            "name": split_name,
            "weights": weights,
            "bases": bases,
            "run": {name: value for name, value in run.items() if name not in WITHOUT_EFFECT},
            "settings": dict(settings),
            "dataset": {**identity, "size": len(dataset)},
            "versions": [__version__, str(torch.__version__)],
            "device": device.type,
        }
        key = content_hash(state)[:16]
    return dist_utils.broadcast_object(key)
