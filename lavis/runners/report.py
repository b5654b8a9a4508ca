"""What training writes down: a JSON line and a console line every log_freq steps, a summary per epoch and per
run.

Everything that depends on the clock stands in one object, ``timing``; the rest of log.txt is the same
whenever the same run is repeated or resumed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from lavis.common import dist_utils
from lavis.common.logger import JsonlLog, Scalars, clock
from lavis.common.wandb_run import WandbRun, wandb_settings
from lavis.runners.progress import Progress
from lavis.runners.timing import Stopwatch

logger = logging.getLogger(__name__)


class Report:
    """log.txt, the console, TensorBoard and Weights & Biases of a training run. Its methods are collective; the
    main process writes."""

    def __init__(self, output_dir: Path, *, run_cfg: Any, device: torch.device) -> None:
        main = dist_utils.is_main_process()
        self.log = JsonlLog(output_dir / "log.txt", enabled=main)
        self.stopwatch = Stopwatch(device)
        self._folder, self._run_cfg = output_dir, run_cfg
        self._scalars: list[Scalars | WandbRun] = []

    def begin(self, *, step: int, log_lines: int | None) -> None:
        """Start a new log (an old one is set aside), or go on after the first ``log_lines`` lines of the old
        one."""
        if log_lines is None:
            self.log.set_aside()
        else:
            self.log.truncate(log_lines)
        if dist_utils.is_main_process():
            self._begin_scalars(step=step, resumed=log_lines is not None)
        self.stopwatch.begin_epoch()

    def _begin_scalars(self, *, step: int, resumed: bool) -> None:
        folder, run_cfg = self._folder, self._run_cfg
        wanted = bool(run_cfg.tensorboard)
        self._scalars = [Scalars(folder / "tensorboard", enabled=wanted, purge_step=step if step else None)]
        settings = wandb_settings(run_cfg.get("wandb"))
        if settings is not None:
            saved = folder / "config.yaml"  # the whole configuration, as launched
            config = OmegaConf.load(saved) if saved.is_file() else OmegaConf.create({"run": run_cfg})
            plain: Any = OmegaConf.to_container(config, resolve=True)
            self._scalars.append(WandbRun(folder, settings=settings, config=plain, resumed=resumed))

    def step(
        self,
        progress: Progress,
        *,
        key: str,
        losses: Mapping[str, torch.Tensor],
        lr: float,
        grad_norm: torch.Tensor | None,
        epoch_steps: int,
        steps_left: Mapping[str, float],
        pauses_left: int,
    ) -> None:
        """The line of one step; here, and only here, the host waits for the device. ``steps_left``: to the end of training, by
        key; ``pauses_left``: ends of epochs, with what is done there."""
        names = list(losses)
        values = torch.stack([losses[name].float() for name in names])
        means = (dist_utils.all_reduce_sum(values) / dist_utils.get_world_size()).tolist()
        numbers = dict(zip(names, means, strict=True))
        norm = None if grad_norm is None else float(grad_norm)
        timing = self.stopwatch.read(steps_left=steps_left, pauses_left=pauses_left)
        row = {"step": progress.step, "epoch": progress.epoch, "modality": key, **numbers, "lr": lr, "grad_norm": norm}
        self.log.write({**row, "timing": timing})
        self._write_scalars(
            {**{f"{key}/{name}": value for name, value in numbers.items()}, "lr": lr, "grad_norm": norm}
            | {f"timing/{name}": value for name, value in timing.items()},
            step=progress.step,
        )
        shown = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        where = f"epoch {progress.epoch} [{progress.step_in_epoch:>{len(str(epoch_steps))}}/{epoch_steps}] {key}"
        logger.info(
            "%s  %s  lr %.3g  grad %s | %.3f s/step, data %.0f %%, %.1f samples/s, eta %s, %.2f GB",
            where,
            shown,
            lr,
            "-" if norm is None else f"{norm:.3g}",
            timing["seconds_per_step"],
            100 * timing["data_wait"],
            timing["samples_per_second"],
            clock(timing["eta_seconds"]),
            timing["max_memory_gb"],
        )

    def skipped_step(self, row: Mapping[str, Any], *, path: Path) -> None:
        """The line of an update that was left out."""
        self.log.write(row)
        if dist_utils.is_main_process():
            logger.warning(
                "step %d: a loss or gradient was not finite; the update was left out (number %d of the run; samples: %s)",
                row["step"],
                row["skipped_step"],
                path,
            )

    def epoch(self, progress: Progress, *, seconds: float, feature_cache: Mapping[str, int] | None = None) -> None:
        """The line that ends an epoch: mean losses per modality, rows that were skipped; what the feature cache did belongs to
        its timing, as it depends on what other runs had left there."""
        means, skipped = progress.losses.means(), progress.skipped_in_epoch.summary()
        row = {"epoch": progress.epoch, "steps": progress.step_in_epoch, "mean": means, "skipped": skipped}
        cached = {"feature_cache": dict(feature_cache)} if feature_cache else {}
        self.log.write({**row, "timing": {"seconds": round(seconds, 2), **cached}})
        for key, losses in means.items():
            shown = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            logger.info("epoch %d mean, %s: %s (%s)", progress.epoch, key, shown, clock(seconds))
        self._tell_skipped(f"epoch {progress.epoch}", skipped)

    def evaluation(self, metrics: Mapping[str, Any], *, progress: Progress, split: str, dataset: str) -> None:
        """The line of one evaluation during training."""
        self.log.write({"epoch": progress.epoch, "split": split, "dataset": dataset, **metrics})
        self._write_scalars({f"{dataset}/{split}/{name}": value for name, value in metrics.items()}, step=progress.step)

    def finish(self, progress: Progress, *, dropped: Mapping[str, int]) -> None:
        """The last line: steps in all, every row skipped in the run, rows left out when the files were
        read."""
        skipped = progress.skipped_in_run.summary()
        self.log.write({"finished": True, "steps": progress.step, "skipped": skipped, "dropped_at_reading": dict(dropped)})
        self._tell_skipped("whole run", skipped)
        for name, count in dropped.items():
            if count:
                logger.warning("%s: %d rows were left out when its files were read", name, count)
        for scalars in self._scalars:
            scalars.close()

    def _write_scalars(self, scalars: Mapping[str, Any], *, step: int) -> None:
        for writer in self._scalars:
            writer.write(scalars, step=step)

    def _tell_skipped(self, when: str, skipped: Mapping[str, Mapping[str, Any]]) -> None:
        if dist_utils.is_main_process():
            for reason, entry in skipped.items():
                logger.warning("%s: skipped %d x %s: %s", when, entry["count"], reason, ", ".join(entry["first"]))
