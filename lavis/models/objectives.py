"""The losses of a batch, as a table: which of them an entry of `modalities` asks for is computed, in this order.

Losses are those of the global batch: features are gathered, token losses are divided by the global token count, hard negatives
are drawn for the global batch from a generator that is the same on all processes. Averaging gradients over processes
then gives the gradient of one process that holds the whole batch. Dropout and drop path alone draw per process.

Several batches per update (`run.accum_grad_iters`) give the mean of the batches' gradients. That is the gradient of the larger
batch for the region loss where batches have equal rows, and for the token losses (lm, llm) where they have equal tokens; dividing
by the tokens of all of them would ask for batches that have not come yet. Not for ITC and ITM: a row is compared with the rows of
its own batch only.

Shapes: B rows, T encoder tokens, Q queries, D Q-Former width, E similarity width, L text tokens; *_all are over all processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis.common import dist_utils
from lavis.common.seeding import shared_rng
from lavis.models import losses
from lavis.models.losses import Mean, global_mean, global_row_mean
from lavis.models.qformer.tokens import Tokens

if TYPE_CHECKING:
    from lavis.models.batch import Batch
    from lavis.models.query_model import QueryModel


@dataclass
class Step:
    """What the losses of one batch share: query outputs [B, Q, D]; outputs [B, L, D] of the text and the language pass, where a
    loss wants them; the encoder tokens; ids and mask [B, L] of the texts; rows of every process; cosines [B_all, B_all] of inputs
    with texts and back; which rows of all are of one image."""

    batch: Batch
    hidden: Tensor
    text: Tensor | None
    lm: Tensor | None
    tokens: Tokens
    ids: Tensor
    mask: Tensor
    sizes: list[int]
    sims: tuple[Tensor, Tensor] | None = None
    same: Tensor | None = None


def find_losses(model: QueryModel, batch: Batch) -> dict[str, Mean]:
    """Unweighted losses of a batch. Samples with a prompt teach the answers behind it alone."""
    if "prompt" in batch.texts:
        if not batch.spec.weight("llm") or model.llm is None:
            raise ValueError(f"samples['text_output'] needs a language model and modalities.{batch.spec.name}.losses.llm above 0")
        return {"llm": global_mean(model.answer_loss(batch, model.look(batch).hidden))}
    step = read(model, batch)
    return {
        name: OBJECTIVES[name](model, step) for name in OBJECTIVES if batch.spec.weight(name) and _applies(model, name, batch)
    }


def _applies(model: QueryModel, name: str, batch: Batch) -> bool:
    return name != "reg" or model.branch(batch.spec.name).region is not None


def read(model: QueryModel, batch: Batch) -> Step:
    """Encode a batch; its queries look at it and the Q-Former reads its texts, in one pass where all are compared."""
    spec, texts = batch.spec, batch.text("target")
    given, qformer = model.query_input(batch), model.qformers[spec.qformer]
    wanted = any(map(spec.weight, ("itc", "itm", "lm")))
    ids, mask = model.tokenize(texts) if wanted else (given.queries.new_empty(0, dtype=torch.long),) * 2
    decoder = model.decoder_ids(ids) if spec.weight("lm") else None
    plain = given.ids is None and given.kept == given.queries.shape[1]
    text: Tensor | None
    lm: Tensor | None
    if spec.weight("itc") and plain:  # so every part of the pass gets a gradient: a parameter that no loss reaches must have none
        hidden, text, lm = qformer.passes_at_once(given.queries, given.tokens, mask, text=ids, decoder=decoder)
    else:
        hidden, cache = qformer.query_pass(given)
        text = qformer.text_pass(ids, mask) if spec.weight("itc") or spec.weight("itm") else None
        lm = None if decoder is None else qformer.lm_pass(decoder, mask, cache)
    step = Step(batch, hidden, text, lm, given.tokens, ids, mask, dist_utils.gather_sizes(batch.size))
    if text is not None:
        step.sims = similarities(model, step, text)
        step.same = same_image(model, batch)
    return step


def similarities(model: QueryModel, step: Step, text: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of all visual rows with all texts and of all texts with all visual rows, each [B_all, B_all].

    Published: what a row is compared with gets no gradient (`itc_gather_grad: false`), its own side does. Either way the update
    does not depend on the number of processes.
    """
    own = model.visual_features(step.batch.spec, step.hidden), model.sentence_features(text)
    visual_all, text_all = (dist_utils.gather_with_grad(part, sizes=step.sizes) for part in own)
    if model.cfg.itc_gather_grad:
        sim = losses.query_text_similarity(visual_all, text_all)
        return sim, sim.t()
    return (
        losses.query_text_similarity(visual_all, text_all.detach()),
        losses.query_text_similarity(visual_all.detach(), text_all).t(),
    )


def same_image(model: QueryModel, batch: Batch) -> Tensor | None:
    """Which rows of all are no negatives of each other [B_all, B_all]: those of one image, when the config asks for LAVIS'
    reading of image ids; else those of one `positive_key`, where samples have it (`run.group_by_image`)."""
    own = batch.image_ids if model.cfg.soft_targets else batch.positive_keys
    if own is None:
        return None
    ids = [key for part in dist_utils.all_gather_objects(own) for key in part]
    number = {key: i for i, key in enumerate(dict.fromkeys(ids))}
    numbers = torch.tensor([number[key] for key in ids], device=model.device)
    return numbers[:, None] == numbers[None, :]


def itc(model: QueryModel, step: Step) -> Mean:
    """Image-text contrast. Rows that are the same are positives of each other under `soft_targets`, and skipped as each other's
    negatives otherwise."""
    assert step.sims is not None
    same, count = step.same, sum(step.sizes)
    if same is None or model.cfg.soft_targets:
        targets = None if same is None else losses.soft_targets(same)
        return Mean(losses.contrastive(*step.sims, model.temp, targets), count)
    left_out = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    return Mean(losses.contrastive(*step.sims, model.temp, left_out=left_out), count)


def itm(model: QueryModel, step: Step) -> Mean:
    """Image-text matching on (text, image), (text, hard negative image), (hard negative text, image). Rows of one image are no
    negatives; zero for a batch that has none."""
    assert step.sims is not None
    ids, mask, sizes, same = step.ids, step.mask, step.sizes, step.same
    logits = step.sims[0].detach() / model.temp.detach()
    rows, device = len(ids), ids.device
    if len(logits) == 1 or (same is not None and bool(same.all())):
        return Mean(torch.zeros((), device=device), 0)
    with shared_rng(), torch.no_grad():
        image_for_text, text_for_image = (
            losses.draw_negatives(losses.negative_weights(scores, floor=model.cfg.itm_floor, positives=same))
            for scores in (logits.t(), logits)
        )
    first = sum(sizes[: dist_utils.get_rank()])
    own = torch.arange(first, first + rows, device=device)
    longest = max(dist_utils.gather_sizes(ids.shape[1]))
    padded = (F.pad(t, (0, longest - ids.shape[1])) for t in (ids, mask))
    ids_all, mask_all = (dist_utils.gather_with_grad(t, sizes=sizes) for t in padded)
    tokens_all = gather_tokens(step.tokens, sizes)
    other_text = text_for_image[own]
    pairs = tokens_all.select(torch.cat([own, image_for_text[own], own]))
    joint_ids = torch.cat([ids_all[own], ids_all[own], ids_all[other_text]])
    joint_mask = torch.cat([mask_all[own], mask_all[own], mask_all[other_text]])
    spec = step.batch.spec
    queries = model.branch(spec.name).query_tokens.expand(3 * rows, -1, -1)
    hidden = model.qformers[spec.qformer].joint_pass(queries, joint_ids, joint_mask, pairs)
    return global_row_mean(losses.matching(model.itm_head(hidden[:, : queries.shape[1]]).mean(dim=1), rows), sizes)


def gather_tokens(tokens: Tokens, sizes: list[int]) -> Tokens:
    """The encoder tokens of all processes, one input per row."""
    if dist_utils.get_world_size() == 1:
        return tokens
    visible = None if tokens.visible is None else dist_utils.gather_with_grad(tokens.visible, sizes=sizes)
    embeds = dist_utils.gather_with_grad(tokens.per_row(tokens.embeds), sizes=sizes)
    return replace(tokens, embeds=embeds, index=None, positions=None, visible=visible)


def lm(model: QueryModel, step: Step) -> Mean:
    """Image-grounded text generation by the Q-Former: each token from those before it, labels smoothed by 0.1."""
    assert step.lm is not None
    labels = model.decoder_ids(step.ids).masked_fill(step.mask == 0, losses.IGNORE)
    logits = model.qformers[step.batch.spec.qformer].lm_logits(step.lm[:, :-1])
    return global_mean(losses.token_cross_entropy(logits, labels[:, 1:], label_smoothing=losses.LABEL_SMOOTHING))


def llm(model: QueryModel, step: Step) -> Mean:
    """The targets by the language model, behind the projected queries."""
    return global_mean(model.caption_loss(step.batch, step.hidden))


def reg(model: QueryModel, step: Step) -> Mean:
    """The region prompts' own loss."""
    chain = model.branch(step.batch.spec.name).region
    assert chain is not None
    found = chain.loss(step.hidden, step.batch.regions)
    return global_row_mean(step.hidden.new_zeros(()) if found is None else found, step.sizes)


OBJECTIVES: dict[str, Callable[[QueryModel, Step], Mean]] = {"itc": itc, "itm": itm, "lm": lm, "llm": llm, "reg": reg}
