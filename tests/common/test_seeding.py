"""Draws are functions of the numbers that name them."""

from __future__ import annotations

import random

import numpy as np
import torch

from lavis.common import seeding


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_step_decides_its_draws() -> None:
    seeding.seed_step(1, 5, 0)
    first = draws()
    draws()
    seeding.seed_step(1, 5, 0)
    assert draws() == first
    for other in ((2, 5, 0), (1, 6, 0), (1, 5, 1)):
        seeding.seed_step(*other)
        assert not set(draws()) & set(first)


def test_draws_by_key_are_the_same_whoever_asks() -> None:
    seeding.clear_step()
    assert seeding.step_draws(["a"], 100) is None
    keys = [f"cloud {number}" for number in range(400)]
    seeding.seed_step(1, 5, 0)
    first, state = seeding.step_draws(keys, 100), torch.get_rng_state()
    assert first is not None and seeding.step_draws(reversed(keys), 100) == first[::-1]
    assert torch.equal(torch.get_rng_state(), state)
    assert set(first) <= set(range(100)) and len(set(first)) > 80 and 40 < sum(first) / len(first) < 60
    seeding.seed_step(1, 5, 1)
    assert seeding.step_draws(keys, 100) == first
    seeding.seed_step(1, 6, 0)
    assert seeding.step_draws(keys, 100) != first
    seeding.clear_step()


def test_shared_draws_are_the_same_on_every_rank_and_leave_no_trace() -> None:
    results = []
    for rank in (0, 1):
        seeding.seed_step(1, 5, rank)
        with seeding.shared_rng():
            shared = float(torch.rand(()))
        with seeding.shared_rng(stream=1):
            other = float(torch.rand(()))
        results.append((shared, other, float(torch.rand(()))))
    assert results[0][:2] == results[1][:2] and results[0][0] != results[0][1]
    assert results[0][2] != results[1][2]
    seeding.seed_step(1, 5, 0)
    assert float(torch.rand(())) == results[0][2]


def test_shared_draws_without_a_step_are_ordinary_ones() -> None:
    seeding.clear_step()
    torch.manual_seed(3)
    with seeding.shared_rng():
        first = float(torch.rand(()))
    torch.manual_seed(3)
    assert float(torch.rand(())) == first


def test_torch_rng_forks() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeding.torch_rng(9):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeding.torch_rng(9):
        assert torch.equal(torch.rand(2), inside)


def test_sample_rng() -> None:
    first = seeding.sample_rng(1, 2, 3).rand(4)
    assert (seeding.sample_rng(1, 2, 3).rand(4) == first).all()
    for other in ((0, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)):
        assert (seeding.sample_rng(*other).rand(4) != first).all()


def test_states_come_back() -> None:
    seeding.seed_everything(5)
    random.gauss(0, 1)
    np.random.randn()
    state = seeding.rng_state()
    first = draws()
    seeding.set_rng_state(state)
    assert draws() == first
    assert np.random.get_state()[0] == "MT19937"
