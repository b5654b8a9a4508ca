"""Which tokens lie in a region, and what they hold together: the ablations of RegionBLIP beside the position embedding.

RegionBLIP (arXiv 2308.02299) tells the Q-Former of a region by its position alone (PaFE). Two other ways are stated here, to be
compared with it. The published code holds neither, so their form is ours:
  region features   one vector per region, the mean of what lies in it: RoIAlign (arXiv 1703.06870) of the patch tokens for a box,
                    the mean of the groups whose centre lies in it for a box of a cloud; added to every query like a position
  region attention  the region's queries see the class token and the tokens in the region, nothing else
Where no token lies in a region, all of the input's count.

Shapes: B regions, I encoded inputs, g patches per side, G groups of points, T tokens without the class token, C token width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

BINS = 7  # RoIAlign's usual grid in a box; its mean is taken
SLACK = 1e-5  # of a box's diagonal: a centre this far out still lies in it


def cells_in_box(box: Tensor, grid: int) -> Tensor:
    """Patch cells, row by row, that a box [B, 4] (x1 y1 x2 y2 in [0, 1]) overlaps in more than an edge -> bool [B, g * g]."""
    cell = torch.arange(grid, device=box.device)
    x1, y1, x2, y2 = (box.float() * grid).unsqueeze(-1).unbind(dim=1)
    columns = (x1 < cell + 1) & (x2 > cell)
    rows = (y1 < cell + 1) & (y2 > cell)
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


def points_in_hull(points: Tensor, corners: Tensor) -> Tensor:
    """Whether points [B, G, 3] lie in the convex hull of corners [B, K, 3] (any order, any orientation) -> bool [B, G].

    A plane through three corners bounds the hull when all corners lie on one side of it; a point is in when no such plane has it
    on the other side.
    """
    corners, points = corners.float(), points.float()
    middle = corners.mean(dim=1, keepdim=True)
    corners, points = corners - middle, points - middle
    a, b, c = torch.combinations(torch.arange(corners.shape[1], device=corners.device), 3).unbind(dim=1)
    normals = F.normalize(torch.linalg.cross(corners[:, b] - corners[:, a], corners[:, c] - corners[:, a]), dim=-1)
    offset = (normals * corners[:, a]).sum(dim=-1, keepdim=True)
    of_corners = normals @ corners.transpose(1, 2) - offset  # signed distances [B, planes, K]
    of_points = normals @ points.transpose(1, 2) - offset
    slack = SLACK * (corners.amax(dim=1) - corners.amin(dim=1)).norm(dim=-1)[:, None, None]
    below, above = ((side <= slack).all(dim=-1, keepdim=True) for side in (of_corners, -of_corners))
    outside = (below & (of_points > slack)) | (above & (of_points < -slack))
    return ~outside.any(dim=1)


def corners_in_space(corners: Tensor) -> Tensor:
    """Published corners [B, 8, 3], whose extents of y and z have changed places, -> the corners of the box itself."""
    middle = corners.mean(dim=1, keepdim=True)
    return middle + (corners - middle)[..., [0, 2, 1]]


def all_if_none(mask: Tensor) -> Tensor:
    """The mask [B, T], all True in rows where it is True nowhere."""
    return mask | ~mask.any(dim=1, keepdim=True)


def pool_box(patches: Tensor, box: Tensor, index: Tensor | None) -> Tensor:
    """Mean RoIAlign feature of boxes [B, 4] in [0, 1] on patches [I, g * g, C] -> [B, C].

    `index` [B] says which of the I pictures a box lies on (None: box i on picture i).
    """
    grid = round(patches.shape[1] ** 0.5)
    picture = torch.arange(len(box), device=box.device) if index is None else index
    rois = torch.cat([picture[:, None].float(), box.float() * grid], dim=1)
    maps = patches.float().transpose(1, 2).unflatten(2, (grid, grid))
    return roi_align(maps, rois, output_size=BINS, sampling_ratio=2, aligned=True).mean(dim=(2, 3))


def pool_inside(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of the tokens [B, T, C] that the mask [B, T] marks (at least one per row) -> [B, C]."""
    share = mask.float() / mask.sum(dim=1, keepdim=True)
    return torch.einsum("bt,btc->bc", share, tokens.float())
