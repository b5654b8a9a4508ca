"""Every file that the configurations of run_scripts name, generated small: names, folders and formats are the real ones.

`build(folder)` writes `folder/data` and `folder/weights`, the two folders that run_scripts/README.md describes. Where a
converter makes a file, the raw download is generated and the converter is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.miniature import clouds, pictures, weights

LLMS = {"opt-2.7b": "opt-2.7b", "opt-6.7b": "opt-6.7b", "t5-xl": "flan-t5-xl", "t5-xxl": "flan-t5-xxl"}  # MODEL -> folder


@dataclass(frozen=True)
class Miniature:
    """What was built. `ids`: {dataset: the ids that an evaluation of it must have results for}, known from the generator."""

    root: Path
    ids: dict[str, set[Any]]

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    def environment(self, size: str) -> dict[str, str]:
        """The variables of run_scripts/README.md for a model of this size."""
        llm = str(self.weights / LLMS[size])
        return {
            "MODEL": size,
            "WEIGHTS": str(self.weights),
            "DATA": str(self.data),
            "BERT": str(self.weights / "bert-base-uncased"),
            "T5" if size.startswith("t5") else "OPT": llm,
        }

    def own_regions(self) -> dict[str, str]:
        """What train/regions.yaml and train/region_shards.yaml ask for beside."""
        return {
            "REGIONS": str(self.data / "Refer" / "refcoco" / "Refcoco_train.json"),
            "IMAGES": str(self.data / "Refer" / "images"),
            "EVA_VIT": str(self.weights / "eva_vit_g.pth"),
            "BLIP2": str(self.weights / "blip2_pretrained_opt2.7b.pth"),
            "REGION_SHARDS": str(self.data / "shards" / "regions"),
            "LAION": str(self.data / "shards" / "captions"),
        }


def build(root: Path) -> Miniature:
    """Generate everything below `root`."""
    data = root / "data"
    ids: dict[str, set[Any]] = {}
    for part in (pictures.coco, pictures.vqav2, pictures.okvqa, pictures.gqa, pictures.refer, pictures.crops, pictures.shards):
        ids |= part(data)
    for part in (clouds.objaverse, clouds.scannet, clouds.modelnet40):
        ids |= part(data)
    weights.write(root / "weights")
    return Miniature(root, ids)
