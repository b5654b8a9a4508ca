"""Modality names, and the published RegionBLIP task names that stand for them."""

from __future__ import annotations

TASK_NAMES = {
    "task_alignLLM_ImageText": "image",
    "task_alignLLM_ImageRegionText_posembed": "image_region",
    "task_alignLLM_PointcloudText": "pointcloud",
    "task_alignLLM_PointcloudRegionText_posembed": "pointcloud_region",
}
MODALITIES = tuple(TASK_NAMES.values())
OLDER_TASK_NAMES = {"task_alignLLM_3d_cloudtext": "pointcloud"}  # in the published evaluation files of Objaverse


def modality_of(name: str) -> str:
    """The modality of a published task name; any other name is returned unchanged."""
    return {**OLDER_TASK_NAMES, **TASK_NAMES}.get(name, name)


def task_name_of(modality: str) -> str:
    """The published task name of a modality; unchanged where there is none."""
    return {value: key for key, value in TASK_NAMES.items()}.get(modality, modality)
