"""Captions and what they describe, to be found by each other: the builders coco_retrieval, flickr30k and objaverse_retrieval.

Rows are those of the captions' builders: COCO's of captions.py (LAVIS' layout, salesforce/LAVIS,
lavis/datasets/datasets/retrieval_datasets.py) and Cap3D's of objaverse.py. Training is theirs too. In evaluation a dataset also
has LAVIS' four tables, over all captions of the split:

text: the processed captions; image: what each sample is read from; txt2img: {text: sample}; img2txt: {sample: [text, ...]}.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from lavis.datasets.datasets.captions import CaptionDataset, CaptionedDataset, CaptionEvalDataset
from lavis.datasets.datasets.objaverse import ObjectCaptionDataset, ObjectCaptionEvalDataset, PointcloudCaptionBuilder


class RetrievalTables(CaptionedDataset):
    """The four tables of an evaluation; captions of which processing leaves nothing are not asked for."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.text: list[str] = []
        self.image: list[Any] = []
        self.txt2img: dict[int, int] = {}
        self.img2txt: dict[int, list[int]] = {}
        rng = np.random.RandomState(0)
        for number, row in enumerate(self.rows):
            self.image.append(row[self.source])
            self.img2txt[number] = []
            for caption in row["captions"]:
                if text := self.text_processor(caption, rng=rng):
                    self.img2txt[number].append(len(self.text))
                    self.txt2img[len(self.text)] = number
                    self.text.append(text)


class PictureRetrievalDataset(RetrievalTables, CaptionEvalDataset):
    """Evaluation: one sample per picture."""


class ObjectRetrievalDataset(RetrievalTables, ObjectCaptionEvalDataset):
    """Evaluation: one sample per object."""


@registry.register_builder("coco_retrieval")
class CocoRetrievalBuilder(BaseDatasetBuilder):
    """COCO's captions and pictures, or any in their layout."""

    name = "coco_retrieval"
    train_dataset_cls = CaptionDataset
    eval_dataset_cls = PictureRetrievalDataset
    DATASET_CONFIG_DICT = {"default": "configs/datasets/coco_retrieval.yaml"}


@registry.register_builder("flickr30k")
class Flickr30kRetrievalBuilder(CocoRetrievalBuilder):
    """Flickr30k in the same layout."""

    name = "flickr30k"
    DATASET_CONFIG_DICT = {"default": "configs/datasets/flickr30k.yaml"}


@registry.register_builder("objaverse_retrieval")
class ObjaverseRetrievalBuilder(PointcloudCaptionBuilder):
    """Objaverse's objects and Cap3D's captions."""

    name = "objaverse_retrieval"
    train_dataset_cls = ObjectCaptionDataset
    eval_dataset_cls = ObjectRetrievalDataset
    DATASET_CONFIG_DICT = {"default": "configs/datasets/objaverse_retrieval.yaml"}
