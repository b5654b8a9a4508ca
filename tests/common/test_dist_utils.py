"""Collectives: no-ops with one process; with two, the mathematics of one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lavis.common import dist_utils
from lavis.common.config import ConfigError
from tests.distributed import run_distributed


def test_one_process_needs_no_group() -> None:
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    dist_utils.barrier()
    dist_utils.average_gradients([param])
    dist_utils.broadcast_tensors([param])
    assert torch.equal(param.grad, torch.ones(2))
    assert dist_utils.gather_with_grad(param) is param
    assert dist_utils.all_gather_objects("x") == ["x"] and dist_utils.broadcast_object(3) == 3
    assert dist_utils.gather_sizes(4) == [4]
    assert dist_utils.all_gather_tensors([torch.ones(2)])[0].tolist() == [1, 1]
    assert dist_utils.all_reduce_sum(param).tolist() == [1, 1]
    assert (dist_utils.get_rank(), dist_utils.get_world_size(), dist_utils.is_main_process()) == (0, 1, True)
    with dist_utils.main_process_first():
        pass
    with pytest.raises(ValueError, match="at least one dimension"):
        dist_utils.gather_with_grad(torch.ones(()))


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {str(dist_utils.pick_device(name)) for name in (None, "cpu", "cuda", "cuda:1")} == {"cpu"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [str(dist_utils.pick_device(name)) for name in (None, "cpu", "cuda", "cuda:0")] == [
        "cuda:1",
        "cpu",
        "cuda:1",
        "cuda:0",
    ]


def test_several_processes_that_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="run.distributed is false, but 2 processes"):
        dist_utils.init_distributed({"device": "cpu", "distributed": False})


ROWS = torch.linspace(-1, 1, 5 * 3).reshape(5, 3)  # of 5 rows rank 0 holds 2, rank 1 holds 3
WEIGHT = torch.linspace(0.5, -0.3, 9).reshape(3, 3)


def contrastive(weight: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    features = dist_utils.gather_with_grad(F.normalize(torch.tanh(rows @ weight), dim=-1))
    return F.cross_entropy(features @ features.t() / temperature, torch.arange(len(features)))


def gradients(rows: torch.Tensor) -> list[torch.Tensor]:
    weight, temperature = torch.nn.Parameter(WEIGHT.clone()), torch.nn.Parameter(torch.tensor(0.7))
    contrastive(weight, temperature, rows).backward()
    dist_utils.average_gradients([weight, temperature])
    assert weight.grad is not None and temperature.grad is not None
    return [weight.grad, temperature.grad]


def check_gather() -> dict[str, Any]:
    rank = dist_utils.get_rank()
    mine = ROWS[:2] if rank == 0 else ROWS[2:]
    empty = torch.ones(0 if rank == 0 else 1, 2, requires_grad=True)
    gathered = dist_utils.gather_with_grad(empty)
    gathered.sum().backward()
    assert empty.grad is not None
    return {
        "grads": gradients(mine),
        "rows": dist_utils.gather_with_grad(mine),
        "known": dist_utils.gather_with_grad(mine, sizes=dist_utils.gather_sizes(len(mine))),
        "ints": dist_utils.gather_with_grad(torch.arange(rank + 1)),
        "bools": dist_utils.gather_with_grad(torch.tensor([rank == 0])),
        "empty": (gathered.detach(), empty.grad),
    }


def check_average() -> dict[str, Any]:
    rank = dist_utils.get_rank()
    both, one, none, half = (torch.nn.Parameter(torch.zeros(3, 2)) for _ in range(4))
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    half.data = half.data.bfloat16()
    both.grad = torch.full((3, 2), 1 / 3) * (rank + 1)
    half.grad = torch.full((3, 2), rank + 1.0).bfloat16()
    one.grad = torch.ones(3, 2) if rank == 1 else None
    dist_utils.average_gradients([both, one, none, frozen, half])
    return {"both": both.grad, "one": one.grad, "none": none.grad, "half": half.grad, "frozen": frozen.grad}


UNEQUAL = [torch.rand(2, 3).bfloat16(), torch.arange(4).t(), torch.zeros(0, 2), torch.tensor(0.1), torch.rand(2, 3).t()]


def check_rest() -> dict[str, Any]:
    rank = dist_utils.get_rank()
    value = torch.tensor([float(rank)])
    dist_utils.broadcast_tensors([value])
    with dist_utils.single_process():
        alone = (dist_utils.get_world_size(), dist_utils.is_main_process(), dist_utils.gather_with_grad(torch.ones(1)).tolist())
    order: list[int] = []
    with dist_utils.main_process_first():
        order.append(rank)
    return {
        "sum": dist_utils.all_reduce_sum(torch.tensor(rank + 1)).item(),
        "objects": dist_utils.all_gather_objects({"rank": rank}),
        "broadcast": dist_utils.broadcast_object(f"from {rank}"),
        "tensor": value.item(),
        "tensors": dist_utils.all_gather_tensors(UNEQUAL[:1] if rank == 0 else UNEQUAL[1:]),
        "alone": alone,
        "world": (dist_utils.get_world_size(), dist_utils.is_main_process()),
    }


def check_all() -> dict[str, Any]:
    return {"gather": check_gather(), "average": check_average(), "rest": check_rest()}


def test_two_processes(tmp_path: Path) -> None:
    first, second = run_distributed(check_all, folder=tmp_path)
    expected = gradients(ROWS)
    for result in (first["gather"], second["gather"]):
        for grad, reference in zip(result["grads"], expected, strict=True):
            torch.testing.assert_close(grad, reference, rtol=1e-5, atol=1e-7)
        assert torch.equal(result["rows"], ROWS) and torch.equal(result["known"], ROWS)
        assert result["ints"].tolist() == [0, 0, 1]
        assert result["bools"].tolist() == [True, False]
        assert result["empty"][0].tolist() == [[1, 1]]
    assert second["gather"]["empty"][1].tolist() == [[2, 2]]  # both ranks ask; averaging halves it

    for mine, theirs in zip(first["rest"]["tensors"], second["rest"]["tensors"], strict=True):
        assert torch.equal(mine, theirs)
    for name in ("both", "one", "half"):
        assert torch.equal(first["average"][name], second["average"][name])
    assert torch.equal(first["average"]["both"], torch.full((3, 2), (1 / 3 + 2 * (1 / 3)) / 2))
    assert first["average"]["one"].unique().tolist() == [0.5]
    assert first["average"]["half"].dtype == torch.bfloat16
    assert first["average"]["none"] is None and first["average"]["frozen"] is None

    for rank, result in enumerate((first["rest"], second["rest"])):
        assert result["sum"] == 3 and result["objects"] == [{"rank": 0}, {"rank": 1}]
        assert (result["broadcast"], result["tensor"]) == ("from 0", 0)
        assert [(found.dtype, found.shape) for found in result["tensors"]] == [(one.dtype, one.shape) for one in UNEQUAL]
        assert torch.equal(result["tensors"][1], torch.arange(4)) and float(result["tensors"][3]) == float(torch.tensor(0.1))
        assert result["alone"] == (1, True, [1.0])
        assert result["world"] == (2, rank == 0)


def leave_the_group() -> int:
    """References to the group left after shutdown_distributed, beside this function's own two."""
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    torch.optim.SGD([parameter]).step()  # imports parts of torch.distributed that once kept the group
    group = torch.distributed.group.WORLD
    dist_utils.shutdown_distributed()
    return sys.getrefcount(group) - 2


def test_nothing_keeps_the_group_alive(tmp_path: Path) -> None:
    """Its threads must end before Python does, or the process aborts after its work is done."""
    assert run_distributed(leave_the_group, folder=tmp_path) == [0, 0]
