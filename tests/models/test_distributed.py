"""Losses and gradients are those of the global batch, whatever the number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lavis.common import dist_utils
from lavis.common.seeding import clear_step, seed_step
from lavis.models import load_model_from_config
from lavis.models.encoders.point_bert import GlobalBatchNorm
from tests import tiny
from tests.distributed import run_distributed

ROWS = 6
TEXTS = ["a red square", "a blue circle on the table", "a white cube", "two lamps on the left", "a photo of a lamp", "green"]


def build(folder: Path, gather_grad: bool) -> Any:
    torch.manual_seed(3)
    config = tiny.model_config(folder, "regionblip_opt", enable_aux_regloss=True, itc_gather_grad=gather_grad)
    model = load_model_from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.startswith("llm.") or ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.15)  # far from the nearly equal features of a fresh Q-Former
    return model.eval()  # no dropout: what is left to compare is the mathematics


def batch(modality: str, rows: range) -> dict[str, Any]:
    """Of the regions, rows 0, 2 and 5 are of one thing: they are no negatives of each other, whichever process has them."""
    whole = tiny.image_batch(modality, rows=ROWS) | {"text_input": TEXTS}
    if modality == "image_region":
        whole["positive_key"] = list("abacda")
    return {
        key: value[rows.start : rows.stop] if isinstance(value, torch.Tensor | list) else value for key, value in whole.items()
    }


def losses_and_gradients(model: Any, modality: str, rows: range, rank: int) -> dict[str, torch.Tensor]:
    model.zero_grad()
    seed_step(7, 11, rank)
    losses = model(batch(modality, rows))
    losses.loss.backward()
    clear_step()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    dist_utils.average_gradients(trainable.values())
    found = {name: p.grad.clone() for name, p in trainable.items() if p.grad is not None}
    for name, value in losses.items():
        found[name] = dist_utils.all_reduce_sum(value.detach()) / dist_utils.get_world_size()
    return found


def worker(rank: int, world: int, folder: Path, gather_grad: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    model = build(folder, gather_grad)
    share = ROWS // world
    rows = range(rank * share, (rank + 1) * share)
    found = {modality: losses_and_gradients(model, modality, rows, rank) for modality in ("image", "image_region")}
    if rank == 0:
        torch.save(found, folder / f"found{world}.pt")
    dist.destroy_process_group()


def normalise(rows: list[int]) -> dict[str, torch.Tensor]:
    """A step of batch norm over 10 points, of which this process holds `rows[rank]`."""
    points = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
    weights = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    rank, world = dist_utils.get_rank(), dist_utils.get_world_size()
    own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
    torch.manual_seed(2)
    norm = GlobalBatchNorm(3)
    torch.nn.init.normal_(norm.weight)
    mine = points[own].requires_grad_()
    out = norm(mine)
    ((out * weights[own]).square().sum() * world).backward()
    dist_utils.average_gradients(norm.parameters())
    assert mine.grad is not None and norm.weight.grad is not None
    found = {"out": out.detach(), "points": mine.grad / world, "weight": norm.weight.grad, "bias": norm.bias.grad}
    return found | {name: value.clone() for name, value in norm.named_buffers()}


def test_batch_norm_is_over_the_points_of_all_processes(tmp_path: Path) -> None:
    one = normalise([10])
    ranks = run_distributed(normalise, [7, 3], folder=tmp_path / "norm")
    for name, expected in one.items():
        per_row = name in ("out", "points")
        found = [torch.cat([rank[name] for rank in ranks])] if per_row else [rank[name] for rank in ranks]
        for value in found:
            torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)


def starts(model: Any, samples: dict[str, Any], clouds: int, index: torch.Tensor | None = None) -> torch.Tensor:
    return model.encoders["pointcloud"].start_points(samples, (clouds, 40), index, model.device)


def start_of_clouds(model: Any, rank: int, **changes: Any) -> Any:
    seed_step(7, 11, rank)
    try:
        return starts(model, {"cloud_key": ["b", "a", "b"], **changes}, 3)
    finally:
        clear_step()


def test_sampling_of_a_cloud_begins_at_one_point_whoever_holds_it(tmp_path: Path) -> None:
    model = build(tmp_path, gather_grad=False).train()
    first, second, third = start_of_clouds(model, 0).tolist()
    assert first == third != second
    assert torch.equal(start_of_clouds(model, 1), torch.tensor([first, second, first]))
    shared = {"cloud_key": ["a", "a", "b"]}
    seed_step(7, 11, 1)
    assert starts(model, shared, 2, torch.tensor([0, 0, 1])).tolist() == [second, first]
    clear_step()
    named = [start_of_clouds(model, rank, cloud_key=None, image_id=["b", "a", "b"]) for rank in (0, 1)]
    assert torch.equal(*named), "without names of clouds those of the rows"
    drawn = {tuple(starts(model, shared, 2).tolist()) for _ in range(20)}
    assert len(drawn) > 10, "outside a step the point is drawn"
    cloud = {"pointcloud": torch.rand(2, 40, 3)}
    assert model.encoders["pointcloud"].read(cloud, device=model.device, training=False).start is None


@pytest.mark.parametrize("gather_grad", [False, True])
def test_two_processes_equal_one(tmp_path: Path, gather_grad: bool) -> None:
    model = build(tmp_path, gather_grad)
    mp.spawn(worker, args=(2, tmp_path, gather_grad), nprocs=2)
    found = torch.load(tmp_path / "found2.pt", weights_only=True)
    for modality, two in found.items():
        one = losses_and_gradients(model, modality, range(ROWS), 0)
        assert set(one) == set(two)
        assert modality != "image" or one["loss_itm"] > 0
        for name, expected in one.items():
            scale = expected.abs().max().clamp(min=1e-3)
            assert (two[name] - expected).abs().max() / scale < 1e-5, f"{modality}: {name}"
