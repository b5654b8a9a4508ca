"""Small datasets in the real formats, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavis.processors import load_processor

SIZE = 16  # pixels a side after processing


def write_images(folder: Path, names: list[str], *, size: tuple[int, int] = (40, 30)) -> None:
    """Pictures of `size` (width, height), each of one colour that differs from the others'."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        pixels = np.full((size[1], size[0], 3), (7 * number) % 256, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def options(folder: Path, *ann_paths: Path, split: str = "train", **kwargs: Any) -> dict[str, Any]:
    """Arguments of an image dataset below `folder`."""
    defaults: dict[str, Any] = {
        "vis_processor": load_processor("general_box_caption_img_trainval", {"image_size": SIZE}),
        "text_processor": load_processor("blip_caption"),
        "vis_root": folder,
        "ann_paths": list(ann_paths),
        "name": "tiny",
        "split": split,
        "modality": "image",
    }
    return {**defaults, **kwargs}


def cloud_options(folder: Path, *ann_paths: Path, split: str = "train", **kwargs: Any) -> dict[str, Any]:
    """Arguments of a dataset of point clouds below `folder`."""
    defaults = {"vis_processor": load_processor("base_point_cloud"), "num_points": 8, "modality": "pointcloud"}
    return options(folder, *ann_paths, split=split, **{**defaults, **kwargs})


def write_object(folder: Path, object_id: str, points: Any, *, key: str = "arr_0") -> None:
    """A cloud in Objaverse's layout."""
    (folder / object_id).mkdir(parents=True, exist_ok=True)
    np.savez(folder / object_id / f"{object_id}_8192.npz", **{key: points})


def write_scene(folder: Path, scene: str, points: Any, boxes: Any) -> None:
    """A scene in ScanNet's prepared layout: points [P, 9] and boxes [K, 8]."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{scene}_aligned_vert.npy", points)
    np.save(folder / f"{scene}_aligned_bbox.npy", boxes)
