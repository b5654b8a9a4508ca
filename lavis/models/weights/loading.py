"""What is loaded from where, and what is still random.

Layouts and their renaming are in `layouts_all.py`, the parts' own files in `part_files.py`.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lavis.common.checkpoint import load_weights, unwrap
from lavis.common.errors import ConfigError
from lavis.models import parts
from lavis.models.language import Seq2SeqLM
from lavis.models.weights.aliases import sources_from_aliases
from lavis.models.weights.hf_blip2 import FolderConfig
from lavis.models.weights.layouts_all import LoadReport, load_into

if TYPE_CHECKING:
    from lavis.models.query_model import QueryModel

logger = logging.getLogger(__name__)

UNREAD_BY_CAPTIONS = re.compile(r"itc_proj|text_proj|itm_head|temp$|region\.reg\.|intermediate\.|\.output\.|\.cls\.|embeddings\.")
BASE_PARTS = ("Qformer", "visual_encoder", "point_encoder")  # even trainable, these want weights to start from
PUBLISHED_LLM = re.compile(r"(opt|t5|llm)_(model|proj)[._]")
# base of a checkpoint -> (its parameters, where the config names it)
BASE_KEYS = {
    "llm": ("llm.", "model.opt_model or model.t5_model"),
    "bert": ("Qformer.", "model.bert_path"),
    "visual_encoder": ("visual_encoder.", "model.vit.pretrained"),
    "point_encoder": ("point_encoder.", "model.pointbert.pretrained"),
    "blip2": ("ln_vision.", "model.blip2_pretrain, with model.load_blip2_pretrain: true"),
}


def load_checkpoint(model: QueryModel, path: str | Path | Mapping[str, Any]) -> LoadReport:
    """Load a file, a Hugging Face folder or a state already read, in any known layout (recognised by its keys).

    ValueError: unknown layout, other sizes, another language model, other frozen bases. Returns a report; keys without a
    place are listed, not fatal.
    """
    folder = FolderConfig.read(path) if isinstance(path, str | Path) else None
    name = path if isinstance(path, str | Path) else "the state"
    content: Any = load_weights(path) if isinstance(path, str | Path) else path
    with _naming(name):
        layout, renamed = model.key_map.rename(unwrap(content))
        renamed = sources_from_aliases(renamed, model.state_dict().keys())
        _refuse_other_llm(model, renamed)
        needed = check_bases(model, content.get("frozen_bases") or {}, renamed)
        renamed = _fitted(model, renamed, layout)
        report = load_into(model, renamed, layout=layout, loaded_before=model._loaded)
        if layout in ("blip2", "hf-blip2") and model.key_map.blip2 is None:
            what = "no entry of model.modalities says blip2: true; BLIP-2's query tokens and projections are ignored"
            logger.warning("%s: %s", name, what)
        report.needed = needed
        if not report.loaded:
            raise ConfigError(f"nothing in it fits this model: {report}")
    if folder is not None:
        _adopt(model, folder)
    model._loaded |= set(report.loaded)
    (logger.warning if needed else logger.info)("%s: %s", name, report)
    return report


def _fitted(model: QueryModel, state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """A state dict cut to this model: the ViT's depth and picture size, and vocabularies of Hugging Face folders."""
    for encoder in model.encoders.values():
        prefix = f"{encoder.tower}."
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        state = {**state, **{f"{prefix}{name}": tensor for name, tensor in encoder.fit(own).items()}}
    if layout != "hf-blip2":
        return state
    mine = model.state_dict()
    return {name: _fit_rows(name, tensor, mine.get(name)) for name, tensor in state.items()}


def _refuse_other_llm(model: QueryModel, state: Mapping[str, Tensor]) -> None:
    """ConfigError for the weights or adapters of a language model that this one is not."""
    if model.llm is None:
        return
    own = model.state_dict().keys()
    other = [name for name in state if PUBLISHED_LLM.match(name) and not name.startswith(f"{model.llm_kind}_")]
    for name in state:
        layer = re.sub(r"\.lora_[AB][._].*", ".weight", name)
        if name.startswith("llm.") and layer.endswith((".weight", ".bias")) and layer not in own:
            other.append(name)
    if other:
        raise ConfigError(
            f"it belongs to another language model: it holds {other[0]} ({len(other)} such keys); this model's is "
            f"{model.llm.model.config.model_type} of {parts.llm_source(model.cfg, model.llm_kind)} (model.{model.llm_kind}_model)"
        )


def _adopt(model: QueryModel, folder: FolderConfig) -> None:
    """What a Hugging Face folder says of its weights beside them: eps of ln_vision, activation of its T5."""
    norm = getattr(model, "ln_vision", None)
    if isinstance(norm, nn.LayerNorm):
        norm.eps = folder.norm_eps
    if isinstance(model.llm, Seq2SeqLM) and folder.text.get("dense_act_fn"):
        model.llm.use_activation(folder.text["dense_act_fn"])


def check_bases(model: QueryModel, saved: Mapping[str, Mapping[str, str]], state: Mapping[str, Tensor]) -> list[str]:
    """What is needed of the frozen files that a checkpoint was trained over; a line for each that is absent.

    ConfigError when this model stands on another file, or (unless `allow_random_init`) on random weights in place of one.
    """
    needed = []
    for part, base in saved.items():
        was = f"{base['path']}, sha256 {base['sha256'][:12]}"
        if part in model.bases:
            now = parts.source_hash(model.bases[part])
            if base["sha256"] != now:
                raise ConfigError(
                    f"it was trained over another {part} (then {was}; now {model.bases[part]}, sha256 {now[:12]}): its "
                    f"adapters do not fit these frozen weights"
                )
            continue
        prefix, key = BASE_KEYS.get(part, (f"{part}.", f"the file of {part}"))
        own = [name for name in model.state_dict() if name.startswith(prefix) and ".lora_" not in name]
        if own and not any(name in state or name in model._loaded for name in own):
            needed.append(f"it was trained over {part} {was}, which this model lacks: name it in {key}")
    if needed and not model.cfg.allow_random_init:
        raise ConfigError("; ".join(needed))
    return needed


def random_parts(model: QueryModel, *, for_evaluation: bool = False) -> list[str]:
    def part_of(name: str) -> str:
        return ".".join(name.split(".")[: 2 if name.startswith("branches.") else 1])

    loaded_parts = {part_of(name) for name in model._loaded}
    random = set()
    for name, parameter in model.named_parameters():
        if ".lora_" not in name and name not in model._loaded:
            part = part_of(name)
            base_from_nowhere = part.startswith(BASE_PARTS) and part not in loaded_parts
            untrained = for_evaluation and not UNREAD_BY_CAPTIONS.search(name)
            if base_from_nowhere or untrained or not parameter.requires_grad:
                random.add(part)
    return sorted(random)


def frozen_bases(model: QueryModel) -> dict[str, dict[str, str]]:
    return {part: {"path": str(path), "sha256": parts.source_hash(path)} for part, path in model.bases.items()}


@contextlib.contextmanager
def _naming(name: Any) -> Iterator[None]:
    """Errors inside begin with the checkpoint's name."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _fit_rows(name: str, tensor: Tensor, own: Tensor | None) -> Tensor:
    """A vocabulary of a Hugging Face folder at this model's size, any other tensor as it is.

    Rows of added tokens (`<image>`) are cut off; a BERT without `[DEC]` leaves that row as it was.
    """
    if own is None or tensor.dim() != 2 or own.shape[1:] != tensor.shape[1:]:
        return tensor
    if re.search(r"llm\..*(embed_tokens|shared|lm_head)\.weight", name) and len(tensor) > len(own):
        return tensor[: len(own)]
    if name == "Qformer.bert.embeddings.word_embeddings.weight" and len(own) == len(tensor) + 1:
        return torch.cat([tensor.to(own.dtype), own[-1:]])
    return tensor
