"""What is looked at before any long work starts."""

from __future__ import annotations

from typing import Any

from lavis.common.config import ConfigError
from lavis.common.errors import listed, unknown
from lavis.common.paths import resolve
from lavis.common.registry import registry
from lavis.common.wandb_run import wandb_settings
from lavis.runners.attempts import is_later_attempt
from lavis.runners.saving import SaveFreq
from lavis.runners.sharding import SHARDS
from lavis.runners.step import AMP_DTYPES

CHOICES = {
    "task_order": ("sequential", "round_robin", "sampled"),
    "lr_schedule": ("per_task", "global"),
    "inference_method": ("generate", "rank"),
    "shard": SHARDS,
}
AT_LEAST_ONE = ("batch_size_train", "batch_size_eval", "accum_grad_iters", "log_freq", "val_freq", "max_epoch", "k_test")
AT_LEAST_ONE_OR_NULL = ("max_iters", "iters_per_inner_epoch", "keep_last")


def check_run(run_cfg: Any) -> None:
    """ConfigError for the first value of ``run`` that cannot work, naming what is accepted."""
    runner = registry.get_runner_class(run_cfg.runner)
    registry.get_task_class(run_cfg.task)
    registry.get_lr_scheduler_class(run_cfg.lr_sched)
    for key, accepted in CHOICES.items():
        if run_cfg[key] not in accepted:
            raise ConfigError(unknown(f"run.{key}", run_cfg[key], accepted))
    if run_cfg.amp_dtype is not None and run_cfg.amp_dtype not in AMP_DTYPES:
        raise ConfigError(unknown("run.amp_dtype", run_cfg.amp_dtype, AMP_DTYPES))
    for key in AT_LEAST_ONE + AT_LEAST_ONE_OR_NULL:
        value = run_cfg[key]
        if value is None and key in AT_LEAST_ONE_OR_NULL:
            continue
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"run.{key} must be a whole number of at least 1, not {value!r}")
    for key, value in (run_cfg.batch_size_train_per_task or {}).items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"run.batch_size_train_per_task.{key} must be a whole number of at least 1, not {value!r}")
    clip = run_cfg.grad_clip_norm
    if clip is not None and (isinstance(clip, (str, bool)) or clip <= 0):
        raise ConfigError(f"run.grad_clip_norm must be a number above 0, or null for no clipping, not {clip!r}")
    limit = run_cfg.feature_cache_gb
    if limit is None or limit <= 0:
        raise ConfigError(f"run.feature_cache_gb must be a number of GB above 0, not {limit!r}")
    if run_cfg.num_workers < 0:
        raise ConfigError(f"run.num_workers must be 0 or more, not {run_cfg.num_workers}")
    skipped = run_cfg.max_skipped_steps
    if skipped is not None and (not isinstance(skipped, int) or skipped < 0):
        raise ConfigError(f"run.max_skipped_steps must be a whole number of at least 0, or null for no limit, not {skipped!r}")
    gallery = run_cfg.gallery
    if isinstance(gallery, bool) or not isinstance(gallery, int) or gallery < 0:
        raise ConfigError(f"run.gallery must be a whole number of samples, or 0 for no gallery, not {gallery!r}")
    if run_cfg.shard != "none" and run_cfg.inference_method == "rank":
        raise ConfigError(f"run.inference_method is rank, which no model in shards can do (run.shard is {run_cfg.shard})")
    SaveFreq.parse(run_cfg.save_freq)
    wandb_settings(run_cfg.wandb)
    if hasattr(runner, "check_run"):
        runner.check_run(run_cfg)
    resume = run_cfg.resume_ckpt_path
    if resume and resume != "auto" and not resolve(resume).is_file() and not is_later_attempt(resolve(run_cfg.output_dir)):
        raise ConfigError(f"run.resume_ckpt_path: no file {resume}; accepted: a checkpoint of ours, auto, or null")


def check_model(model_cfg: Any) -> None:
    """What the model itself can say of its configuration before anything is read or built."""
    check = getattr(registry.get_model_class(model_cfg.arch), "check_config", None)
    if check is not None:
        check(model_cfg)


def check_weight_sources(model: Any, *, allow_random_init: bool, for_evaluation: bool = False) -> None:
    """Refuse a model of which some part was loaded from nowhere (for evaluation: also what training would have
    learned), unless ``model.allow_random_init`` says so."""
    parts = list(model.random_parts(for_evaluation=for_evaluation)) if hasattr(model, "random_parts") else []
    if parts and not allow_random_init:
        raise ConfigError(
            f"these parts of the model were loaded from nowhere and hold random weights: {listed(parts)}. Name their files "
            "in the model configuration, or set model.allow_random_init: true"
        )
