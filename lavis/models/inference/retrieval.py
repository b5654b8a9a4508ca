"""Retrieval as BLIP-2's stage 1 does it (arXiv 2301.12597, section 4.4): similarities, of which the best are ranked again by ITM.

Inputs and texts are encoded once, inputs by any number of processes (`gather_gallery`). The tokens of all inputs wait in main
memory, in autocast's type; what is on the device is one batch. The rows of a matrix are split over processes.

Shapes: I inputs (pictures or clouds), N texts, T encoder tokens, C encoder width, Q queries, E similarity width, L text tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavis.common import dist_utils
from lavis.common.config import ConfigError
from lavis.common.precision import autocast_of
from lavis.models.losses import query_text_similarity
from lavis.models.modality import Modality
from lavis.models.qformer.tokens import Tokens

if TYPE_CHECKING:
    from lavis.models.encoders.base import Samples
    from lavis.models.query_model import QueryModel

UNRANKED = -100.0  # the score of a pair that was not ranked again, as in LAVIS
Scores = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass
class Gallery:
    """Inputs that were encoded, batch by batch, and the type that autocast had (None: it was off)."""

    modality: str = ""
    dtype: torch.dtype | None = None
    features: list[Tensor] = field(default_factory=list)  # [B, Q, E], normalised
    embeds: list[Tensor] = field(default_factory=list)  # [B, T, C]
    seen: list[Tensor] = field(default_factory=list)  # [B, T], where a row sees only some tokens


def compute_sim_matrix(
    model: QueryModel, data_loader: Any, task_cfg: Mapping[str, Any] | None = None, *, k_test: int | None = None
) -> Scores:
    """Scores of inputs with texts [I, N] and of texts with inputs [N, I], the same on every process.

    `data_loader` gives all inputs in order, on every process; its dataset has the texts as `text`. How many of a row are
    ranked again says `k_test`, or the key of `task_cfg`; LAVIS' 128 otherwise.
    """
    texts, gallery = data_loader.dataset.text, Gallery()
    k_test = k_test if k_test is not None else (task_cfg or {}).get("k_test", 128)
    was_training = model.training
    model.eval()
    try:
        for samples in data_loader:
            add_to_gallery(model, gallery, samples)
        return gallery_scores(model, gallery, texts, k_test=k_test)
    finally:
        model.train(was_training)


@torch.no_grad()
def add_to_gallery(model: QueryModel, gallery: Gallery | None, samples: Samples) -> Gallery:
    """Encode a batch into the gallery, a new one for None. ValueError when it is of another modality than those before it."""
    batch = model.read(samples)
    row = batch.spec
    gallery = Gallery() if gallery is None else gallery
    if gallery.modality not in ("", row.name):
        raise ValueError(f"a gallery holds one modality; this one holds {gallery.modality}, the batch is {row.name}")
    gallery.modality, gallery.dtype = row.name, autocast_of(model.device)
    with model.router.route(row.name):
        looked = model.look(batch)
        gallery.features.append(model.visual_features(row, looked.hidden).float())
    embeds = looked.tokens.per_row(looked.tokens.embeds)
    gallery.embeds.append(embeds.to("cpu", gallery.dtype or embeds.dtype))
    if looked.tokens.visible is not None:
        gallery.seen.append(looked.tokens.visible.cpu())
    return gallery


def gather_gallery(model: QueryModel, parts: Sequence[Gallery]) -> Gallery:
    """One gallery of the parts of all processes, in rank order, the same on every process; a process may have none.

    Batches stay what they were, so that scores do not depend on the number of processes. ValueError for two modalities.
    """
    found = dist_utils.all_gather_objects([(part.modality, part.dtype) for part in parts])
    kinds = {kind for process in found for kind in process}
    if len(kinds) > 1:
        names = ", ".join(sorted(f"{modality} in {dtype}" for modality, dtype in kinds))
        raise ValueError(f"a gallery holds one modality in one type; these parts hold {names}")
    modality, dtype = kinds.pop() if kinds else ("", None)
    gathered = {
        name: dist_utils.all_gather_tensors([tensor for part in parts for tensor in getattr(part, name)])
        for name in ("features", "embeds", "seen")
    }
    features = [tensor.to(model.device) for tensor in gathered.pop("features")]
    return Gallery(modality, dtype, features, **gathered)


@torch.no_grad()
def gallery_scores(model: QueryModel, gallery: Gallery, texts: Sequence[str], *, k_test: int, batch_size: int = 64) -> Scores:
    """Scores of the gallery with `texts`, both ways: see `compute_sim_matrix`. At most `batch_size` pairs at a time.

    A score is the ITC similarity, the cosine of the best query, plus the ITM logit for a match, averaged over queries, for
    the `k_test` most similar of a row (all, where there are fewer), and -100 for the rest.
    """
    if isinstance(k_test, bool) or not isinstance(k_test, int) or k_test < 1:
        raise ConfigError(f"k_test is {k_test!r}; accepted: a whole number of 1 or more")
    if not texts or not gallery.features:
        raise ValueError(f"{len(texts)} texts and {len(gallery.features)} batches of inputs; accepted: at least one of each")
    row, device = model.specs[gallery.modality], model.device.type
    qformer = model.qformers[row.qformer]
    amp = torch.autocast(device, dtype=gallery.dtype) if gallery.dtype is not None else contextlib.nullcontext()
    with amp, model.router.route(row.name):
        ids, mask = model.tokenize(list(texts))
        parts = zip(ids.split(batch_size), mask.split(batch_size), strict=True)
        sentences = torch.cat([model.sentence_features(qformer.text_pass(*part)).float() for part in parts])
        sims = torch.cat([query_text_similarity(part, sentences).cpu() for part in gallery.features])
        pairs = Pairs(model, row, ids, mask, rows_of(gallery.embeds), rows_of(gallery.seen))
        i2t = rank_again(sims, pairs.of_input, k_test=k_test, batch_size=batch_size, model=model)
        t2i = rank_again(sims.t(), pairs.of_text, k_test=k_test, batch_size=batch_size, model=model)
    return i2t.numpy(), t2i.numpy()


@dataclass
class Pairs:
    """ITM logits of pairs of one input with several texts, or of one text with several inputs."""

    model: QueryModel
    row: Modality
    ids: Tensor  # [N, L]
    mask: Tensor  # [N, L]
    embeds: list[Tensor]  # I of [T, C], in main memory
    seen: list[Tensor]  # I of [T], or none

    def of_input(self, number: int, texts: Tensor) -> Tensor:
        """Match logits of an input with texts [K] -> [K]; its keys and values are computed once."""
        return self._match([number], torch.zeros_like(texts), texts)

    def of_text(self, number: int, inputs: Tensor) -> Tensor:
        """Match logits of a text with inputs [K] -> [K]."""
        return self._match(inputs.tolist(), None, torch.full_like(inputs, number))

    def _match(self, inputs: list[int], index: Tensor | None, texts: Tensor) -> Tensor:
        """`inputs` are those to look at, `index` which of them is whose (None: one each), `texts` [K]."""
        model, device = self.model, self.ids.device
        texts = texts.to(device)
        index = None if index is None else index.to(device)
        seen = torch.stack([self.seen[number] for number in inputs]).to(device) if self.seen else None
        if seen is not None and index is not None:
            seen = seen[index]
        tokens = Tokens(torch.stack([self.embeds[number] for number in inputs]).to(device), index, visible=seen)
        queries = model.branch(self.row.name).query_tokens.expand(len(texts), -1, -1)
        hidden = model.qformers[self.row.qformer].joint_pass(queries, self.ids[texts], self.mask[texts], tokens)
        return model.itm_head(hidden[:, : queries.shape[1]]).float().mean(dim=1)[:, 1].cpu()


def rows_of(parts: list[Tensor]) -> list[Tensor]:
    """The rows of batches one by one, without a copy of what may fill the memory."""
    return [row for part in parts for row in part]


def rank_again(sims: Tensor, match: Callable[[int, Tensor], Tensor], *, k_test: int, batch_size: int, model: Any) -> Tensor:
    """sims [R, K] -> scores [R, K]: each process does its run of rows, and all get all.

    Passes of a sharded model are collective, so there every process does all rows.
    """
    rows, split = len(sims), not dist_utils.is_sharded(model)
    rank, world = (dist_utils.get_rank(), dist_utils.get_world_size()) if split else (0, 1)
    low, high = rows * rank // world, rows * (rank + 1) // world
    scores = torch.full((high - low, sims.shape[1]), UNRANKED)
    for number in range(low, high):
        best = sims[number].topk(min(k_test, sims.shape[1]))
        logits = torch.cat([match(number, part) for part in best.indices.split(batch_size)])
        scores[number - low, best.indices] = best.values + logits
    return dist_utils.gather_with_grad(scores) if split else scores
