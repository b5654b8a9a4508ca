"""A trained model in two halves that other engines can serve: plain language-model weights, and soft prompts for them.

    regions --(this package: encoder, Q-Former, projection)--> input embeddings --(any engine that takes them)--> captions

`export_llm` writes a Hugging Face folder whose weights hold the adapters of one modality: W + (alpha / rank) B A in every adapted
layer (see `qformer/lora.py`). What comes behind a layer's product (OPT scales its queries) is not touched, so the merged model
is the same function; only rounding differs. `soft_prompts` gives what such a model reads, `save_prompts` writes it to a file.

Shapes: B rows, P prefix positions (the projected queries), L prompt tokens, H model width.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

import lavis
from lavis.common.checkpoint import content_hash, file_hash
from lavis.common.config import ConfigError
from lavis.common.errors import unknown
from lavis.common.files import new_folder, replacing
from lavis.common.modalities import modality_of
from lavis.models import parts
from lavis.models.batch import entry_of
from lavis.models.inference.generate import prompt_texts
from lavis.models.language import Behind, CausalLM, Decoding, LanguageModel
from lavis.models.language.base import load_tokenizer
from lavis.models.language.beam import TOP_K
from lavis.models.qformer.lora import ModalityLinear, merged_copy

if TYPE_CHECKING:
    from lavis.models.query_model import QueryModel

SHARD_SIZE = "5GB"  # of one file of weights
FACTS, README = "export.json", "README.txt"
TOKENIZER_FILES = (
    "tokenizer*.json", "tokenizer.model", "spiece.model", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.*",
)  # fmt: skip

README_TEXT = """\
{llm} with the adapters of modality "{modality}" merged into its weights.
Written by lavis {version} (tools/export_llm.py weights).

It captions soft prompts of that modality and of no other: input embeddings [B, {prefix} + L, {width}] and their
attention mask, made by `python tools/export_llm.py prompts ...` or lavis.models.weights.export.soft_prompts.
Any engine that loads a Hugging Face folder and takes input embeddings can decode them; nothing of
lavis is needed for that.

Lengths: max_length {max_length} and min_length {min_length} of the published code count a start token that engines of
today do not have. generation_config.json says the same as max_new_tokens {longest}, the end token counted, and
min_new_tokens {shortest}, the end token not counted. A caption ends with token {ends}.

Greedy decoding by transformers gives the captions of lavis. Its beam search is another one: it stops by
another rule, and weighs a caption that is cut at max_new_tokens by a length that is one shorter.

{facts} says which files and adapters this was made of; a file of soft prompts carries the same
adapters_sha256.
"""


# -- weights ------------------------------------------------------------------------------------------------------------------
def export_llm(
    model: QueryModel,
    folder: str | Path,
    *,
    modality: str,
    decoding: Decoding,
    checkpoint: str | Path | None = None,
    shard_size: str = SHARD_SIZE,
) -> dict[str, Any]:
    """Write the language model of `model`, adapters of `modality` merged, as a Hugging Face folder; returns its export.json.

    Weights keep their type (the sum is made in float32). `modality`: a row of the model, or its published task name; `decoding`
    goes into generation_config.json; `checkpoint`: see `origin`. The folder appears whole or not at all. ConfigError for a model
    without language model or adapters, an unknown modality, and a folder that is not empty.
    """
    llm, row = adapted_llm(model), checked_modality(model, modality)
    with new_folder(Path(folder)) as place:
        plain = merged_copy(llm.model, row)
        _say_ties(plain)
        plain.generation_config = generation_config(llm, decoding)
        plain.save_pretrained(place, max_shard_size=shard_size)
        copy_tokenizer(parts.source_folder(parts.llm_source(model.cfg, model.llm_kind)), place)
        facts = origin(model, row, checkpoint=checkpoint)
        settings = plain.generation_config
        facts["lengths"] = {
            "max_length": decoding.max_length, "min_length": decoding.min_length,
            "max_new_tokens": settings.max_new_tokens, "min_new_tokens": settings.min_new_tokens,
        }  # fmt: skip
        facts["dtype"] = str(llm.dtype).removeprefix("torch.")
        facts["weights"] = {file.name: file_hash(file) for file in sorted(place.glob("*.safetensors"))}
        (place / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
        (place / README).write_text(_readme(model, row, llm, decoding, settings))
    return facts


def copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's files as they are: transformers 5 would write some that older versions and other engines cannot read.
    ConfigError where they are no longer there."""
    for file in {file for pattern in TOKENIZER_FILES for file in source.glob(pattern)}:
        shutil.copyfile(file, target / file.name)
    load_tokenizer(str(target))


def adapted_llm(model: QueryModel) -> LanguageModel:
    """The language model of `model`; ConfigError where there is none, or none of its layers is adapted."""
    arch = model.cfg.arch
    if model.llm is None:
        raise ConfigError(f"arch {arch} has no language model to export; accepted: a model of regionblip_opt or regionblip_t5")
    if not any(isinstance(layer, ModalityLinear) for layer in model.llm.model.modules()):
        source = parts.llm_source(model.cfg, model.llm_kind)
        raise ConfigError(f"the language model of arch {arch} has no adapters to merge; it was read from {source}")
    return model.llm


def checked_modality(model: QueryModel, name: str) -> str:
    """The row of a modality or published task name; ConfigError names those there are."""
    row = modality_of(name)
    if row not in model.router.modalities:
        raise ConfigError(unknown("modality", name, model.router.modalities))
    return row


def generation_config(llm: LanguageModel, decoding: Decoding) -> GenerationConfig:
    """What Hugging Face's generate is told to decode as `decoding` says: end tokens, lengths without the start token.

    Differs from our decoding where Hugging Face has no such setting: the start token of OPT counts as a repeated token there.
    """
    tokenizer, ids = llm.tokenizer, llm.model.config
    settings: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id}
    if isinstance(llm, CausalLM):
        ends = llm.dialect.ends
        settings |= {"eos_token_id": list(ends) if len(ends) > 1 else ends[0], "pad_token_id": llm.dialect.pad}
        longest = decoding.max_length - 1
    else:
        settings |= {"eos_token_id": ids.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        settings["decoder_start_token_id"] = ids.decoder_start_token_id
        longest = decoding.max_length
    settings["max_new_tokens"] = longest if decoding.max_new_tokens is None else decoding.max_new_tokens
    settings["min_new_tokens"] = max(decoding.min_length - 1, 0)
    settings["repetition_penalty"] = decoding.repetition_penalty
    settings["do_sample"] = decoding.use_nucleus_sampling
    if decoding.use_nucleus_sampling:
        settings |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": TOP_K}
    else:
        settings["num_beams"] = decoding.num_beams
        if decoding.num_beams > 1:
            settings["length_penalty"] = decoding.length_penalty
    settings["num_return_sequences"] = decoding.num_captions
    return GenerationConfig(**settings)


def _say_ties(plain: Any) -> None:
    """Make the config say whether the output layer is the input embeddings: transformers 5 says of every T5 that it is, older
    versions and other engines read it."""
    head = plain.get_output_embeddings()
    plain.config.tie_word_embeddings = head is not None and head.weight is plain.get_input_embeddings().weight


def origin(model: QueryModel, modality: str, *, checkpoint: str | Path | None = None) -> dict[str, Any]:
    """What the adapters and soft prompts of a modality stand on: files with their sha256, and the hash of the adapters, null
    for a language model without.

    `checkpoint`: the file of the trained weights, where it is not the one that the model's configuration loads.
    """
    cfg = model.cfg
    layers = {name: layer for name, layer in cast(Any, model.llm).model.named_modules() if isinstance(layer, ModalityLinear)}
    adapters = {name: [layer.lora_A[modality], layer.lora_B[modality]] for name, layer in layers.items()}
    named = next((cfg[key] for key in ("finetuned", "pretrained") if cfg.get(f"load_{key}")), None)
    trained = str(checkpoint or named or "")
    return {
        "made_by": f"lavis {lavis.__version__}, transformers {transformers.__version__}",
        "arch": cfg.arch,
        "modality": modality,
        "checkpoint": {"path": trained, "sha256": parts.source_hash(trained)} if trained else None,
        "frozen_bases": model.frozen_bases(),
        "lora": {"rank": int(cfg.lora.rank), "alpha": float(cfg.lora.alpha), "layers": len(layers)} if layers else None,
        "adapters_sha256": content_hash(adapters) if layers else None,
    }


def _readme(model: QueryModel, modality: str, llm: LanguageModel, decoding: Decoding, settings: GenerationConfig) -> str:
    return README_TEXT.format(
        llm=type(llm.model).__name__, modality=modality, version=lavis.__version__, width=llm.width, facts=FACTS,
        prefix=model.branch(modality).query_tokens.shape[1], max_length=decoding.max_length, min_length=decoding.min_length,
        longest=settings.max_new_tokens, shortest=settings.min_new_tokens, ends=settings.eos_token_id,
    )  # fmt: skip


# -- soft prompts ---------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def soft_prompts(model: QueryModel, samples: Mapping[str, Any], *, prompts: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """Input embeddings [B, P + L, H] of a batch, in the language model's type, and their attention mask [B, P + L] of 0 and 1.

    They are what `model.generate(samples)` decodes: rows of causal models are padded on the left, those of T5 (for its encoder)
    on the right. `samples` as for generate, the model in eval mode; `prompts`, one text per row, go over what stands there
    (questions, say). ConfigError for a model without a language model.
    """
    if model.llm is None:
        raise ConfigError(f"arch {model.cfg.arch} has no language model that soft prompts could be for")
    batch = model.read(samples)
    if prompts is not None and len(prompts) != batch.size:
        raise ValueError(f"{len(prompts)} prompts for {batch.size} rows")
    with model.router.route(batch.spec.name):
        vectors = model.branch(batch.spec.name).to_llm(model.look(batch).hidden)
    return model.llm.prompt_inputs(Behind(vectors, prompt_texts(model, batch) if prompts is None else list(prompts)))


def save_prompts(
    model: QueryModel,
    samples: Mapping[str, Any],
    path: str | Path,
    *,
    checkpoint: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Write the soft prompts of a batch to a .safetensors file: `inputs_embeds`, `attention_mask`; returns the first's shape.

    Its metadata hold `origin` as JSON with what `about` adds. The file appears whole or not at all. ConfigError for another
    suffix, or a model without a language model.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: soft prompts are written as .safetensors")
    embeds, mask = soft_prompts(model, samples)
    facts = origin(model, entry_of(samples, model.specs).name, checkpoint=checkpoint)
    tensors = {"inputs_embeds": embeds.cpu().contiguous(), "attention_mask": mask.cpu().contiguous()}
    with replacing(path) as stream:
        save_file(tensors, stream.name, metadata={"lavis": json.dumps({**facts, **(about or {})})})
    return tuple(embeds.shape)
