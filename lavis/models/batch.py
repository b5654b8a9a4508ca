"""A batch, read and checked once: the only reader of a samples dict among the models.

Which modality a batch is of, how many rows it has, what each part of the model needs of it, and what its texts are is settled
here; every later function takes a `Batch`.

Shapes: B rows, I encoded inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lavis.common.modalities import modality_of
from lavis.models.encoders.base import Encoder, Inputs, Samples, keys_of
from lavis.models.modality import TEXT_ROLES, Branch, Modality


@dataclass(frozen=True)
class Batch:
    """size: B. inputs: what the encoder reads. regions: what each region prompt reads. texts: by role (`Modality.text_input`).

    prompt: what the caller wants the language model to read, for all rows or one per row. image_ids: rows with equal ids show one
    image; positive_keys: rows that are no negatives of each other. extra: keys of samples that a system declares.
    """

    spec: Modality
    size: int
    inputs: Inputs
    regions: Sequence[object] = ()
    texts: Mapping[str, list[str]] = field(default_factory=dict)
    prompt: str | list[str] | None = None
    image_ids: list[str] | None = None
    positive_keys: list[str] | None = None
    lemmatize: bool = False
    extra: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        samples: Samples,
        *,
        specs: Mapping[str, Modality],
        encoders: Mapping[str, Encoder],
        branches: Mapping[str, Branch],
        device: torch.device,
        training: bool,
        roles: Sequence[str] = TEXT_ROLES,
        extra: Sequence[str] = (),
    ) -> Batch:
        """Read a samples dict; of its texts, those with a role in `roles`. ValueError names the key that is missing, of another
        shape, or of another number of rows."""
        spec = entry_of(samples, specs)
        inputs = encoders[spec.encoder].read(samples, device=device, training=training)
        size, chain = inputs.size, branches[spec.name].region
        regions = [] if chain is None else chain.read(samples, entry=spec, device=device, training=training)
        for region in regions:
            if isinstance(region, torch.Tensor | list) and len(region) != size:
                shared = f"give {spec.encoder}_index when regions share an input"
                raise ValueError(f"{len(region)} regions for {size} rows; {shared}")
        ids, positives = keys_of(samples, "image_id"), keys_of(samples, "positive_key")
        return cls(
            spec=spec,
            size=size,
            inputs=inputs,
            regions=regions,
            texts=texts_of(samples, spec, roles=roles, rows=size),
            prompt=_prompt_of(samples, rows=size),
            image_ids=None if ids is None else list(map(str, ids)),
            positive_keys=None if positives is None else list(map(str, positives)),
            lemmatize=bool(samples.get("apply_lemmatizer")),
            extra={key: samples[key] for key in extra if key in samples},
        )

    def text(self, role: str) -> list[str]:
        """The texts of a role. ValueError where the samples have none."""
        if role not in self.texts:
            raise ValueError(
                f"samples have no text that is a {role} of modality {self.spec.name!r}: give text_input, a list of texts"
            )
        return self.texts[role]


def entry_of(samples: Samples, specs: Mapping[str, Modality]) -> Modality:
    """The entry of a batch: `modality`, or the published `task_name`; a model with one entry needs neither."""
    name = samples.get("modality") or samples.get("task_name")
    if name is None and len(specs) == 1:
        return next(iter(specs.values()))
    if isinstance(name, list | tuple):
        if len(set(name)) != 1:
            raise ValueError(f"a batch holds one modality, got {sorted(set(name))}")
        name = name[0]
    if not isinstance(name, str) or modality_of(name) not in specs:
        raise ValueError(f"samples['modality'] is {name!r}; this model knows {', '.join(specs)}")
    return specs[modality_of(name)]


def as_list(texts: object) -> list[str]:
    """One text, or several, as a list. ValueError for what is no text."""
    found = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, list | tuple) else None
    if found is None or not all(isinstance(text, str) for text in found):
        raise ValueError(f"texts are {str(texts)[:60]!r}; accepted: a list of texts")
    return found


def texts_of(samples: Samples, spec: Modality, *, roles: Sequence[str], rows: int) -> dict[str, list[str]]:
    """The texts of a batch by their role. ValueError where they are not one per row."""
    beside = samples.get("text_output") is not None
    role_of = {"text_input": spec.text_input_beside_output if beside else spec.text_input, "text_output": spec.text_output}
    found: dict[str, list[str]] = {}
    for key, role in role_of.items():
        if role in roles and samples.get(key) is not None:
            found[role] = as_list(samples[key])
            if len(found[role]) != rows:
                raise ValueError(f"samples[{key!r}] has {len(found[role])} texts for {rows} rows")
    return found


def _prompt_of(samples: Samples, *, rows: int) -> str | list[str] | None:
    prompt = samples.get("prompt")
    if prompt is None or isinstance(prompt, str):
        return prompt
    prompts = as_list(prompt)
    if len(prompts) != rows:
        raise ValueError(f"{len(prompts)} prompts for {rows} rows")
    return prompts
