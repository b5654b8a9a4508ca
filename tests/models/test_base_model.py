"""What every model offers: on which parameters weight decay acts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lavis.models import load_model_from_config
from lavis.models.base_model import BaseModel
from tests import tiny

NAMES = ("walnut", "subnet", "debiased")  # "ln", "bn" and "bias" are within them
ENTRY = {"encoder": "image", "qformer": "Qformer", "region": "box", "losses": {"lm": 1.0, "llm": 1.0}}


class Toy(BaseModel):
    """A matrix per modality, and what is never decayed."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.ModuleDict({name: nn.Linear(2, 3) for name in NAMES})
        self.tokens = nn.ParameterDict({name: nn.Parameter(torch.zeros(1, 2, 3)) for name in NAMES})
        self.ln_vision = nn.LayerNorm((4, 3))  # its weight is a matrix
        self.bn = nn.BatchNorm1d(3)
        self.relative_attention_bias = nn.Embedding(8, 2)
        self.scale = nn.Parameter(torch.ones(()))


def decayed(model: BaseModel) -> set[str]:
    """The names of the parameters that weight decay acts on; every trainable one must be in one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = model.get_optimizer_params(weight_decay=0.05)
    found = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {names[id(parameter)] for group in groups if group["weight_decay"] > 0 for parameter in group["params"]}


def test_a_name_of_the_user_decides_nothing() -> None:
    assert decayed(Toy()) == {f"proj.{name}.weight" for name in NAMES} | {f"tokens.{name}" for name in NAMES}


@pytest.mark.parametrize("modality", ["walnut", "subnet"])
def test_matrices_of_a_further_modality_are_decayed_as_those_of_the_others(modality: str, tmp_path: Path) -> None:
    entry = {**ENTRY, "suffix": modality}
    model = load_model_from_config(tiny.model_config(tmp_path, "regionblip_opt", modalities={modality: entry}))
    found = decayed(model)
    own = {name: parameter for name, parameter in model.named_parameters() if modality in name and parameter.requires_grad}
    assert len(own) > 10
    assert {name for name, parameter in own.items() if parameter.ndim >= 2} == found & own.keys()
