"""Features of a batch, and zero-shot classification by them.

Shapes: B rows, C classes, Q queries, D Q-Former width, E similarity width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis.models.batch import as_list, entry_of
from lavis.models.losses import query_text_similarity
from lavis.models.outputs import BlipOutputFeatures

if TYPE_CHECKING:
    from lavis.models.encoders.base import Samples
    from lavis.models.query_model import QueryModel

FEATURE_MODES = ("multimodal", "image", "text")


@torch.no_grad()
def extract_features(model: QueryModel, samples: Samples, mode: str = "multimodal") -> BlipOutputFeatures:
    """Features of a batch; see `BlipOutputFeatures` for shapes. mode: "multimodal", "image" (the visual side), "text"."""
    if mode not in FEATURE_MODES:
        raise ValueError(f"mode {mode!r} is unknown; accepted: {', '.join(FEATURE_MODES)}")
    spec = entry_of(samples, model.specs)
    qformer, out = model.qformers[spec.qformer], BlipOutputFeatures()
    with model.router.route(spec.name):
        if mode != "image":
            if samples.get("text_input") is None:
                raise ValueError(f"mode {mode!r} needs samples['text_input']")
            ids, mask = model.tokenize(as_list(samples["text_input"]))
        if mode == "text":
            out.text_embeds = qformer.text_pass(ids, mask)
            out.text_embeds_proj = F.normalize(model.text_proj(out.text_embeds), dim=-1)
            return out
        looked = model.look(model.read(samples))
        if mode == "image":
            out.image_embeds = looked.hidden
            out.image_embeds_proj = model.visual_features(spec, looked.hidden)
            return out
        queries = looked.queries
        out.multimodal_embeds = qformer.joint_pass(queries, ids, mask, looked.tokens)[:, : queries.shape[1]]
        return out


@torch.no_grad()
def class_features(
    model: QueryModel, samples: Samples, classnames: Sequence[str], *, templates: Sequence[str] | None = None
) -> Tensor:
    """Features [C, E] of classes, for samples of the modality that `samples` has: the normalised mean of a class's sentences,
    one per template; by default the entry's published template alone."""
    if not classnames:
        raise ValueError("classnames is empty")
    spec = entry_of(samples, model.specs)
    templates = list(templates or [spec.class_template])
    with model.router.route(spec.name):
        ids, mask = model.tokenize([template.format(name) for name in classnames for template in templates])
        features = model.sentence_features(model.qformers[spec.qformer].text_pass(ids, mask))
        return F.normalize(features.view(len(classnames), len(templates), -1).mean(dim=1), dim=-1)


@torch.no_grad()
def classify(
    model: QueryModel,
    samples: Samples,
    classnames: Sequence[str],
    *,
    templates: Sequence[str] | None = None,
    classes: Tensor | None = None,
) -> Tensor:
    """Zero-shot logits [B, C]: the cosine of a row's best query with each class, no temperature. `classes` [C, E]: what
    `class_features` gave for these names, so that it is not computed again."""
    if classes is None:
        classes = class_features(model, samples, classnames, templates=templates)
    batch = model.read(samples)
    with model.router.route(batch.spec.name):
        visual = model.visual_features(batch.spec, model.look(batch).hidden)
    return query_text_similarity(visual, classes)
