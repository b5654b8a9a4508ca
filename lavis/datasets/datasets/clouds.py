"""What datasets of point clouds share: arrays read from disk, and samples made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavis.common.errors import ConfigError, listed
from lavis.datasets.datasets.base_dataset import BadSample, Row, Sample
from lavis.datasets.datasets.captions import CaptionedDataset
from lavis.processors.point_groups import point_groups


def read_array(path: Path, *, what: str) -> NDArray[Any]:
    """The array of a .npy file, or `arr_0` of a .npz file. BadSample where it is missing, broken or not there."""
    if not path.is_file():
        raise BadSample(f"missing {what}: {path}")
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            names = list(loaded.files)
            if "arr_0" in names:
                array: NDArray[Any] = loaded["arr_0"]
                return array
    except Exception as error:  # a broken archive or header raises almost anything; it costs this row only
        why = f"{type(error).__name__}: {error}" if path.stat().st_size else "the file is empty"
        raise BadSample(f"broken {what}: {path} ({why})") from error
    raise BadSample(f"no arr_0: {path} holds {listed(names)}")


class CloudDataset(CaptionedDataset):
    """Rows that name a point cloud.

    A sample's pointcloud has `num_points` points of x, y, z and, with `use_color`, red, green and blue. `augment` has
    an effect in training only.
    """

    up: ClassVar[str] = "z"  # the axis that points up

    def __init__(self, *, num_points: int, use_color: bool = False, augment: bool = False, name: str, **kwargs: Any) -> None:
        if isinstance(num_points, bool) or not isinstance(num_points, int) or num_points < 1:
            raise ConfigError(f"dataset {name}: the number of points is {num_points!r}; accepted: an integer of 1 or more")
        self.num_points, self.use_color, self.augment = num_points, bool(use_color), bool(augment) and self.training
        self._group_sizes: tuple[int, int] | None = None  # how many groups, and of how many points
        self._grouped: tuple[Tensor, int, Tensor] | None = None  # the last cloud, where its sampling began, its groups
        super().__init__(name=name, **kwargs)

    @property
    def columns(self) -> int:
        """C of a sample's cloud."""
        return 6 if self.use_color else 3

    def cloud_of(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """What row `index` shows, for people: all points [P, 3] of its file in the file's unit, or [P, 6] with red, green and
        blue of 0..1; and the corners [8, 3] of its box where they are (not as models read them, see
        `cloud_geometry.corners_of`), or None. BadSample where it cannot be read."""
        raise NotImplementedError

    def sample(self, row: Row, points: NDArray[Any], rng: np.random.RandomState) -> Sample:
        """The sample of a row and its points [N, C]."""
        cloud = self.vis_processor(points.astype(np.float32, copy=False), rng=rng)
        sample = {"pointcloud": cloud, "cloud_key": str(row[self.source]), **self.load_text(row, rng)}
        return sample | self._groups_of(cloud, rng)

    def group_clouds(self, *, num_group: int, group_size: int) -> None:
        """From now on samples hold `point_groups` [G, 1 + K], as `lavis.processors.point_groups` finds them, so that the
        model need not. Sampling begins at a point drawn for the sample in training, at point 0 in evaluation."""
        self._group_sizes = num_group, group_size

    def _groups_of(self, cloud: Tensor, rng: np.random.RandomState) -> Sample:
        """The groups of a cloud, where they are asked for. Those of the last are kept: in evaluation the next object is often in
        the same scene."""
        if self._group_sizes is None:
            return {}
        start = int(rng.randint(len(cloud))) if self.training else 0
        if self._grouped is None or self._grouped[1] != start or not torch.equal(self._grouped[0], cloud):
            try:
                found = point_groups(cloud.numpy(), *self._group_sizes, start=start)
            except ValueError as error:
                hint = "accepted: larger clouds, or run.group_in_workers: false"
                raise ConfigError(f"dataset {self.name}: {error}; {hint}") from error
            self._grouped = cloud, start, torch.from_numpy(found)
        return {"point_groups": self._grouped[2]}

    def placeholder(self, index: int) -> Sample:
        """A cloud of different points, so that no encoder meets a division by zero; all placeholders share it."""
        rng = np.random.RandomState(0)
        points = rng.uniform(-1, 1, (self.num_points, self.columns)).astype(np.float32)
        cloud = self.vis_processor(points, rng=rng)
        return {"pointcloud": cloud, "cloud_key": "", "text_input": "", "image_id": self.rows[index]["image_id"]}
