"""Scores of retrieval against one pair at a time, and one process against two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis.common.config import ConfigError
from lavis.models import load_model_from_config
from lavis.models.inference.retrieval import UNRANKED, Gallery
from tests import tiny
from tests.distributed import run_distributed

TEXTS = [*tiny.TEXTS[:4], "a lamp", tiny.TEXTS[0], "a photo of the white table"]  # the sixth is the first again


class Loader(list[dict[str, Any]]):
    """Batches whose dataset has texts."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        super().__init__(batches)
        self.dataset = type("Texts", (), {"text": TEXTS})()


def loader(modality: str = "image") -> Loader:
    """Five inputs in batches of three and two; the last is the first again."""
    whole = tiny.batch_of(modality, 5)
    key = "image" if modality == "image" else "pointcloud"
    whole[key][4] = whole[key][0]
    return Loader([{"modality": modality, key: part} for part in whole[key].split(3)])


def build(folder: Path, arch: str) -> Any:
    torch.manual_seed(5)
    model = load_model_from_config(tiny.model_config(folder, arch))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.startswith("llm."):
            torch.nn.init.normal_(parameter, std=0.15)
    return model.train()


@torch.no_grad()
def one_by_one(model: Any, modality: str) -> tuple[np.ndarray, np.ndarray]:
    """ITC similarities and ITM logits [I, N] of each pair alone."""
    model.eval()
    key = "image" if modality == "image" else "pointcloud"
    spec, inputs = model.specs[modality], torch.cat([samples[key] for samples in loader(modality)])
    sims, logits = np.zeros((len(inputs), len(TEXTS))), np.zeros((len(inputs), len(TEXTS)))
    for i, given in enumerate(inputs):
        for n, text in enumerate(TEXTS):
            with model.router.route(modality):
                looked = model.look(model.read({"modality": modality, key: given[None]}))
                ids, mask = model.tokenize([text])
                visual = model.visual_features(spec, looked.hidden)[0]
                sims[i, n] = (visual @ model.sentence_features(model.qformers[spec.qformer].text_pass(ids, mask))[0]).max()
                queries = model.branch(modality).query_tokens
                joint = model.qformers[spec.qformer].joint_pass(queries, ids, mask, looked.tokens)[:, : queries.shape[1]]
                logits[i, n] = model.itm_head(joint)[0, :, 1].mean()
    return sims, logits


CASES = [("blip2", "image"), ("blip2_opt", "image"), ("regionblip_opt", "image"), ("regionblip_opt", "pointcloud")]


@pytest.mark.parametrize(("arch", "modality"), CASES)
def test_scores_are_those_of_each_pair(arch: str, modality: str, tmp_path: Path) -> None:
    model = build(tmp_path, arch)
    i2t, t2i = model.compute_sim_matrix(loader(modality), k_test=100)
    assert model.training, "left in its mode"
    sims, logits = one_by_one(model, modality)
    assert logits.std() > 1e-3 and sims.std() > 1e-3
    np.testing.assert_allclose(i2t, sims + logits, atol=2e-5)
    np.testing.assert_allclose(t2i, (sims + logits).T, atol=2e-5)
    np.testing.assert_allclose(i2t[4], i2t[0], atol=2e-5)
    np.testing.assert_allclose(i2t[:, 5], i2t[:, 0], atol=2e-5)


def test_only_the_most_similar_are_ranked_again(tmp_path: Path) -> None:
    model = build(tmp_path, "blip2")
    sims, logits = one_by_one(model, "image")
    i2t, t2i = model.compute_sim_matrix(loader(), {"k_test": 3})
    for scores, alone, matched in ((i2t, sims, logits), (t2i, sims.T, logits.T)):
        for row in range(len(alone)):
            ranked = np.flatnonzero(scores[row] != UNRANKED)
            assert len(ranked) == 3
            left = np.setdiff1d(np.arange(alone.shape[1]), ranked)
            assert alone[row, ranked].min() >= alone[row, left].max() - 1e-5
            np.testing.assert_allclose(scores[row, ranked], (alone + matched)[row, ranked], atol=2e-5)


def test_small_batches_of_pairs_change_nothing(tmp_path: Path) -> None:
    model, gallery = build(tmp_path, "blip2").eval(), Gallery()
    for samples in loader():
        model.add_to_gallery(gallery, samples)
    for whole, parts in zip(
        model.gallery_scores(gallery, TEXTS, k_test=5),
        model.gallery_scores(gallery, TEXTS, k_test=5, batch_size=2),
        strict=True,
    ):
        np.testing.assert_allclose(whole, parts, atol=2e-5)


def test_what_is_refused(tmp_path: Path) -> None:
    model, gallery = build(tmp_path, "regionblip_opt").eval(), Gallery()
    with pytest.raises(ValueError, match="7 texts and 0 batches of inputs"):
        model.gallery_scores(gallery, TEXTS, k_test=1)
    model.add_to_gallery(gallery, loader()[0])
    for k_test in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match=f"k_test is {k_test}; accepted: a whole number of 1 or more"):
            model.gallery_scores(gallery, TEXTS, k_test=k_test)
    with pytest.raises(ValueError, match="holds image, the batch is pointcloud"):
        model.add_to_gallery(gallery, loader("pointcloud")[0])
    parts = [model.add_to_gallery(None, loader(modality)[0]) for modality in ("image", "pointcloud")]
    with pytest.raises(ValueError, match="these parts hold image in None, pointcloud in None"):
        model.gather_gallery(parts)


def test_parts_make_the_gallery_of_all(tmp_path: Path) -> None:
    model = build(tmp_path, "blip2").eval()
    whole, parts = Gallery(), [model.add_to_gallery(None, samples) for samples in loader()]
    for samples in loader():
        model.add_to_gallery(whole, samples)
    gathered = model.gather_gallery(parts)
    assert (gathered.modality, gathered.dtype) == ("image", None) and len(gathered.features) == len(gathered.embeds) == 2
    for mine, theirs in zip(
        model.gallery_scores(gathered, TEXTS, k_test=4), model.gallery_scores(whole, TEXTS, k_test=4), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ValueError, match="0 batches of inputs"):
        model.gallery_scores(model.gather_gallery([]), TEXTS, k_test=4)


def scores(folder: Path) -> Any:
    return build(folder, "blip2").compute_sim_matrix(loader(), k_test=4)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    alone = scores(tmp_path / "model")
    for found in run_distributed(scores, tmp_path / "model", folder=tmp_path / "run"):
        for mine, theirs in zip(alone, found, strict=True):
            np.testing.assert_allclose(theirs, mine, atol=1e-6)
