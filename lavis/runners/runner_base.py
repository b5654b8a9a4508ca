"""LAVIS' epoch runner, and the loop that all runners share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lavis.common import dist_utils
from lavis.common.checkpoint import load_checkpoint_file
from lavis.common.config import Config, ConfigError
from lavis.common.errors import listed
from lavis.common.optims import build_lr_scheduler, build_optimizer
from lavis.common.paths import resolve
from lavis.common.registry import registry
from lavis.common.seeding import rng_state, set_rng_state
from lavis.datasets.loaders import MixedLoader, TaskLoader
from lavis.datasets.wrappers.joined import join
from lavis.runners import signals
from lavis.runners.attempts import Attempt
from lavis.runners.evaluation import evaluate_dataset, evaluations
from lavis.runners.faults import SkippedSteps, TooManySkippedSteps
from lavis.runners.features import counts_of, finish_batch, open_feature_cache
from lavis.runners.partial import PartialResults, remove
from lavis.runners.progress import Progress
from lavis.runners.report import Report
from lavis.runners.run_config import save_config
from lavis.runners.saving import Saver, find_resume, restore_weights
from lavis.runners.sharding import place
from lavis.runners.step import TrainStep, amp_dtype, to_device
from lavis.tasks.base_task import BaseTask, Datasets, batch_length


@registry.register_runner("runner_base")
class RunnerBase:
    """``max_epoch`` epochs, each one pass over the training data; one best checkpoint over all evaluations.

    Datasets of one modality are joined; each modality is a task of its own in the mixture
    (``run.task_order``). A runner that differs overrides how much an epoch is (``num_epochs``,
    ``epoch_batches``), the batch size of a task (``batch_size``), or which evaluations share a best
    checkpoint (``best_name``).
    """

    def __init__(self, cfg: Config, *, task: BaseTask, model: Any, datasets: Datasets) -> None:
        self.cfg, self.run_cfg = cfg, cfg.run_cfg
        self.task, self.datasets = task, datasets
        self.device = dist_utils.pick_device(self.run_cfg.device)
        autocast = amp_dtype(self.run_cfg, self.device)
        self.model = place(model, shard=self.run_cfg.shard, device=self.device, autocast=autocast)
        self.features = open_feature_cache(self.run_cfg, model=self.model, datasets=datasets, device=self.device)
        self.output_dir: Path = resolve(self.run_cfg.output_dir)
        self.progress = Progress()
        self.save_due = False
        self.kept: list[PartialResults] = []  # of evaluations that are done, until those that go with them are

    # What a runner may do otherwise

    @property
    def num_epochs(self) -> int:
        return int(self.run_cfg.max_epoch)

    def epoch_batches(self, epoch: int) -> tuple[Iterator[tuple[str, Any]], int]:
        """The (key, batch) pairs left of an epoch, and how many they are."""
        batches = self.loader.epoch(epoch)
        return batches, self.loader.remaining

    def epoch_length(self) -> int:
        """Batches of a whole epoch."""
        return len(self.loader)

    def steps_left(self, *, of_epoch: int) -> int:
        """Batches to the end of training, ``of_epoch`` of them in the present epoch."""
        return of_epoch + (self.num_epochs - self.progress.epoch - 1) * self.epoch_length()

    def batch_size(self, modality: str) -> int:
        return int(self.run_cfg.batch_size_train)

    def best_name(self, dataset: Any) -> str:
        """Evaluations with one name are averaged, and choose ``checkpoint_<name>.pth``."""
        return "best"

    # Training

    def train(self) -> None:
        """Train, evaluating valid_splits on the way, then evaluate test_splits with the best weights."""
        if self.run_cfg.evaluate:
            self.evaluate(config_name="config")
            return
        self.setup_training()
        self.task.before_training(model=self.model, datasets=self.datasets)
        with signals.listening():
            for epoch in range(self.progress.epoch, self.num_epochs):
                self.train_epoch(epoch)
                self.end_epoch(epoch)
            self.report.finish(self.progress, dropped=self._dropped_rows())
            self.test_best()
        self.saver.check()

    def end_epoch(self, epoch: int) -> None:
        """Evaluate and save. What was learned is saved before a long evaluation, under a name that goes when the next
        checkpoint is written that is no best one: until then a run that is killed begins here again."""
        if self.validation_due(epoch):
            step = f"checkpoint_{epoch}_step{self.progress.step}"
            if self.save(step, epoch=epoch):
                self.saver.passing = self.output_dir / f"{step}.pth"
        seconds = time.perf_counter() - self._epoch_start
        self.report.epoch(self.progress, seconds=seconds, feature_cache=counts_of(self.features, f"epoch {epoch}"))
        before = dict(self.progress.best)
        improved = self.validate(epoch) if self.validation_due(epoch) else []
        self.progress.next_epoch()
        for name in improved:
            if not self.save(f"checkpoint_{name}", epoch=epoch):  # what counts as best is what can be loaded
                self.progress.best.pop(name)
                self.progress.best.update({name: before[name]} if name in before else {})
        if self.save_due or self.saver.due_after_epoch(epoch + 1, is_last=epoch + 1 == self.num_epochs):
            self.save_due = False
            self.save(f"checkpoint_{epoch}", epoch=epoch)

    def setup_training(self) -> None:
        """Loaders, optimizer, schedule, logs; then where ``run.resume_ckpt_path`` left off, if it says so."""
        run = self.run_cfg
        self.accum, self.log_freq, self.lr_schedule = int(run.accum_grad_iters), int(run.log_freq), str(run.lr_schedule)
        self.saver = Saver(self.output_dir, run_cfg=run)
        attempt = Attempt(run.resume_ckpt_path, self.output_dir)
        resumed = attempt.state
        try:
            self.loader = self.build_loader()
        except ValueError as error:  # a dataset smaller than the number of processes, for one
            raise ConfigError(f"the training data cannot be loaded: {error}") from error
        dist_utils.broadcast_tensors(param for param in self.model.parameters() if param.requires_grad)
        optimizer = build_optimizer(self.model, run)
        self.step = TrainStep(optimizer, run_cfg=run, device=self.device)
        self.lr_scheduler = build_lr_scheduler(run, optimizer, max_epoch=self.num_epochs)
        self.report = Report(self.output_dir, run_cfg=run, device=self.device)
        if resumed is not None:
            self.load_state_dict(resumed)
        attempt.begin()
        save_config(self.cfg, self.output_dir / "config.yaml")
        self.report.begin(step=self.progress.step, log_lines=None if resumed is None else resumed["log_lines"])
        limit = run.max_skipped_steps
        self.skipped = SkippedSteps(self.output_dir, self.progress, limit=None if limit is None else int(limit))
        self.skipped.begin(resumed=resumed is not None)
        self.saver.remove_leftovers()

    def build_loader(self) -> MixedLoader:
        """One TaskLoader per modality of the train splits' datasets."""
        groups: dict[str, list[Any]] = {}
        for _, _, _, dataset in evaluations(self.datasets, self.run_cfg.train_splits):
            groups.setdefault(dataset.modality, []).append(dataset)
        if not groups:
            raise ConfigError(f"no dataset has a split of run.train_splits ({listed(self.run_cfg.train_splits)})")
        loaders = {
            modality: TaskLoader(
                join(parts, grouped=bool(self.run_cfg.group_by_image)),
                batch_size=self.batch_size(modality),
                seed=int(self.run_cfg.seed),
                num_workers=int(self.run_cfg.num_workers),
                rank=dist_utils.get_rank(),
                world_size=dist_utils.get_world_size(),
                drop_last=bool(self.run_cfg.drop_last),
            )
            for modality, parts in groups.items()
        }
        return MixedLoader(loaders, seed=int(self.run_cfg.seed), order=self.run_cfg.task_order)

    def train_epoch(self, epoch: int) -> None:
        """What is left of an epoch, step by step."""
        self._epoch_start = time.perf_counter()
        self.model.train()
        batches, left = self.epoch_batches(epoch)
        total = self.progress.step_in_epoch + left
        self.report.stopwatch.begin_epoch()
        for key, samples in self.report.stopwatch.iterate(batches):
            self.train_step(key, samples, total=total)
        self.tell_skipped()

    def train_step(self, key: str, samples: Mapping[str, Any], *, total: int) -> None:
        """One batch; ``total``: how many the epoch has. The last update of an epoch may stand on fewer
        batches."""
        progress = self.progress
        done, accum = progress.step_in_epoch, self.accum
        window = min(accum, total - done + done % accum)
        update = (done + 1) % accum == 0 or done + 1 == total
        schedule_step = progress.schedule_step(key, self.lr_schedule)
        lr = self.lr_scheduler.step(progress.epoch, schedule_step, whole_run=self.lr_schedule == "global")
        batch = to_device(samples, self.device)
        self.skipped.add_batch(key, samples)
        losses = self.step(
            lambda: self.task.train_step(self.model, batch),
            step=progress.step,
            window=window,
            update=update,
            stop=signals.received,
        )
        finish_batch(self.features, samples)
        self.tell_skipped()  # of the update before
        progress.advance(key, losses, samples.get("skipped") or [])
        if update:
            self.skipped.watch(self.step.left_out, step=progress.step, epoch=progress.epoch)
        self.report.stopwatch.count(batch_length(samples))
        is_log_step = progress.step == 1 or progress.step % self.log_freq == 0 or done + 1 == total
        if is_log_step:
            self.report.step(
                progress,
                key=key,
                losses=losses,
                lr=lr,
                grad_norm=self.step.grad_norm,
                epoch_steps=total,
                steps_left=self.loader.upcoming(self.steps_left(of_epoch=total - done - 1)),
                pauses_left=self.num_epochs - progress.epoch,
            )
        # saved at the end of an update (between its batches gradients would be lost); the end of an epoch is train's
        self.save_due |= self.saver.due_after_step(progress.step, is_log_step=is_log_step)
        self.save_step_if_due(update=update, is_last=done + 1 == total)

    def save_step_if_due(self, *, update: bool, is_last: bool) -> None:
        """Save within an epoch where it is time, and where the run ends here: a process was asked to stop, or too many
        updates were left out."""
        stop, too_many = update and self.step.stop_agreed, update and self.skipped.too_many
        if not (stop or too_many or (self.save_due and update and not is_last)):
            return
        self.tell_skipped()
        self.save_due = False
        self.save(f"checkpoint_{self.progress.epoch}_step{self.progress.step}", epoch=self.progress.epoch)
        if too_many:
            raise TooManySkippedSteps(
                f"{self.progress.skipped_updates} updates had a loss or gradient that is not finite, more than "
                f"run.max_skipped_steps ({self.skipped.limit}) allows; {self.skipped.log.path} names their samples"
            )
        if stop:
            self.saver.check()
            raise signals.Stopped(signals.received() or "another process was asked to stop")

    def tell_skipped(self) -> None:
        """The line of the last update, if it was left out and has not been told."""
        row = self.skipped.settle()
        if row is not None:
            self.report.skipped_step(row, path=self.skipped.log.path)

    # Evaluation

    def validation_due(self, epoch: int) -> bool:
        """Every val_freq epochs and after the last, where there is something to validate on."""
        due = (epoch + 1) % int(self.run_cfg.val_freq) == 0 or epoch + 1 == self.num_epochs
        return due and bool(self.run_cfg.valid_splits)

    def validate(self, epoch: int) -> list[str]:
        """Evaluate valid_splits; returns the names of best checkpoints that the present weights have earned. The first
        evaluation always does, whatever its sign."""
        scores: dict[str, list[float]] = {}
        for name, split, dataset_name, dataset in evaluations(self.datasets, self.run_cfg.valid_splits):
            metrics = self.evaluate_one(dataset, name=name, epoch=epoch)
            scores.setdefault(self.best_name(dataset), []).append(float(metrics["agg_metrics"]))
            self.report.evaluation(metrics, progress=self.progress, split=split, dataset=dataset_name)
        self.remove_kept()
        means = {name: sum(values) / len(values) for name, values in scores.items()}
        best = self.progress.best
        improved = [name for name, value in means.items() if name not in best or value > best[name]["value"]]
        best.update({name: {"value": means[name], "epoch": epoch} for name in improved})
        return improved

    def evaluate(self, *, epoch: int | str = "best", config_name: str = "config_evaluate") -> dict[str, dict[str, Any]]:
        """Evaluate test_splits with the weights the model has (of ``run.resume_ckpt_path``, if set); the
        result files are named by ``epoch``. Returns metrics by result name."""
        if not self.run_cfg.test_splits:
            raise ConfigError("run.test_splits is empty: nothing to evaluate")
        state = find_resume(self.run_cfg.resume_ckpt_path, self.output_dir)
        if state is not None:
            restore_weights(self.model, state)
        save_config(self.cfg, self.output_dir / f"{config_name}.yaml")
        metrics = {
            name: self.evaluate_one(dataset, name=name, epoch=epoch)
            for name, _, _, dataset in evaluations(self.datasets, self.run_cfg.test_splits)
        }
        self.remove_kept()
        return metrics

    def test_best(self) -> None:
        """Evaluate test_splits after training: each dataset with the best weights of its task, or the last
        ones where nothing was validated."""
        loaded: str | None = None
        for name, _, _, dataset in evaluations(self.datasets, self.run_cfg.test_splits):
            best = self.best_name(dataset)
            if best in self.progress.best and best != loaded:
                path = self.output_dir / f"checkpoint_{best}.pth"
                state = load_checkpoint_file(path) if dist_utils.is_main_process() else {}
                restore_weights(self.model, dist_utils.broadcast_object(state))
                loaded = best
            epoch = "best" if best in self.progress.best else self.num_epochs - 1
            self.evaluate_one(dataset, name=name, epoch=epoch)
        self.remove_kept()

    def remove_kept(self) -> None:
        remove(self.kept)
        self.kept.clear()

    def evaluate_one(self, dataset: Any, *, name: str, epoch: int | str) -> dict[str, Any]:
        config = self.cfg.to_dict()
        return evaluate_dataset(
            dataset,
            task=self.task,
            model=self.model,
            run_cfg=self.run_cfg,
            device=self.device,
            name=name,
            epoch=epoch,
            output_dir=self.output_dir,
            settings={key: config[key] for key in ("model", "datasets")},
            kept=self.kept,
            features=self.features,
        )

    # Checkpoints

    def save(self, name: str, *, epoch: int) -> bool:
        """Write a checkpoint from which the run goes on exactly; ``epoch`` is the one its weights belong to. Returns whether
        it could be written."""
        return self.saver.save(self.state_dict(epoch=epoch), name)

    def state_dict(self, *, epoch: int) -> dict[str, Any]:
        """Everything a run needs to go on. Collective. LAVIS' keys (model, optimizer, config, scaler, epoch),
        and ours."""
        return {
            "model": self.model.trainable_state_dict(),
            **self.step.state_dict(),
            "config": self.cfg.to_dict(),
            "schedule": self.lr_scheduler.state_dict(),
            "epoch": epoch,
            "step": self.progress.step,
            "progress": self.progress.state_dict(),
            "loaders": self.loader.state_dict(),
            "rng": dist_utils.all_gather_objects(rng_state()),
            "frozen_bases": self.model.frozen_bases(),
            "log_lines": self.report.log.lines,
            "world_size": dist_utils.get_world_size(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, with any number of loader workers and of processes.
        ConfigError where it is of another model, other data or another mixture."""
        restore_weights(self.model, state)
        self.step.load_state_dict(state)
        self.lr_scheduler.load_state_dict(state.get("schedule") or {})
        try:
            self.loader.load_state_dict(state["loaders"])
        except ValueError as error:
            raise ConfigError(f"cannot resume: {error}") from error
        self.progress.load_state_dict(state["progress"], device=self.device)
        if len(state["rng"]) == dist_utils.get_world_size():
            set_rng_state(state["rng"][dist_utils.get_rank()])

    def _dropped_rows(self) -> dict[str, int]:
        """Rows left out when the training files were read, per dataset."""
        splits = self.run_cfg.train_splits
        found = evaluations(self.datasets, splits)
        return {f"{name}/{split}": len(getattr(dataset, "dropped", ())) for _, split, name, dataset in found}
