from __future__ import annotations

import numpy as np
import pytest

from lavis.datasets import geometry


def test_conversions_keep_leading_axes() -> None:
    boxes = [[1.0, 2.0, 3.0, 4.0], [0.5, 0.0, 10.0, 20.0]]
    assert geometry.xywh_to_xyxy(boxes).tolist() == [[1, 2, 4, 6], [0.5, 0, 10.5, 20]]
    assert geometry.xywh_to_xyxy(boxes[0]).shape == (4,)
    assert geometry.clamp([[-5, 3, 200, 50]], 100, 40).tolist() == [[0, 3, 100, 40]]
    assert geometry.truncate([1.9, 0.1, 2.0, 3.999]).tolist() == [1, 0, 2, 3]
    assert geometry.normalise([10, 10, 50, 20], 100, 40).tolist() == [0.1, 0.25, 0.5, 0.5]


def test_published_order_of_operations() -> None:
    box = geometry.pixel_boxes_to_normalised(geometry.xywh_to_xyxy([10.7, 5.2, 50.9, 30.4]), 120, 80)
    assert box.dtype == np.float32
    np.testing.assert_allclose(box, [10 / 120, 5 / 80, 61 / 120, 35 / 80], rtol=1e-6)
    whole = geometry.pixel_boxes_to_normalised([[-3, 20, 497, 100], [0, 0, 120, 80]], 120, 80)
    assert whole.tolist() == [[0, 0.25, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize("box", [[5.2, 1, 5.9, 20], [130, 1, 150, 20], [5, 5, 5, 9], [9, 5, 5, 9]])
def test_no_area_left(box: list[float]) -> None:
    with pytest.raises(ValueError, match=r"no area left in a picture of 120 x 80 pixels"):
        geometry.pixel_boxes_to_normalised([[0.0, 0.0, 10.0, 10.0], box], 120, 80)


@pytest.mark.parametrize("box", [[1, 2, 3], ["1", "2", "3", "4"], [1, 2, 3, None], 7, [[1], [2, 3]]])
def test_not_a_box(box: object) -> None:
    with pytest.raises(ValueError, match="is not 4 numbers"):
        geometry.as_boxes(box)  # type: ignore[arg-type]


def test_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        geometry.as_boxes([1, 2, float("nan"), 3])


def test_region_id() -> None:
    assert geometry.region_id("a.png", [10.7, 5.2, 50.9, 30.4]) == "a.png_box_10_5_50_30"
    assert geometry.region_id(7, [-3.5, 20, 500, 80]) == "7_box_-3_20_500_80"
    with pytest.raises(ValueError, match="not one box"):
        geometry.region_id(7, [[1, 2, 3, 4]])
