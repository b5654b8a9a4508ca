"""Point operations against brute-force statements."""

from __future__ import annotations

import fpsample
import pytest
import torch

from lavis.models.encoders.point_bert import PointBert
from lavis.models.encoders.point_ops import (
    _neighbours_by_matrix,
    _sample_loop,
    farthest_point_sample,
    group_points,
    nearest_neighbours,
)
from lavis.processors import point_groups


def cloud(size: int = 300, clouds: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(clouds, size, channels, generator=torch.Generator().manual_seed(size))


def brute_force_picks(points: torch.Tensor, picks: int, first: int = 0) -> list[int]:
    chosen = [first]
    while len(chosen) < picks:
        to_nearest = [min((p - points[c]).square().sum().item() for c in chosen) for p in points]
        chosen.append(max(range(len(points)), key=to_nearest.__getitem__))
    return chosen


@pytest.mark.parametrize("size", [40, 300, 5000])
def test_sampling_equals_brute_force(size: int) -> None:
    points, picks = cloud(size), 16 if size < 5000 else 64
    found = farthest_point_sample(points, picks)
    assert torch.equal(found, _sample_loop(points, picks, torch.zeros(2, dtype=torch.long))), "both implementations agree"
    if size < 5000:
        assert found.tolist() == [brute_force_picks(row, picks) for row in points]


def test_sampling_begins_where_it_is_told() -> None:
    points, start = cloud(), torch.tensor([7, 250])
    found = farthest_point_sample(points, 8, start=start)
    assert torch.equal(found, _sample_loop(points, 8, start))
    assert found.tolist() == [brute_force_picks(row, 8, first=first) for row, first in zip(points, (7, 250), strict=True)]
    centres = group_points(points, 8, 4, start=start)[1]
    assert torch.equal(centres[:, 0], points[torch.arange(2), start])


def test_sampling_in_buckets_begins_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fpsample, "fps_sampling", lambda *args, **kwargs: pytest.fail("not in buckets"))
    points = cloud(3000, clouds=1) * torch.tensor([3.0, 1.0, 0.1])
    ends = [int(index) for axis in range(3) for index in (points[0, :, axis].argmin(), points[0, :, axis].argmax())]
    for first in [0, 2999, 1234, *ends]:
        start = torch.tensor([first])
        assert torch.equal(farthest_point_sample(points, 32, start=start), _sample_loop(points, 32, start)), first


def test_threads_share_the_clouds() -> None:
    points, start, before = cloud(3000, clouds=5), torch.arange(5) * 500, torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(group_points(points, 16, 8, start=start))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, many) for one, many in zip(*found, strict=True))


def test_another_order_of_the_tree_costs_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_groups, "_place_in_tree", lambda cloud, point: len(cloud) - 1 - point)
    points, start = cloud(3000), torch.tensor([3, 1700])
    assert torch.equal(farthest_point_sample(points, 32, start=start), _sample_loop(points, 32, start))


def test_copies_of_a_point_are_one_point() -> None:
    points, start = cloud(4000, clouds=1), torch.tensor([11])
    points[0, torch.randperm(4000, generator=torch.Generator().manual_seed(1))[:3500]] = points[0, 0].clone()
    found = points[0, farthest_point_sample(points, 64, start=start)]
    assert torch.equal(found, points[0, _sample_loop(points, 64, start)])
    near = (points[0, nearest_neighbours(points, found, 8)[0]] - found[0][:, None]).norm(dim=-1)
    expected = (points[0, _neighbours_by_matrix(points, found, 8)[0]] - found[0][:, None]).norm(dim=-1)
    torch.testing.assert_close(near.sort().values, expected.sort().values)


def test_a_cloud_that_is_not_finite_is_the_models_to_reject() -> None:
    points = cloud(3000)
    points[0, 5] = float("nan")
    assert farthest_point_sample(points, 8).shape == (2, 8)
    assert nearest_neighbours(points, points[:, :8], 4).shape == (2, 8, 4)


def test_neighbours_equal_those_of_all_distances() -> None:
    points = cloud(5000)
    centres = points[:, :50]
    found = nearest_neighbours(points, centres, 32).sort(dim=-1).values
    assert torch.equal(found, _neighbours_by_matrix(points, centres, 32).sort(dim=-1).values)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found, _neighbours_by_matrix(points, centres, 32).sort(dim=-1).values), "never in low precision"


def test_neighbours_equal_brute_force() -> None:
    points, centres = cloud(), cloud(7)
    found = nearest_neighbours(points, centres, 5).sort(dim=-1).values
    for b in range(2):
        for g in range(7):
            order = sorted(range(300), key=lambda n, b=b, g=g: (points[b, n] - centres[b, g]).square().sum().item())
            assert found[b, g].tolist() == sorted(order[:5])


def test_groups_are_centred_and_keep_their_colour() -> None:
    points = cloud(channels=6)
    groups, centres = group_points(points, 9, 4)
    assert groups.shape == (2, 9, 4, 6) and centres.shape == (2, 9, 3)
    back = groups[..., :3] + centres.unsqueeze(2)
    for b in range(2):
        whole = torch.cat([back[b], groups[b, ..., 3:]], dim=-1).reshape(-1, 6)
        assert (torch.cdist(whole, points[b]).min(dim=1).values < 1e-2).all(), "every member is a point of the cloud"


def test_too_few_points_and_wrong_channels_are_named() -> None:
    with pytest.raises(ValueError, match="has 5 points, fewer than the 8 groups"):
        farthest_point_sample(cloud(5), 8)
    with pytest.raises(ValueError, match="fewer than the 9 neighbours"):
        nearest_neighbours(cloud(5), cloud(2), 9)
    sizes = {"trans_dim": 8, "depth": 1, "num_heads": 2, "group_size": 4, "num_group": 4, "encoder_dims": 8}
    encoder = PointBert(**sizes, with_color=True).eval()
    assert encoder(cloud(channels=6)).shape == (2, 5, 8)
    with pytest.raises(ValueError, match="xyz and colour"):
        encoder(cloud())


def test_groups_found_before_are_the_same() -> None:
    points = cloud(3000, channels=6)
    found = torch.stack([torch.from_numpy(point_groups.point_groups(row.numpy(), 9, 4, start=5)) for row in points])
    assert found.dtype == torch.int32 and found.shape == (2, 9, 5)
    groups, centres = group_points(points, 9, 4, index=found)
    expected, at = group_points(points, 9, 4, start=torch.tensor([5, 5]))
    assert torch.equal(groups, expected) and torch.equal(centres, at)
    with pytest.raises(ValueError, match=r"point_groups has shape \(2, 9, 5\); this encoder was built for \(2, 9, 6\)"):
        group_points(points, 9, 5, index=found)
    with pytest.raises(ValueError, match="a cloud has 5 points, too few for 9 groups of 4"):
        point_groups.point_groups(cloud(5)[0].numpy(), 9, 4)


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    points = cloud(5000)
    assert torch.equal(farthest_point_sample(points.cuda(), 64).cpu(), farthest_point_sample(points, 64))
    centres = points[:, :20]
    on_cuda = nearest_neighbours(points.cuda(), centres.cuda(), 8).cpu().sort(dim=-1).values
    assert torch.equal(on_cuda, nearest_neighbours(points, centres, 8).sort(dim=-1).values)
