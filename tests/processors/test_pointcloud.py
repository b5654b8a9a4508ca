from __future__ import annotations

import numpy as np
import pytest
import torch

from lavis.processors import load_processor


def test_a_tensor_of_its_own() -> None:
    points = np.arange(12, dtype=np.float64).reshape(4, 3)
    processor = load_processor("base_point_cloud")
    cloud = processor(points)
    assert cloud.dtype == torch.float32 and torch.equal(cloud, torch.arange(12.0).view(4, 3))
    points[:] = 0
    assert cloud[3, 2] == 11
    assert processor.deterministic


@pytest.mark.parametrize("shape", [(3,), (4, 2), (1, 4, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"accepted: \[N, C\]"):
        load_processor("base_point_cloud")(np.zeros(shape))
