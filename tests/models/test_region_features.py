"""Which tokens lie in a region, and pooled features: against plain statements of the same."""

from __future__ import annotations

import pytest
import torch

from lavis.datasets.cloud_geometry import box_corners
from lavis.models.regions import geometry as rf


def test_cells_that_a_box_overlaps() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.5, 0.75], [0.3, 0.3, 0.3, 0.3], [0.2, 0.45, 0.26, 0.55]])
    found = rf.cells_in_box(boxes, 4).view(4, 4, 4)
    assert found[0].all()
    assert found[1].nonzero().tolist() == [[2, 1]], "an edge that is shared is no overlap"
    assert found[2].nonzero().tolist() == [[1, 1]], "a box without area lies in its cell"
    assert found[3].nonzero().tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    assert not rf.cells_in_box(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), 4).any(), "on an edge: in none"


def test_points_in_a_turned_box_whatever_the_order_of_its_corners() -> None:
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([1.0, 2.0, 0.5])
    signs = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]).float()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    centre = torch.tensor([30.0, -20.0, 4.0])
    local = 2 * torch.randn(400, 3, generator=generator)
    expected = (local.abs() <= size).all(dim=-1)
    order = torch.randperm(8, generator=generator)
    corners = (signs * size)[order] @ turn.T + centre
    found = rf.points_in_hull((local @ turn.T + centre)[None], corners[None])[0]
    assert 10 < expected.sum() < 390 and torch.equal(found, expected)


def test_corners_and_the_faces_of_a_box_lie_in_it_and_a_flat_box_is_flat() -> None:
    corners = torch.tensor(box_corners([1.0, 2.0, 3.0, 1.0, 2.0, 4.0]))[None]
    assert rf.points_in_hull(corners, corners).all()
    flat = corners * torch.tensor([1.0, 1.0, 0.0])
    middle = flat.mean(dim=1, keepdim=True)
    points = torch.cat([middle, middle + torch.tensor([0.0, 0.0, 0.1])], dim=1)
    assert rf.points_in_hull(points, flat).tolist() == [[True, False]]


def test_published_corners_go_back_to_their_box() -> None:
    box = [1.0, 2.0, 3.0, 0.5, 1.0, 4.0]
    corners = rf.corners_in_space(torch.tensor(box_corners(box))[None])[0]
    assert (corners.amax(dim=0) - corners.amin(dim=0)).tolist() == pytest.approx(box[3:])
    assert corners.mean(dim=0).tolist() == pytest.approx(box[:3])


def test_an_empty_mask_becomes_a_full_one() -> None:
    mask = torch.tensor([[False, True, False], [False, False, False]])
    assert rf.all_if_none(mask).tolist() == [[False, True, False], [True, True, True]]


def test_pooling_a_box_gives_the_middle_of_a_ramp() -> None:
    """RoIAlign interpolates between the cells' centres, so a linear ramp's mean over a box is its value in the box's middle."""
    ramp = torch.arange(6).float().add(0.5).div(6)
    maps = torch.stack([ramp.expand(6, 6), ramp[:, None].expand(6, 6), torch.full((6, 6), 3.0)])  # x, y, constant
    patches = maps.flatten(1).T[None]
    box = torch.tensor([[1 / 6, 2 / 6, 5 / 6, 4 / 6]])
    assert rf.pool_box(patches, box, None)[0].tolist() == pytest.approx([0.5, 0.5, 3.0], abs=1e-6)


def test_boxes_of_shared_pictures_read_their_own() -> None:
    patches = torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.1, 0.2, 0.9, 0.8], [0.0, 0.0, 0.5, 0.5]])
    index = torch.tensor([1, 0, 0])
    assert torch.equal(rf.pool_box(patches, boxes, index), rf.pool_box(patches[index], boxes, None))


def test_pooling_a_mask_is_the_mean_of_what_it_marks() -> None:
    tokens = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[True, False, True, False, False], [False, False, False, False, True]])
    expected = torch.stack([tokens[0, [0, 2]].mean(dim=0), tokens[1, 4]])
    torch.testing.assert_close(rf.pool_inside(tokens, mask), expected)
