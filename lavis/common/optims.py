"""AdamW over a model's parameter groups, and LAVIS' three learning-rate schedules.

Source of the formulas: LAVIS (lavis/common/optims.py, BSD-3), whose values are kept by a test: a linear
warm-up by step within epoch 0, then one value per epoch. Where steps are counted over the whole run, the warm-up is ours.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch

from lavis.common.errors import ConfigError
from lavis.common.registry import registry

logger = logging.getLogger(__name__)


class LRScheduler:
    """``lr(epoch, step)`` is a pure function; ``step`` writes it to the optimizer's groups, times their
    ``lr_scale``.

    ``epoch`` counts from 0, of ``max_epoch``; ``step`` counts the steps of the epoch from 0. A negative
    ``warmup_lr`` means that the warm-up starts at ``init_lr``, that is: none.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None,
        *,
        max_epoch: int,
        init_lr: float,
        min_lr: float = 0.0,
        warmup_lr: float = -1.0,
        warmup_steps: int = 0,
        decay_rate: float = 1.0,
    ) -> None:
        self.optimizer = optimizer
        self.max_epoch = max_epoch
        self.init_lr, self.min_lr = init_lr, min_lr
        self.warmup_lr = warmup_lr if warmup_lr >= 0 else init_lr
        self.warmup_steps = warmup_steps
        self.decay_rate = decay_rate

    def lr(self, epoch: int, step: int, *, whole_run: bool = False) -> float:
        """The rate of a step; with ``whole_run``, ``step`` counts the steps of the run, and a warm-up that is longer than
        epoch 0 goes on in the next epochs, never above their own rates."""
        rate = self.after_warmup(epoch) if epoch > 0 else self.init_lr
        if step >= self.warmup_steps or (epoch > 0 and not whole_run):
            return rate
        return min(rate, self.warmup_lr + (self.init_lr - self.warmup_lr) * step / self.warmup_steps)

    def after_warmup(self, epoch: int) -> float:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What the rates follow from; where a run is in its schedule, its progress says."""
        constants = ("max_epoch", "init_lr", "min_lr", "warmup_lr", "warmup_steps", "decay_rate")
        return {"name": type(self).__name__, **{name: getattr(self, name) for name in constants}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The configuration decides; a warning says where it differs from that of the saved run."""
        mine = self.state_dict()
        if changed := [f"{name} {state[name]} -> {mine[name]}" for name in state if state[name] != mine.get(name)]:
            logger.warning("the learning rate follows another schedule than before: %s", ", ".join(changed))

    def step(self, cur_epoch: int, cur_step: int, *, whole_run: bool = False) -> float:
        """Set every group's learning rate; returns the unscaled one. The arguments are those of ``lr``."""
        value = self.lr(cur_epoch, cur_step, whole_run=whole_run)
        for group in self.optimizer.param_groups if self.optimizer is not None else ():
            group["lr"] = value * group.get("lr_scale", 1.0)
        return value


@registry.register_lr_scheduler("linear_warmup_cosine_lr")
class LinearWarmupCosineLR(LRScheduler):
    """Half a cosine from init_lr at epoch 0 to min_lr at max_epoch."""

    def after_warmup(self, epoch: int) -> float:
        return (self.init_lr - self.min_lr) * 0.5 * (1.0 + math.cos(math.pi * epoch / self.max_epoch)) + self.min_lr


@registry.register_lr_scheduler("linear_warmup_step_lr")
class LinearWarmupStepLR(LRScheduler):
    """init_lr times decay_rate per epoch, never under min_lr."""

    def after_warmup(self, epoch: int) -> float:
        return max(self.min_lr, self.init_lr * self.decay_rate**epoch)


@registry.register_lr_scheduler("constant_lr")
class ConstantLR(LRScheduler):
    """init_lr throughout."""

    def after_warmup(self, epoch: int) -> float:
        return self.init_lr


def build_lr_scheduler(run_cfg: Any, optimizer: torch.optim.Optimizer, *, max_epoch: int) -> LRScheduler:
    """The schedule ``run.lr_sched`` names, from ``run``'s learning-rate keys."""
    return registry.get_lr_scheduler_class(run_cfg.lr_sched)(
        optimizer,
        max_epoch=max_epoch,
        init_lr=float(run_cfg.init_lr),
        min_lr=float(run_cfg.min_lr),
        warmup_lr=float(run_cfg.warmup_lr),
        warmup_steps=int(run_cfg.warmup_steps),
        decay_rate=float(run_cfg.lr_decay_rate),
    )


def build_optimizer(model: Any, run_cfg: Any) -> torch.optim.AdamW:
    """AdamW(0.9, beta2) over ``model.get_optimizer_params``.

    Raises ConfigError where nothing is trainable, and where a trainable parameter is in half precision (AdamW's moments would
    be too, and small updates would vanish): freeze that part, or give it float32.
    """
    for name, param in model.named_parameters():
        if param.requires_grad and param.dtype in (torch.float16, torch.bfloat16):
            kind = str(param.dtype).removeprefix("torch.")
            raise ConfigError(f"parameter {name} is trainable and {kind}; freeze that part or choose fp32 for it")
    scale = {} if run_cfg.lr_layer_decay == 1 else {"lr_scale": run_cfg.lr_layer_decay}
    groups = model.get_optimizer_params(weight_decay=float(run_cfg.weight_decay), **scale)
    if not any(group["params"] for group in groups):
        raise ConfigError("the model has no trainable parameter: every part is frozen")
    fused = all(param.is_cuda for group in groups for param in group["params"])
    return torch.optim.AdamW(groups, lr=float(run_cfg.init_lr), betas=(0.9, float(run_cfg.beta2)), fused=fused)
