"""One training step of a model on the meta device: what autograd keeps for backward, and which weights get gradients.

The model is the real one at its real size, only without numbers; so every switch of its configuration counts. Limits: kernels of
a GPU keep other things than the plain ones here (attention keeps less there), memory that lives within one operation is not
seen, texts are as long as max_txt_len allows, and every row has an input of its own.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lavis.common.precision import building_for, on_meta
from lavis.common.registry import registry
from lavis.models.public_sizes import BERT, LLMS, bert_stand_in, llm_stand_in, sizes_of

# what autocast computes in low precision, and what in float32 (torch.amp, "CUDA Op-Specific Behavior")
LOW = {
    F.linear, F.conv1d, F.conv2d, F.scaled_dot_product_attention,
    torch.matmul, torch.bmm, torch.addmm, Tensor.matmul, Tensor.__matmul__,
}  # fmt: skip
FULL = {
    F.layer_norm, F.softmax, F.log_softmax, F.cross_entropy, torch.softmax, Tensor.softmax, torch.log_softmax,
    Tensor.log_softmax, torch.pow, Tensor.pow, F.normalize,
}  # fmt: skip


@dataclass(frozen=True)
class DryRun:
    """Of one batch of `rows` of a modality: bytes kept for backward, and the parameters that got a gradient."""

    modality: str
    rows: int
    kept: int
    with_gradient: frozenset[str]


def build_on_meta(cfg: DictConfig, *, device: str, autocast: torch.dtype = torch.float32) -> tuple[Any, list[str]]:
    """The model of a full config at its real size, without numbers and without reading weights, and where the sizes of its
    Hugging Face parts are from; `device` and `autocast`: where and how it would run. ConfigError where a size is not known."""
    unread = {key: None for key in ("pretrained", "finetuned", "blip2_pretrain") if key in cfg}
    flags = {f"load_{key}": False for key in unread} | {"allow_random_init": True}
    flags |= {"regions_from_image": False} if "regions_from_image" in cfg else {}
    files = {part: {"pretrained": None} for part in ("vit", "pointbert") if cfg.get(part) is not None}
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        bare: Any = OmegaConf.merge(OmegaConf.to_container(cfg, resolve=True), unread, flags, files)
        for key in ("opt_model", "t5_model", "bert_path"):
            if bare.get(key):
                sizes, source = sizes_of(bare[key], {"bert-base-uncased": BERT} if key == "bert_path" else LLMS)
                stand_in = bert_stand_in if key == "bert_path" else llm_stand_in
                bare[key] = stand_in(Path(folder) / key, sizes)
                notes.append(f"model.{key}: {source}")
        with torch.device("meta"), building_for(device, autocast=autocast):
            return registry.get_model_class(bare.arch).from_config(bare), notes


def dry_run(model: Any, modality: str, *, rows: int, dtype: torch.dtype = torch.float32) -> DryRun:
    """Forward and backward of a batch of `rows` through a model on the meta device, in train mode; `dtype`: autocast's."""
    model.train()
    kept, batch = _Kept(model), example_batch(model, modality, rows)
    hooks = torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor)
    with torch.device("meta"), on_meta(None if dtype == torch.float32 else dtype), _Pretend(dtype), hooks:
        model(batch)
    plain = copy.deepcopy(model).float()  # layers are recomputed in another thread, which does not pretend
    with torch.device("meta"), _Pretend(torch.float32):
        loss = plain(batch).loss
    loss.backward()
    found = frozenset(name for name, param in plain.named_parameters() if param.grad is not None)
    return DryRun(modality, rows, kept.total, found)


def example_batch(model: Any, modality: str, rows: int) -> dict[str, Any]:
    """A batch without numbers, with all that the modality reads and texts of full length."""
    spec, cfg = model.specs[modality], model.cfg
    batch: dict[str, Any] = {"modality": modality, "text_input": ["a " * cfg.max_txt_len] * rows}
    batch["image_id"] = [str(number) for number in range(rows)]
    batch |= model.encoders[spec.encoder].example(rows, device="meta")
    chain = model.branch(modality).region
    for key, size in ({} if chain is None else chain.position_keys).items():
        batch[key] = torch.empty(rows, size, device="meta")
    return batch


def generation_bytes(model: Any, *, rows: int, beams: int, length: int) -> int:
    """Keys and values of every layer, and three times the scores of the vocabulary, for `rows` * `beams` texts of `length`
    behind the queries and a prompt of max_txt_len."""
    if model.llm is None:
        return 0
    config = model.llm.model.config
    read = model.cfg.qformer.num_query_token + model.cfg.max_txt_len
    layers = getattr(config, "num_decoder_layers", None) or config.num_hidden_layers
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "d_kv", None) or getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    caches = 2 * layers * (read + length) * heads * head * model.llm.dtype.itemsize
    return rows * beams * (caches + 3 * 4 * config.vocab_size)


class _Kept:
    """Storages that autograd keeps, each once, those of parameters left out."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {param.untyped_storage()._cdata for param in model.parameters()}
        self._held: dict[int, torch.UntypedStorage] = {}

    @property
    def total(self) -> int:
        return sum(storage.nbytes() for storage in self._held.values())

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._held[storage._cdata] = storage
        return tensor


class _Pretend(TorchFunctionMode):
    """Autocast for the meta device, which has none, and answers to what only numbers can say: a check finds nothing, every
    row is this process's."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._cast: dict[int, Tensor] = {}  # trainable weights are cast once, as autocast does

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.nonzero:
            return torch.arange(len(args[0]))[:, None]
        if func is Tensor.__bool__:
            return False
        if self.dtype != torch.float32 and (func in LOW or func in FULL):
            dtype = self.dtype if func in LOW else torch.float32
            args = tuple(self._to(value, dtype) for value in args)
            kwargs = {name: self._to(value, dtype) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _to(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (value.requires_grad and value.is_leaf):
            return value.to(dtype)
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(dtype)
        return self._cast[id(value)]
