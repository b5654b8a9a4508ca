"""Low-rank adapters per modality, put onto any model from outside.

A frozen Q-Former and a frozen LLM serve every modality; each modality owns one pair (A, B) in every adapted layer
(RegionBLIP, arXiv 2308.02299; LoRA, arXiv 2106.09685). `inject_modality_lora` swaps the named `nn.Linear` layers in place and
keeps their weight and bias under the same state-dict keys; a `ModalityRouter` says which pair is live.

    y = x W^T + b + (alpha / rank) * x A_m^T B_m^T        for the live modality m

Differs from the published code: the layers are not forked copies of Hugging Face files, and a layer that is called while no
modality is live raises instead of silently using none.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import loralib
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis.common.precision import autocast_of


class ModalityRouter:
    """Names the modality whose adapters are live. One router serves all adapted layers of a model.

    The live modality belongs to the thread, so that two threads can serve two modalities of one model. Backward of a
    checkpointed block runs in another thread and enters the route of its forward pass again (see `checkpoint_contexts`).
    """

    def __init__(self, modalities: Iterable[str]) -> None:
        self.modalities = tuple(modalities)
        self._thread = threading.local()

    @property
    def live(self) -> str | None:
        """The live modality, or None outside any route."""
        return getattr(self._thread, "live", None)

    def check(self, modality: str) -> None:
        """ValueError for a modality without adapters."""
        if modality not in self.modalities:
            raise ValueError(f"unknown modality {modality!r}; this model adapts {', '.join(self.modalities)}")

    @contextlib.contextmanager
    def route(self, modality: str) -> Iterator[None]:
        """Make the adapters of `modality` live inside the block; routes nest."""
        self.check(modality)
        before, self._thread.live = self.live, modality
        try:
            yield
        finally:
            self._thread.live = before

    def __getstate__(self) -> dict[str, object]:
        return {"modalities": self.modalities}  # no route is live in a copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["modalities"])  # type: ignore[misc]

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """`context_fn` for `torch.utils.checkpoint(use_reentrant=False)`: recompute under the modality of the forward pass."""
        live = self.live
        recompute = self.route(live) if live is not None else contextlib.nullcontext()
        return contextlib.nullcontext(), recompute


class ModalityLinear(nn.Linear, loralib.LoRALayer):
    """A linear layer with one LoRA pair per modality: `lora_A[m]` [rank, in], `lora_B[m]` [out, rank] (zero at first)."""

    def __init__(self, linear: nn.Linear, router: ModalityRouter, *, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)  # the weights are adopted below, so nothing of nn.Linear is built
        loralib.LoRALayer.__init__(self, r=rank, lora_alpha=alpha, lora_dropout=0.0, merge_weights=False)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.router = router
        self.scaling = alpha / rank
        device = linear.weight.device
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        for modality in router.modalities:
            self.lora_A[modality] = nn.Parameter(torch.empty(rank, self.in_features, device=device))
            self.lora_B[modality] = nn.Parameter(torch.zeros(self.out_features, rank, device=device))
            nn.init.kaiming_uniform_(self.lora_A[modality], a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]; raises RuntimeError outside a route."""
        modality = self.router.live
        if modality is None:
            raise RuntimeError("an adapted layer was called outside a route: wrap the call in `with router.route(modality):`")
        y = F.linear(x, self.weight, self.bias)
        a, b = self.lora_A[modality], self.lora_B[modality]
        if autocast_of(x.device) is None and x.dtype != a.dtype:  # a base in low precision, adapters in float32
            return y + (F.linear(F.linear(x.to(a.dtype), a), b) * self.scaling).to(y.dtype)
        narrow = F.linear(x, a).flatten(0, -2)
        return torch.addmm(y.flatten(0, -2), narrow, b.t(), alpha=self.scaling).view(y.shape)

    @torch.no_grad()
    def merged_linear(self, modality: str) -> nn.Linear:
        """A plain linear layer that does what this one does for `modality`: W + (alpha / rank) B A, added in float32 and rounded
        once to the type of W. The bias is shared."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        a, b = self.lora_A[modality].to(wide), self.lora_B[modality].to(wide)
        weight = (self.weight.to(wide) + self.scaling * (b @ a)).to(self.weight.dtype)
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.r}, modalities={list(self.router.modalities)}"


def inject_modality_lora(
    module: nn.Module, router: ModalityRouter, targets: str, *, rank: int = 8, alpha: float = 1.0
) -> list[str]:
    """Swap every `nn.Linear` of `module` whose own name fully matches the pattern `targets` for a `ModalityLinear`.

    Weight and bias are adopted, not copied, so base keys and ties stay as they are. Returns the names of the swapped layers.
    ValueError when nothing matches.
    """
    pattern = re.compile(targets)
    swapped = []
    for parent_name, parent in list(module.named_modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and pattern.fullmatch(child_name):
                setattr(parent, child_name, ModalityLinear(child, router, rank=rank, alpha=alpha))
                swapped.append(f"{parent_name}.{child_name}" if parent_name else child_name)
    if not swapped:
        names = sorted({name.rsplit(".", 1)[-1] for name, m in module.named_modules() if isinstance(m, nn.Linear)})
        raise ValueError(f"no linear layer of {type(module).__name__} matches {targets!r}; its linear layers are {names}")
    return swapped


def adapter_parameters(module: nn.Module, modality: str) -> Iterator[nn.Parameter]:
    """The adapter parameters of one modality below `module`."""
    for layer in module.modules():
        if isinstance(layer, ModalityLinear):
            yield layer.lora_A[modality]
            yield layer.lora_B[modality]


def merge_modality(module: nn.Module, modality: str) -> list[str]:
    """Put the adapters of `modality` into the weights of every adapted layer of `module`, in place; returns the layers' names.

    For generation of one modality. The other adapters are gone, so from then on the router refuses every other modality.
    The tensors that the layers had are left as they were. ValueError when nothing is adapted, or for an unknown modality.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, ModalityLinear)}
    if not layers:
        raise ValueError(f"{type(module).__name__} has no adapted layers: there is nothing to merge")
    for name, layer in layers.items():
        layer.router.check(modality)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.merged_linear(modality))
    for layer in layers.values():
        layer.router.modalities = (modality,)
    return list(layers)


def merged_copy(module: nn.Module, modality: str) -> Any:
    """A copy of `module` with the adapters of `modality` merged; `module` stays as it is.

    Only the adapted weights are new. All other parameters and buffers are the same tensors in both, and ties stay ties.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(module.parameters(), module.buffers())}
    copied = copy.deepcopy(module, shared)
    merge_modality(copied, modality)
    return copied


CheckpointContexts = Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]
