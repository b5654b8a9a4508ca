"""Captions of images, point clouds and regions of either, scored against COCO-style ground truth."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from lavis.common import dist_utils
from lavis.common.errors import ConfigError, listed, unknown
from lavis.common.paths import resolve
from lavis.common.registry import registry
from lavis.evaluation.captions.caption import EXTRA, METRICS, build_ground_truth, metric_versions, score_captions
from lavis.evaluation.captions.ground_truth import read_references, some
from lavis.evaluation.captions.java_metrics import package_version
from lavis.evaluation.captions.score_file import write_scores
from lavis.report.gallery import Gallery, write_gallery
from lavis.report.run_summary import write_summary
from lavis.tasks.base_task import BaseTask, Row, batch_length, count_samples, gather_rows, save_result

logger = logging.getLogger(__name__)

# generate's keyword -> the key of `run` that holds it
DECODING = {
    "num_beams": "num_beams",
    "max_length": "max_len",
    "min_length": "min_len",
    "top_p": "top_p",
    "repetition_penalty": "repetition_penalty",
    "length_penalty": "length_penalty",
    "temperature": "temperature",
}


@registry.register_task("captioning")
@registry.register_task("image_captioning_coco")
@registry.register_task("imageregion_captioning_refcoco")
@registry.register_task("pointcloud_captioning_objaverse")
@registry.register_task("pointcloudregion_captioning_refscannet")
class CaptionTask(BaseTask):
    """One class for every captioning: what an id stands for, an image, a cloud or a region, the dataset decides."""

    def __init__(self, run_cfg: DictConfig) -> None:
        super().__init__(run_cfg)
        for name in run_cfg.caption_metrics:
            if name not in (*METRICS, *EXTRA):
                raise ConfigError(unknown("run.caption_metrics", name, (*METRICS, *EXTRA)))
        if run_cfg.bootstrap_resamples < 0:
            raise ConfigError(
                f"run.bootstrap_resamples is {run_cfg.bootstrap_resamples}; accepted: 1 or more, 0 for no intervals"
            )

    @property
    def decoding(self) -> dict[str, Any]:
        """What captions are generated with: generate's keywords."""
        return {"use_nucleus_sampling": False} | {name: self.run_cfg[key] for name, key in DECODING.items()}

    def before_evaluation(self, *, model: Any, dataset: Any) -> None:
        """Looks whether ``run.annotation_file``, where it is there, lists every sample: at the end it would be too late."""
        super().before_evaluation(model=model, dataset=dataset)
        named = self.named_ground_truth(dataset) if self.run_cfg.report_metric and dist_utils.is_main_process() else None
        if named is None or not named.is_file():
            return
        try:
            known = {str(key) for key in read_references(named)}
        except ValueError as error:
            raise ConfigError(f"run.annotation_file: {error}") from error
        strangers = [row["image_id"] for row in dataset.rows if str(row["image_id"]) not in known]
        if strangers:
            counts = f"{len(strangers)} of the {len(dataset.rows)} ids of {dataset.name}, {dataset.split}"
            raise ConfigError(f"run.annotation_file {named} does not list {counts}: {some(strangers)}")

    @torch.no_grad()
    def valid_step(self, model: Any, samples: Mapping[str, Any]) -> list[Row]:
        """A row {"caption", "image_id", "readable"} per sample; one that could not be read is captioned by
        ""."""
        prompt = {} if self.run_cfg.prompt is None else {"prompt": self.run_cfg.prompt}
        captions = model.generate({**samples, **prompt}, **self.decoding)
        readable = samples.get("readable") or [True] * batch_length(samples)
        return [
            {"caption": caption if good else "", "image_id": image_id, "readable": bool(good)}
            for caption, image_id, good in zip(captions, _ids(samples["image_id"]), readable, strict=True)
        ]

    def after_evaluation(
        self, rows: list[Row], *, split_name: str, epoch: int | str, result_dir: Path, dataset: Any
    ) -> dict[str, Any]:
        """Writes ``<split>_epoch<e>.json`` and scores it; counts samples, and those that could not be read.

        With scores, ``<split>_epoch<e>_scores.json`` holds what they were made of. Of rows with one id, as a dataset gives
        that lists an image twice, the first is kept; the others are counted as num_duplicates where there are any.
        """
        gathered = gather_rows(rows)
        first: dict[Any, Row] = {}
        for row in gathered:
            first.setdefault(row["image_id"], row)
        rows = list(first.values())
        kept = [{"caption": row["caption"], "image_id": row["image_id"]} for row in rows]
        path = save_result(kept, result_dir=result_dir, name=f"{split_name}_epoch{epoch}")
        counts = count_samples(rows, path=path, unreadable="score as empty")
        if len(gathered) > len(rows):
            counts["num_duplicates"] = len(gathered) - len(rows)
            logger.warning("%s: %d rows repeat an image_id; the first of each is scored", path, counts["num_duplicates"])
        if not self.run_cfg.report_metric:
            return {**counts, "agg_metrics": 0.0}
        metrics: dict[str, Any] = {}
        if dist_utils.is_main_process():
            truth = self.ground_truth(dataset, result_dir=result_dir, split_name=split_name)
            metrics = self.score(truth, kept, path=path, dataset=getattr(dataset, "name", ""))
            metrics.setdefault("agg_metrics", sum(metrics.get(name, 0.0) for name in ("CIDEr", "Bleu_4")))
        return {**dist_utils.broadcast_object(metrics), **counts}

    def score(self, truth: Path, results: list[Row], *, path: Path, dataset: str) -> dict[str, Any]:
        """Metrics of result rows; beside their file `path` what the metrics were made of."""
        run = self.run_cfg
        names = tuple(run.caption_metrics)
        scores = score_captions(
            truth,
            results,
            metrics=names,
            resamples=run.bootstrap_resamples,
            seed=int(run.seed),
            java_timeout=60.0 * run.metric_timeout_minutes,
        )
        settings = {"results": path.name, "dataset": dataset, "decoding": self.decoding, "prompt": run.prompt}
        computed = set(names) - set(scores.metrics.get("unavailable", ()))
        versions = metric_versions(computed) | {name: package_version(name) for name in ("torch", "transformers")}
        beside = path.with_name(f"{path.stem}_scores.json")
        write_scores(scores, beside, ground_truth=truth, settings=settings, versions=versions)
        logger.info("scores of each id, tokens, versions and settings: %s", beside)
        return dict(scores.metrics)

    def illustrate(self, *, split_name: str, epoch: int | str, output_dir: Path, dataset: Any) -> None:
        """``result/<split>_epoch<e>_gallery.html`` with ``run.gallery`` of the samples, and ``summary.html`` of the whole run."""
        count = int(self.run_cfg.gallery)
        if not count:
            return
        name = f"{split_name}_epoch{epoch}"
        if self.run_cfg.report_metric:
            with _costing_nothing(f"gallery of {name}"):
                scores, page = (Path(output_dir) / "result" / f"{name}_{kind}" for kind in ("scores.json", "gallery.html"))
                made = write_gallery(scores, page, dataset=dataset, count=count, name=f"{split_name}, epoch {epoch}")
                _tell_gallery(made)
        else:
            logger.warning("no gallery of %s: run.report_metric is false, and samples are shown by their scores", name)
        with _costing_nothing("summary of the run"):
            logger.info("summary of the run: %s", write_summary(output_dir))

    def named_ground_truth(self, dataset: Any) -> Path | None:
        """``run.annotation_file`` for a dataset (it is a path, or one per dataset name); None where it is null."""
        named = self.run_cfg.annotation_file
        if named is not None and not isinstance(named, str):
            if dataset.name not in named:
                raise ConfigError(f"run.annotation_file names {listed(named)}, but not dataset {dataset.name}")
            named = named[dataset.name]
        return resolve(named) if named else None

    def ground_truth(self, dataset: Any, *, result_dir: Path, split_name: str) -> Path:
        """``run.annotation_file``, made from the dataset's annotation where there is no such file; null:
        ``<split>_ground_truth.json`` among the results, made anew."""
        named = self.named_ground_truth(dataset)
        path = named or Path(result_dir) / f"{split_name}_ground_truth.json"
        if named is None or not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            build_ground_truth(dataset.references(), path)
            logger.info("ground truth of dataset %s written to %s", dataset.name, path)
        return path


@contextlib.contextmanager
def _costing_nothing(what: str) -> Iterator[None]:
    """Whatever goes wrong in the block is logged: the evaluation is done, and its numbers are written."""
    try:
        yield
    except Exception:
        logger.warning("the %s could not be made; the metrics are not concerned", what, exc_info=True)


def _tell_gallery(made: Gallery) -> None:
    logger.info("gallery of %d of %d samples: %s", made.shown, made.total, made.path)
    if made.problems:
        first = "; ".join(made.problems[:3])
        logger.warning("%s: %d of %d samples have no picture: %s", made.path, len(made.problems), made.shown, first)


def _ids(ids: Any) -> list[Any]:
    return ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
