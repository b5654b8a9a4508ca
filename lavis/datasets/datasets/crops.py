"""Captions of regions that were cut out of their pictures: the builder refcoco_crop_caption.

Rows as for coco_caption, {"image": path, "caption": [str, ...], "image_id": str}, except that the id in results is the row's
`image_id`: the digits that end a crop's file name are a corner of its box. Layout after RegionBLIP (arXiv 2308.02299, code
mightyzau/RegionBLIP), whose BLIP-2 baseline it is.
"""

from __future__ import annotations

from lavis.common.registry import registry
from lavis.datasets.datasets.base_dataset import Row
from lavis.datasets.datasets.captions import CaptionEvalDataset, CocoCaptionBuilder, id_of


class CropEvalDataset(CaptionEvalDataset):
    """Evaluation: one sample per crop, all its captions as references. No row is left out."""

    def parse(self, row: Row, label: str) -> Row:
        parsed = super().parse(row, label)
        return {**parsed, "image_id": id_of(row, parsed["image_id"])}


@registry.register_builder("refcoco_crop_caption")
class RefcocoCropCaptionBuilder(CocoCaptionBuilder):
    """Regions of RefCOCO as pictures of their own, as tools/prepare_blip2_zeroshot_RefcocoCrop.py writes them."""

    name = "refcoco_crop_caption"
    eval_dataset_cls = CropEvalDataset
    DATASET_CONFIG_DICT = {"default": "configs/datasets/refcoco_crop_caption.yaml"}
