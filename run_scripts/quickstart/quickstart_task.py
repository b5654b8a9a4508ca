"""Captioning of the quickstart's generated data: beside the metrics of captions, the share of things that are named right.

Named under `imports:` by the evaluations beside this file, whose `run.task` is quickstart_captioning.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from lavis.common import dist_utils
from lavis.common.registry import registry
from lavis.evaluation import attributes
from lavis.tasks.base_task import Row
from lavis.tasks.captioning import CaptionTask

sys.path.append(str(Path(__file__).resolve().parent))
from quickstart_truth import ImageRegions, Objects, RoomObjects, Truth, read  # noqa: E402  (it lies beside this file)

logger = logging.getLogger("lavis.quickstart_task")
TRUTHS: dict[str, type[Truth]] = {
    "general_box_caption": ImageRegions,
    "pointcloud_caption": Objects,
    "scannet_refer": RoomObjects,
}


def accuracy(captions: dict[str, str], *, dataset: str, data: Path) -> float:
    """Share of the test things below a generated data folder that captions (by result id) name with every attribute; of whole
    images, the mean over them. OSError where the folder holds no truth."""
    if dataset == "coco_caption":
        return attributes.things_named(captions, ImageRegions(data).whole, vocabulary=ImageRegions.vocabulary)
    truth = TRUTHS[dataset](data)
    return attributes.attribute_accuracy(captions, truth.things, vocabulary=truth.vocabulary)


@registry.register_task("quickstart_captioning")
class QuickstartCaptionTask(CaptionTask):
    """Adds `attribute_accuracy` to the metrics of an evaluation, where the truth lies beside the annotation."""

    def after_evaluation(
        self, rows: list[Row], *, split_name: str, epoch: int | str, result_dir: Path, dataset: Any
    ) -> dict[str, Any]:
        metrics = super().after_evaluation(rows, split_name=split_name, epoch=epoch, result_dir=result_dir, dataset=dataset)
        found: dict[str, float] = {}
        if dist_utils.is_main_process():
            written = read(result_dir / f"{split_name}_epoch{epoch}.json")
            captions = {str(row["image_id"]): row["caption"] for row in written}
            try:
                share = accuracy(captions, dataset=dataset.name, data=Path(dataset.files[0]).parents[1])
                found["attribute_accuracy"] = share
            except (OSError, KeyError) as error:
                logger.warning(
                    "no attribute accuracy: the truth of the generated data is not beside %s (%s)", dataset.files[0], error
                )
        return {**metrics, **dist_utils.broadcast_object(found)}
