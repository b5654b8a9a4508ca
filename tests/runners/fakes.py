"""A model, datasets and builders small enough to train in milliseconds; registered by import, or by a YAML's
``imports``.

The model has what the runners rely on: a frozen base, a shared part, one head per modality, dropout, a loss over the
gathered batch, and a random draw that must be the same on every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lavis.common.config import Config
from lavis.common.dist_utils import gather_with_grad
from lavis.common.files import replacing
from lavis.common.registry import registry
from lavis.common.seeding import sample_rng, shared_rng

WIDTH = 6


@registry.register_model("fake_model")
class FakeModel(nn.Module):
    def __init__(self, *, dropout: float = 0.1, random_base: bool = False) -> None:
        super().__init__()
        self.random_base = random_base
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("image", "image_region", "unused")})
        self.norm = nn.BatchNorm1d(WIDTH, affine=True)
        self.dropout = nn.Dropout(dropout)

    @classmethod
    def from_config(cls, cfg: Any) -> FakeModel:
        return cls(dropout=cfg.get("dropout", 0.1), random_base=cfg.get("random_base", False))

    def forward(self, samples: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        x = self.dropout(torch.tanh(self.shared(self.base(samples["image"]))))
        feature = gather_with_grad(F.normalize(self.heads[samples["modality"]](x), dim=-1))
        target = gather_with_grad(F.normalize(samples["target"], dim=-1))
        logits = feature @ target.t() / 0.5
        labels = torch.arange(len(feature), device=feature.device)
        with shared_rng():
            negative = torch.multinomial(torch.softmax(logits, dim=1).detach() + 1e-4, 1)[:, 0]
        loss_itc = F.cross_entropy(logits, labels)
        loss_itm = (feature * target[negative]).sum(-1).mean()
        loss_reg = F.mse_loss(self.norm.weight * x, samples["target"])
        return {"loss": loss_itc + loss_itm + loss_reg, "loss_itc": loss_itc, "loss_itm": loss_itm, "loss_reg": loss_reg}

    def generate(self, samples: Mapping[str, Any], **kwargs: Any) -> list[str]:
        self.asked = {**kwargs, "prompt": samples.get("prompt")}
        return [f"thing {round(float(row.sum()))}" for row in samples["image"]]

    def get_optimizer_params(self, weight_decay: float, lr_scale: float = 1.0) -> list[dict[str, Any]]:
        params = [param for param in self.parameters() if param.requires_grad]
        return [{"params": params, "weight_decay": weight_decay, "lr_scale": lr_scale}]

    def trainable_state_dict(self) -> dict[str, torch.Tensor]:
        return {name: value.detach() for name, value in self.state_dict().items() if not name.startswith("base.")}

    def frozen_bases(self) -> dict[str, dict[str, str]]:
        return {"base": {"path": "nowhere", "sha256": str(float(self.base.weight.sum()))}}

    def random_parts(self, *, for_evaluation: bool = False) -> list[str]:
        return ["base"] if self.random_base else []


class FakeDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Row i: a noisy one-hot of i (the noise is its augmentation). In training row 3 is replaced and says so; in
    evaluation row 1 cannot be read. ``image_id`` repeats every ``ids`` rows."""

    share_inputs = False

    def __init__(self, name: str, split: str, *, modality: str, size: int, ids: int = 1000) -> None:
        self.name, self.split, self.modality, self.size, self.ids = name, split, modality, size, ids
        self.seed = 0
        self.dropped = [("rows[99]", "empty caption")]

    def __len__(self) -> int:
        return self.size

    def set_seed(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, key: Any) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        noise = sample_rng(self.seed, epoch, index).randn(WIDTH) if self.split == "train" else 0
        image = torch.eye(WIDTH)[index % WIDTH] + 0.1 * torch.as_tensor(noise, dtype=torch.float32)
        skipped = [(f"rows[{index}]", "broken image: gone.jpg")] if self.split == "train" and index == 3 else []
        return {
            "image": image,
            "target": torch.eye(WIDTH)[(index + 1) % WIDTH],
            "modality": self.modality,
            "image_id": index % self.ids,
            "skipped": skipped,
            "readable": self.split == "train" or index != 1,
        }

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "image": torch.stack([sample["image"] for sample in samples]),
            "target": torch.stack([sample["target"] for sample in samples]),
            "modality": self.modality,
            "image_id": [sample["image_id"] for sample in samples],
            "skipped": [entry for sample in samples for entry in sample["skipped"]],
            "readable": [sample["readable"] for sample in samples],
        }

    def references(self) -> list[tuple[int, str]]:
        return [(index % self.ids, "thing 1") for index in range(self.size)]


class FakeBuilder:
    modality = "image"

    def __init__(self, cfg: Any, **kwargs: Any) -> None:
        self.cfg = cfg

    def build_datasets(self, *, splits: Iterable[str] | None = None) -> dict[str, FakeDataset]:
        sizes = {"train": self.cfg.get("size", 24), "val": 7, "test": 5}
        return {
            split: FakeDataset(f"fake_{self.modality}", split, modality=self.modality, size=sizes[split])
            for split in (splits or sizes)
        }


@registry.register_builder("fake_image")
class FakeImageBuilder(FakeBuilder):
    pass


@registry.register_builder("fake_region")
class FakeRegionBuilder(FakeBuilder):
    modality = "image_region"


@registry.register_builder("fake_image_more")
class FakeMoreBuilder(FakeBuilder):
    pass


def config(folder: Path, **run: Any) -> Config:
    """A configuration of two fake datasets whose output goes to ``folder``."""
    path = folder.parent / f"{folder.name}.yaml"
    with replacing(path, durable=False) as file:  # every process of a test comes here, while others read
        file.write(b"model: {arch: fake_model}\ndatasets: {fake_image: {size: 24}, fake_region: {size: 16}}\n")
    defaults = {
        "task": "regionblip_pretrain",
        "output_dir": folder,
        "max_epoch": 2,
        "batch_size_train": 4,
        "batch_size_eval": 3,
        "num_workers": 0,
        "log_freq": 2,
        "init_lr": 0.01,
        "warmup_steps": 3,
        "tensorboard": "false",
    }
    keys = {**{f"run.{key}": value for key, value in {**defaults, **run}.items() if "__" not in key}}
    keys |= {key.replace("__", "."): value for key, value in run.items() if "__" in key}
    return Config.from_file(path, options=[f"{key}={value}" for key, value in keys.items()])
