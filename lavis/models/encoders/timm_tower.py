"""Any model of timm as the vision tower: `vit_model: timm:NAME`.

Tokens come from timm's `forward_features`: those of a transformer with its class tokens in front, the cells of a convolutional
map row by row. Weights come from a file in timm's names (`vit.pretrained`); nothing is downloaded. The image must be normalised
as the model expects it (`vis_processor.<split>.mean` and `std`).

Shapes: B images, S image side, T tokens, C width.
"""

from __future__ import annotations

from collections.abc import Mapping

import timm
from omegaconf import DictConfig
from torch import Tensor, nn

from lavis.common.errors import ConfigError, did_you_mean
from lavis.models.encoders.eva_vit import DropRatesOnCpu
from lavis.models.qformer.recompute import recompute_layers

PREFIX = "timm:"
HEADS = ("head.", "fc.", "classifier.", "fc_norm.", "head_dist.")  # what classifies is not part of the tower


class TimmTower(nn.Module):
    """image [B, 3, S, S] -> tokens [B, T, C]."""

    def __init__(self, model: nn.Module, *, img_size: int) -> None:
        super().__init__()
        self.model, self.img_size = model, img_size
        self.width = int(getattr(model, "num_features", 0))
        self.num_prefix_tokens = int(getattr(model, "num_prefix_tokens", 0))

    def forward(self, image: Tensor) -> Tensor:
        if image.dim() != 4 or tuple(image.shape[-2:]) != (self.img_size, self.img_size):
            raise ValueError(
                f"image has shape {tuple(image.shape)}; the tower was built for [B, 3, {self.img_size}, {self.img_size}]"
            )
        features: Tensor = self.model.forward_features(image)  # type: ignore[operator]
        if features.dim() == 3:
            return features
        channels_last = features.shape[-1] == self.width and features.shape[1] != self.width
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)

    def fit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict in timm's names under this module's, without what classifies."""
        return {f"model.{name}": tensor for name, tensor in state.items() if not name.startswith(HEADS)}


def timm_tower(vit: DictConfig) -> TimmTower:
    """The tower that `model.vit` names, with random weights. ConfigError for an unknown name or another width."""
    name = str(vit.vit_model).removeprefix(PREFIX)
    if not timm.is_model(name):
        raise ConfigError(f"model.vit.vit_model: timm has no model {name!r}.{did_you_mean(name, timm.list_models())}")
    with DropRatesOnCpu():
        try:
            model = timm.create_model(
                name, pretrained=False, num_classes=0, drop_path_rate=vit.drop_path_rate, img_size=vit.img_size
            )
        except TypeError:  # a convolutional model takes any image size
            model = timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=vit.drop_path_rate)
    tower = TimmTower(model, img_size=int(vit.img_size))
    if tower.width != vit.embed_dim:
        raise ConfigError(
            f"model.vit.embed_dim is {vit.embed_dim}, but {vit.vit_model} gives tokens {tower.width} wide; "
            f"set vit.embed_dim and qformer.input_dim to {tower.width}"
        )
    if vit.use_grad_checkpoint:
        recompute_layers(model)
    return tower
