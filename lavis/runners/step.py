"""One training step, for any task: seed, forward, backward, average over processes, clip, update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lavis.common import dist_utils
from lavis.common.config import ConfigError
from lavis.common.seeding import seed_step

AMP_DTYPES = {
    "fp16": torch.float16,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp32": torch.float32,
    "float32": torch.float32,
    "float": torch.float32,
}

MIN_LOSS_SCALE = 1.0  # an overflow under a smaller scale than this is not the scale's fault


def amp_dtype(run_cfg: Any, device: torch.device) -> torch.dtype:
    """What forward passes compute in; float32 means no autocast. On the CPU only where ``run.amp_dtype``
    names a type."""
    if not run_cfg.amp:
        return torch.float32
    if run_cfg.amp_dtype is not None:
        return AMP_DTYPES[run_cfg.amp_dtype]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def autocast(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass, in training and in evaluation; none for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


class TrainStep:
    """Steps of one optimizer. No value travels to the host: losses and norm stay tensors.

    An update whose gradient norm is not finite leaves weights and optimizer as they were, on every process: gradients are
    averaged before they are looked at, and a loss that is not finite makes its gradient so. ``left_out`` says it. Under a
    GradScaler an overflow lowers the scale and is no fault; there only what the scale does not explain is.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, run_cfg: Any, device: torch.device) -> None:
        self.optimizer, self.device, self.seed = optimizer, device, int(run_cfg.seed)
        self.dtype = amp_dtype(run_cfg, device)
        self.clip_norm = None if run_cfg.grad_clip_norm is None else float(run_cfg.grad_clip_norm)
        self.params = [param for group in optimizer.param_groups for param in group["params"]]
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and self.dtype == torch.float16)
        self.grad_norm: torch.Tensor | None = None  # of the last update, over all processes, before clipping
        self.left_out = torch.zeros((), dtype=torch.bool, device=device)  # whether the last update was no update
        self.stop_agreed = False  # whether some process wanted to stop at the last update

    def __call__(
        self, forward: Callable[[], Mapping[str, Any]], *, step: int, window: int, update: bool, stop: Callable[[], object] = bool
    ) -> dict[str, torch.Tensor]:
        """Take one batch; returns its losses, detached.

        ``step``: batches done so far, which with seed and rank decides every draw. ``window``: how many
        batches make up the update that this one belongs to (each counts 1 / window); ``update``: whether this
        is the last of them. ``stop``: asked at an update, whether this process wants to end the run; every
        process then has the same ``stop_agreed``.
        """
        seed_step(self.seed, step, dist_utils.get_rank())
        with autocast(self.dtype, self.device):
            losses = forward()
        loss = losses["loss"]
        if not loss.requires_grad:
            raise ConfigError("the loss depends on no trainable parameter: what this batch uses is frozen")
        self.scaler.scale(loss / window).backward()
        self._mark_if_not_finite(loss)
        if update:
            self._update(bool(stop()))
        return {name: torch.as_tensor(value).detach() for name, value in losses.items() if "loss" in name}

    @torch.no_grad()
    def _mark_if_not_finite(self, loss: torch.Tensor) -> None:
        """A loss that is not finite may have a finite gradient: put NaN into one element then, 0 otherwise."""
        grad = next((param.grad for param in self.params if param.grad is not None), None)
        if grad is not None:
            grad.view(-1)[0] += loss.detach() * 0

    def _update(self, stop: bool) -> None:
        self.stop_agreed = dist_utils.average_gradients(self.params, flag=stop)
        self.scaler.unscale_(self.optimizer)
        grads = [param.grad for param in self.params if param.grad is not None]
        self.grad_norm = torch.nn.utils.get_total_norm(grads)
        self.left_out = ~torch.isfinite(self.grad_norm)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.params, self.clip_norm, self.grad_norm)
        if self.scaler.is_enabled():
            self.left_out &= self.scaler._get_scale_async() < MIN_LOSS_SCALE  # type: ignore[operator]
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            apply_unless(self.left_out, self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "grad_norm": None if self.grad_norm is None else self.grad_norm.cpu(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """ConfigError where the optimizer's groups or sizes are others than when the state was saved."""
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError) as error:
            raise ConfigError(f"the checkpoint's optimizer state does not fit this model: {error}") from error
        for param, held in self.optimizer.state.items():
            if "exp_avg" in held and held["exp_avg"].shape != param.shape:
                raise ConfigError("the checkpoint's optimizer state is of other parameters (their sizes differ)")
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.grad_norm = None if state["grad_norm"] is None else state["grad_norm"].to(self.device)


def apply_unless(left_out: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step of the optimizer where the 0-dim bool ``left_out`` is False; otherwise neither weights nor state change.

    A fused optimizer decides on the device, as it does for a GradScaler; another one waits for the value, which on the CPU
    costs nothing.
    """
    if all(group.get("fused") for group in optimizer.param_groups):
        fused: Any = optimizer
        fused.grad_scale, fused.found_inf = None, left_out.float()
        try:
            optimizer.step()
        finally:
            del fused.grad_scale, fused.found_inf
    elif not bool(left_out):
        optimizer.step()


def to_device(samples: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on the device; what is no tensor stays as it is."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value for key, value in samples.items()
    }
