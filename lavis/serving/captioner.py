"""One model that answers for pictures and clouds, from several threads: captions of wholes and of regions, and questions.

What the frozen encoders gave for the last few pictures and clouds is kept, so that a further region of one costs no encoder
pass. Letters: N points, B regions.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lavis.datasets import cloud_geometry
from lavis.datasets.datasets.base_dataset import RecentlyUsed
from lavis.datasets.datasets.scanrefer import COLOR_SCALE, MEAN_COLOR
from lavis.serving.boxes import region_corners
from lavis.serving.substance import check_boxes, check_cloud

KEPT = 8  # pictures and clouds whose encoder tokens are kept
QUESTION = "Question: {} Short answer:"  # as published for visual questions

Encoded = dict[str, torch.Tensor]  # image_features, or pointcloud_features and pointcloud_centres


class Captioner:
    """A model in evaluation mode behind one lock.

    points: how many points the model reads of a cloud, by modality. decoding: what goes to `generate` where a call says nothing.
    """

    def __init__(
        self,
        model: Any,
        *,
        checkpoint: str | Path,
        points: Mapping[str, int] | None = None,
        decoding: Mapping[str, Any] | None = None,
        kept: int = KEPT,
    ) -> None:
        self.model = model.eval()
        self.checkpoint = Path(checkpoint)
        self.points = dict(points or {})
        self.decoding = dict(decoding or {})
        self._lock = threading.RLock()
        self._kept = RecentlyUsed(kept)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the model knows."""
        return tuple(self.model.specs)

    @property
    def description(self) -> str:
        """One line for people: the architecture, its size, what it knows, and the checkpoint."""
        size = self.model.show_n_params(return_str=True)
        return f"{self.model.cfg.arch}, {size} parameters ({', '.join(self.modalities)}), checkpoint {self.checkpoint}"

    # -- pictures -------------------------------------------------------------------------------------------------------------
    def caption_image(self, image: Image.Image, **decoding: Any) -> str:
        """A caption of a whole picture."""
        samples = {"modality": self.modality("image", None)}
        return self._generate(lambda: {**samples, **self._picture(image)}, decoding)[0]

    def caption_regions(self, image: Image.Image, boxes: Sequence[Sequence[float]], **decoding: Any) -> list[str]:
        """Captions of boxes (x1, y1, x2, y2 in pixels), as `model.describe` gives them. ValueError for a box without area."""
        if not len(boxes):
            return []
        samples = self.model.picture_samples(image.size, boxes, modality=self.modality("image", "box"))
        return self._generate(lambda: {**samples, **self._picture(image)}, decoding)

    def ask(self, image: Image.Image, question: str, box: Sequence[float] | None = None, **kwargs: Any) -> str:
        """The answer to a question on a picture, or on a box of it. `kwargs`: those of `predict_answers`."""
        if not question.strip():
            raise ValueError("the question is empty")
        modality = self.modality("image", None if box is None else "box")
        samples = self.model.picture_samples(image.size, None if box is None else [box], modality=modality)
        with self._lock:
            given = {**samples, **self._picture(image), "text_input": [question]}
            return self.model.predict_answers(given, **{"prompt": QUESTION, **kwargs})[0].strip()

    # -- clouds ---------------------------------------------------------------------------------------------------------------
    def caption_cloud(self, points: ArrayLike, **decoding: Any) -> str:
        """A caption of an object, points [N, 3 or 6] in any unit: it is centred and scaled into the unit sphere."""
        samples = {"modality": self.modality("pointcloud", None)}
        cloud = self.object_cloud(points)
        return self._generate(lambda: {**samples, **self._cloud(cloud)}, decoding)[0]

    def caption_cloud_regions(self, points: ArrayLike, boxes: Sequence[ArrayLike], **decoding: Any) -> list[str]:
        """Captions of boxes in a scene, points [N, 3 or 6] in metres, z up. A box: cx, cy, cz, dx, dy, dz and perhaps its heading
        in radians about z, or its 8 corners [8, 3], all in metres. ValueError for a box without points in it."""
        if not len(boxes):
            return []
        corners = np.stack([region_corners(box) for box in boxes])
        samples = {
            "modality": self.modality("pointcloud", "corners"),
            "box_corners": torch.from_numpy(corners),
            "pointcloud_index": torch.zeros(len(corners), dtype=torch.long),
        }
        cloud = self.scene_cloud(points)
        check_boxes(points, boxes)
        return self._generate(lambda: {**samples, **self._cloud(cloud)}, decoding)

    def object_cloud(self, points: ArrayLike) -> NDArray[np.float32]:
        """An object's points as the model reads them, [N, C] in the unit sphere. ValueError for what is no cloud, or too little
        of one."""
        name = self.modality("pointcloud", None)
        cloud = cloud_geometry.as_cloud(points, use_color=self._with_colour)
        check_cloud(cloud)
        return cloud_geometry.unit_sphere(fitted(cloud, self.points.get(name))).astype(np.float32)

    def scene_cloud(self, points: ArrayLike) -> NDArray[np.float32]:
        """A scene's points as the model reads them, [N, C] in metres; colours less ScanNet's mean. ValueError likewise."""
        name = self.modality("pointcloud", "corners")
        cloud = cloud_geometry.as_cloud(points, use_color=self._with_colour)
        check_cloud(cloud)
        cloud = fitted(cloud, self.points.get(name))
        if self._with_colour:
            cloud[:, 3:] = (cloud[:, 3:] - np.array(MEAN_COLOR)) / COLOR_SCALE
        return cloud

    # -- what all stand on ------------------------------------------------------------------------------------------------------
    def modality(self, encoder: str, region: str | None) -> str:
        """The first modality on `encoder` (image, pointcloud) whose region kind is `region`; ValueError says what there is."""
        for spec in self.model.specs.values():
            if spec.encoder == encoder and (self.model.branch(spec.name).region is not None) == (region is not None):
                return spec.name
        what = {"image": "pictures", "pointcloud": "point clouds"}[encoder]
        kind = "regions of" if region else "whole"
        raise ValueError(f"this model knows no {kind} {what}; it knows {', '.join(self.modalities)}")

    def generate(self, samples: Mapping[str, Any], **decoding: Any) -> list[str]:
        """Captions of a batch of samples, as the model's `generate`, behind the lock."""
        return self._generate(lambda: dict(samples), decoding)

    def _generate(self, samples: Callable[[], dict[str, Any]], decoding: Mapping[str, Any]) -> list[str]:
        with self._lock:
            captions = self.model.generate(samples(), **{**self.decoding, **decoding})
        return [caption.strip() for caption in captions]

    @property
    def _with_colour(self) -> bool:
        return bool(self.model.cfg.pointbert.get("with_color"))

    def _picture(self, image: Image.Image) -> Encoded:
        """What the encoder says of a picture, kept from before where it is the same one. Call it behind the lock."""
        rgb = image.convert("RGB")
        key = f"image {rgb.size} {hashlib.blake2b(rgb.tobytes()).hexdigest()}"
        return self._kept.get(key, lambda: self.encoded("image", self.model.picture(rgb)))

    def _cloud(self, cloud: NDArray[np.float32]) -> Encoded:
        """The same of a cloud [N, C] as the model reads it."""
        key = f"cloud {cloud.shape} {hashlib.blake2b(np.ascontiguousarray(cloud).tobytes()).hexdigest()}"
        return self._kept.get(key, lambda: self.encoded("pointcloud", torch.from_numpy(cloud).unsqueeze(0)))

    @torch.no_grad()
    def encoded(self, encoder: str, inputs: torch.Tensor) -> Encoded:
        """What an encoder says of pictures [I, 3, S, S] or clouds [I, N, C], as samples take it in place of them."""
        with self._lock:
            if encoder == "image":
                return {"image_features": self.model.encoders["image"].compute(inputs)}
            found = self.model.encoders["pointcloud"].compute(inputs)
            return {"pointcloud_features": found.embeds, "pointcloud_centres": found.centres}


def fitted(points: NDArray[np.float32], count: int | None, *, seed: int = 0) -> NDArray[np.float32]:
    """`count` of the points [P, C]: an even draw without repeats, or all of them and as many repeats as it takes. Always the
    same draw; None: the points as they are."""
    if count is None or len(points) == count:
        return points.copy()
    if len(points) > count:
        return points[np.sort(np.random.RandomState(seed).choice(len(points), count, replace=False))]
    return points[np.arange(count) % len(points)]
