from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from lavis.common.errors import ConfigError
from lavis.datasets.datasets.regions import RegionDataset, RegionEvalDataset
from lavis.processors import load_processor
from tests.datasets.files import options, write_images, write_json
from tests.parity import count_records, parity_dir


def region(tmp_path: Path, *rows: dict[str, object], name: str = "Refcoco_test.json") -> Path:
    return write_json(tmp_path / name, list(rows))


def row(image: str, bbox: object, caption: str = "a thing") -> dict[str, object]:
    return {"image": image, "image_id": Path(image).stem, "bbox": bbox, "caption": caption}


@pytest.mark.parametrize("cls", [RegionDataset, RegionEvalDataset])
def test_recorded_items(tmp_path: Path, cls: type[RegionDataset]) -> None:
    folder = parity_dir() / "regionblip"
    records = json.loads((folder / "data_items.json").read_text())
    arrays = load_file(folder / "data_items.safetensors")
    Image.fromarray(arrays["region/in_uint8"]).save(tmp_path / "a.png")
    keys = ("region0", "region1")
    ann = region(
        tmp_path,
        *(
            {
                "image": "a.png",
                "image_id": records[key]["image_id"],
                "bbox": records[key]["bbox_xywh"],
                "caption": records[key]["raw_caption"],
            }
            for key in keys
        ),
    )
    processor = load_processor("general_box_caption_img_trainval", {"image_size": 56})
    dataset = cls(**options(tmp_path, ann, vis_processor=processor))
    for index, key in enumerate(keys):
        sample = dataset[index]
        np.testing.assert_allclose(sample["box"], arrays[f"{key}/box"], atol=1e-6, rtol=0)
        np.testing.assert_allclose(sample["image"], arrays[f"{key}/image"], atol=1e-6, rtol=0)
        assert sample["text_input"] == records[key]["caption"]
        expected = {RegionDataset: "a.png", RegionEvalDataset: "a.png_box_10_5_50_30"}[cls]
        assert index or sample["image_id"] == expected
    count_records(len(keys))


def test_training_rows(tmp_path: Path) -> None:
    write_images(tmp_path, ["1.png"])
    ann = region(
        tmp_path,
        row("1.png", [1, 2, 10, 10], "One"),
        row("1.png", [1, 2, 10, 10], "Other words"),
        row("1.png", [1, 2, 10], "short"),
        row("1.png", [1, 2, 0, 10], "flat"),
        row("1.png", "box", "text"),
        {"image": "1.png", "caption": "no box"},
        row("1.png", [100, 2, 10, 10], "outside"),
        row("1.png", [5.2, 2, 0.5, 10], "thinner than a pixel"),
    )
    dataset = RegionDataset(**options(tmp_path, ann))
    assert len(dataset) == 4
    kinds = [reason.split(":")[0] for _, reason in dataset.dropped]
    assert kinds == ["malformed bbox", "empty bbox", "malformed bbox", "missing key"]
    for index in (2, 3):
        sample = dataset[index]
        assert "no area left in a picture of 40 x 30 pixels" in sample["skipped"][0][1]
        assert sample["text_input"] in ("one", "other words")
    box = dataset[0]["box"]
    assert box.dtype == torch.float32
    np.testing.assert_allclose(box, [1 / 40, 2 / 30, 11 / 40, 12 / 30], rtol=1e-6)


def test_evaluation_one_sample_per_region_and_every_expression(tmp_path: Path) -> None:
    write_images(tmp_path, ["1.png", "2.png"])
    ann = region(
        tmp_path,
        row("1.png", [1, 2, 10, 10], "One"),
        row("2.png", [1, 2, 10, 10], "two"),
        row("1.png", [1.4, 2.9, 10, 10], "Same region"),
        row("1.png", [3, 2, 10, 10], ""),
    )
    dataset = RegionEvalDataset(**options(tmp_path, ann, split="test"))
    ids = [dataset[i]["image_id"] for i in range(len(dataset))]
    assert ids == ["1_box_1_2_10_10", "1_box_3_2_10_10", "2_box_1_2_10_10"], "regions of a picture are neighbours"
    assert dataset.references() == [
        ("1_box_1_2_10_10", "One"),
        ("1_box_1_2_10_10", "Same region"),
        ("1_box_3_2_10_10", ""),
        ("2_box_1_2_10_10", "two"),
    ]
    batch = dataset.collater([dataset[i] for i in range(3)])
    assert batch["image"].shape[0] == 2 and batch["image_index"].tolist() == [0, 0, 1]
    assert batch["box"].shape == (3, 4) and batch["readable"] == [True] * 3
    dataset.share_inputs = False
    plain = dataset.collater([dataset[i] for i in range(3)])
    assert plain["image"].shape[0] == 3 and "image_index" not in plain
    assert torch.equal(batch["image"][batch["image_index"]], plain["image"])


def test_evaluation_never_leaves_a_row_out(tmp_path: Path) -> None:
    write_images(tmp_path, ["1.png"])
    ann = region(
        tmp_path,
        row("1.png", [1, 2, 10, 10]),
        row("gone.png", [1, 2, 10, 10]),
        row("1.png", [90, 2, 10, 10]),
        row("1.png", [1, 2, 0, 0]),
        row("1.png", [1, 2]),
        {"image_id": "x", "bbox": [1, 2, 3, 4], "caption": "no picture named"},
    )
    dataset = RegionEvalDataset(**options(tmp_path, ann, split="test"))
    dataset.check_usable()
    batch = dataset.collater([dataset[i] for i in range(len(dataset))])
    ids = dict(zip(batch["image_id"], batch["readable"], strict=True))
    assert ids == {
        "1_box_1_2_10_10": True,
        "1_box_90_2_10_10": False,
        "1_box_1_2_0_0": False,
        "1_box_Refcoco_test.json[4]": False,
        "gone_box_1_2_10_10": False,
        "x_box_1_2_3_4": False,
    }
    assert {image_id for image_id, _ in dataset.references()} == set(ids)
    assert batch["image"].shape[0] == 2, "the unreadable ones share one zero picture"
    unread = [i for i, ok in enumerate(batch["readable"]) if not ok]
    assert not batch["image"][batch["image_index"][unread]].any()
    assert batch["box"][unread[0]].tolist() == [0, 0, 1, 1] and len(batch["skipped"]) == 5


def test_processors_that_move_the_frame_are_refused(tmp_path: Path) -> None:
    processor = load_processor("blip_image_train", {"image_size": 16})
    with pytest.raises(ConfigError, match="BlipTrainProcessor crops or flips"):
        RegionDataset(**options(tmp_path, tmp_path / "absent.json", vis_processor=processor))
