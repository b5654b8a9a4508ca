"""The losses as statements in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lavis.models import losses


def features(rows: int, queries: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    visual = F.normalize(torch.randn(rows, queries, 5, generator=generator), dim=-1)
    return visual, F.normalize(torch.randn(rows, 5, generator=generator), dim=-1)


def smoothed(logits: torch.Tensor, target: int) -> float:
    log_probs = torch.log_softmax(logits, dim=0)
    return -(0.9 * log_probs[target] + 0.1 * log_probs.mean()).item()


def test_contrastive_in_plain_loops() -> None:
    visual, text = features(4)
    sim = losses.query_text_similarity(visual, text)
    for b in range(4):
        for t in range(4):
            assert sim[b, t].item() == pytest.approx(max((visual[b, q] @ text[t]).item() for q in range(3)), abs=1e-6)
    rows = [smoothed(sim[i] / 0.07, i) for i in range(4)] + [smoothed(sim[:, i] / 0.07, i) for i in range(4)]
    found = losses.contrastive(sim, sim.t(), torch.tensor(0.07))
    assert found.item() == pytest.approx(sum(rows) / 8, abs=1e-5)


def test_contrastive_without_pairs_of_one_thing_in_plain_loops() -> None:
    visual, text = features(5)
    sim = losses.query_text_similarity(visual, text).requires_grad_()
    things = [0, 1, 0, 2, 0]
    same = torch.tensor([[a == b for b in things] for a in things])
    found = losses.contrastive(sim, sim.t(), torch.tensor(0.07), left_out=same & ~torch.eye(5, dtype=torch.bool))
    rows = []
    for direction in (sim, sim.t()):
        for i in range(5):
            counted = [j for j in range(5) if j == i or things[j] != things[i]]
            rows.append(smoothed(direction[i, counted] / 0.07, counted.index(i)))
    assert found.item() == pytest.approx(sum(rows) / 10, abs=1e-5)
    found.backward()
    assert sim.grad is not None and sim.grad.isfinite().all()
    assert sim.grad[0, 2] == sim.grad[2, 4] == 0 and sim.grad[0, 1] != 0


def test_contrastive_with_nothing_left_out_is_the_plain_one() -> None:
    visual, text = features(4)
    sim = losses.query_text_similarity(visual, text)
    plain = losses.contrastive(sim, sim.t(), torch.tensor(0.07))
    nothing = losses.contrastive(sim, sim.t(), torch.tensor(0.07), left_out=torch.zeros(4, 4, dtype=torch.bool))
    torch.testing.assert_close(nothing, plain, atol=1e-6, rtol=1e-6)
    everything = losses.contrastive(sim, sim.t(), torch.tensor(0.07), left_out=~torch.eye(4, dtype=torch.bool))
    assert everything.item() == pytest.approx(0.0, abs=1e-6), "a row that is compared with itself alone"


def test_soft_targets_spread_over_equal_ids() -> None:
    ids = torch.tensor([7, 7, 3, 5])
    targets = losses.soft_targets(ids[:, None] == ids[None, :])
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
    assert targets[0, 1] == targets[0, 0] == pytest.approx(0.45 + 0.025)
    assert targets[2, 2] == pytest.approx(0.9 + 0.025)


def test_negatives_are_never_positives_and_follow_the_weights() -> None:
    logits = torch.tensor([[9.0, 1.0, -50.0], [0.0, 9.0, 3.0], [0.0, 0.0, 9.0]])
    published = losses.negative_weights(logits, floor=1e-4)
    assert (published.diagonal() == 0).all() and published[0, 2] == pytest.approx(1e-4)
    lavis = losses.negative_weights(logits, floor=0)
    torch.testing.assert_close(lavis.sum(dim=1), torch.ones(3))
    assert lavis[0, 2] < 1e-20
    torch.manual_seed(0)
    drawn = torch.stack([losses.draw_negatives(lavis) for _ in range(300)])
    assert not (drawn == torch.arange(3)).any()
    assert (drawn[:, 1] == 2).float().mean().item() == pytest.approx(math.exp(3) / (math.exp(3) + 1), abs=0.08)


def test_token_cross_entropy_leaves_ignored_positions_out() -> None:
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, 2, losses.IGNORE], [losses.IGNORE, 6, losses.IGNORE]])
    loss = losses.token_cross_entropy(logits, labels)
    expected = -sum(torch.log_softmax(logits[b, s], 0)[labels[b, s]] for b, s in ((0, 0), (0, 1), (1, 1)))
    assert loss.count == 3
    torch.testing.assert_close(loss.total, expected)


def test_matching_labels_the_first_rows_positive() -> None:
    logits = torch.tensor([[-9.0, 9.0], [9.0, -9.0], [9.0, -9.0]])
    assert losses.matching(logits, 1) < 1e-6 and losses.matching(logits.flip(1), 1) > 17
