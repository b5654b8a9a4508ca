"""The house is open: an encoder, a region prompt and a system of a user's, from one file and one YAML, and no edit of lavis/."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

import lavis
from lavis.common.checkpoint import save_weights
from lavis.common.errors import ConfigError
from lavis.models import load_model_from_config
from tests import tiny

USER_MODULE = '''
"""A user's own system: vectors of five numbers as input, a numbered tag as region."""
from dataclasses import replace

import torch
from torch import nn

from lavis.common.registry import registry
from lavis.models.encoders.base import Encoder, Features, Inputs, index_of, tensor_of
from lavis.models.qformer.tokens import Tokens
from lavis.models.query_model import QueryModel
from lavis.models.regions.base import RegionPrompt


@registry.register_encoder("vector")
class VectorEncoder(Encoder):
    key, block, tower = "vector", "vector", "vector_tower"

    def __init__(self, tokens, width):
        super().__init__()
        self.vector_tower = nn.Linear(5, tokens * width)
        self.vector_norm = nn.LayerNorm(width)
        self.frozen, self.count = True, tokens

    @classmethod
    def from_config(cls, cfg):
        return cls(cfg.vector.tokens, cfg.qformer.input_dim)

    def read(self, samples, *, device, training):
        raw = tensor_of(samples, "vector")
        if raw is None or raw.shape[-1] != 5:
            raise ValueError("samples['vector'] must be [I, 5]")
        return Inputs(raw.to(device), index=index_of(samples, "vector", device))

    def features(self, inputs):
        return Features(self.vector_tower(inputs.raw).unflatten(1, (self.count, -1)))

    def tokens(self, features, index):
        return Tokens(self.vector_norm(features.embeds), index, unplaced=0)

    def load(self, path):
        raise NotImplementedError


@registry.register_region("tag")
class Tag(RegionPrompt):
    def __init__(self, width):
        super().__init__()
        self.tags = nn.Embedding(4, width)

    @classmethod
    def from_settings(cls, settings):
        return cls(settings.width)

    def read(self, samples, *, entry, device, training):
        return tensor_of(samples, "tag").to(device)

    def into(self, given, region):
        return replace(given, queries=given.queries + self.tags(region).unsqueeze(1))

    def loss(self, hidden, region):
        return hidden.float().square().mean()


@registry.register_model("toy_system")
class ToySystem(QueryModel):
    PRETRAINED_MODEL_CONFIG_DICT = {"tiny": "toy_system.yaml"}
    llm_kind = "opt"
'''


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("toy")
    base = Path(lavis.__file__).parent / "configs" / "models" / "blip2_opt.yaml"
    entry = {"encoder": "vector", "region": ["tag"], "losses": {"itc": 1.0, "itm": 1.0, "lm": 1.0, "llm": 1.0, "reg": 0.5}}
    defaults = {
        "base": str(base),
        "model": {
            "arch": "toy_system",
            "vector": {"tokens": 3, "pretrained": None},
            "modalities": {"image": None, "vector": entry},
        },
        "types": {"tiny": {}},
    }
    (folder / "toy_system.yaml").write_text(yaml.safe_dump(defaults))
    (folder / "toy_system.py").write_text(USER_MODULE)
    spec = importlib.util.spec_from_file_location("user_toy_system", folder / "toy_system.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_toy_system"] = module
    spec.loader.exec_module(module)
    made = tiny.model_config(folder / "model", "blip2_opt")
    return {**made, "arch": "toy_system", "model_type": "tiny"}


def samples(rows: int = 4) -> dict[str, Any]:
    torch.manual_seed(3)
    return {
        "modality": "vector",
        "vector": torch.randn(rows, 5),
        "tag": torch.tensor([0, 1, 2, 3])[:rows],
        "text_input": tiny.TEXTS[:rows],
    }


def test_a_system_of_a_users_trains_captions_and_saves(config: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load_model_from_config(config).train()
    assert not any(p.requires_grad for p in model.vector_tower.parameters()) and model.vector_norm.weight.requires_grad
    optimizer = torch.optim.AdamW(model.get_optimizer_params(weight_decay=0.05), lr=1e-3)
    before = model.branch("vector").region.tags.weight.clone()
    losses = model(samples())
    assert all(losses[f"loss_{name}"] > 0 for name in ("itc", "itm", "lm", "llm", "reg"))
    losses.loss.backward()
    optimizer.step()
    assert not torch.equal(before, model.branch("vector").region.tags.weight)
    model.eval()
    captions = model.generate(samples(), num_beams=2, max_length=6)
    assert len(captions) == 4

    save_weights(model.trainable_state_dict(), tmp_path / "toy.pth")
    torch.manual_seed(0)
    again = load_model_from_config(config)
    report = again.load_checkpoint(tmp_path / "toy.pth")
    assert "branches.vector.region.tags.weight" in report.loaded and not report.ignored
    assert again.eval().generate(samples(), num_beams=2, max_length=6) == captions


def test_rows_share_an_input_of_the_toy_encoder(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = load_model_from_config(config).eval()
    given = samples()
    shared = {**given, "vector": given["vector"][:2], "vector_index": torch.tensor([0, 0, 1, 1])}
    copies = {**given, "vector": given["vector"][[0, 0, 1, 1]]}
    assert model.generate(shared, num_beams=2, max_length=6) == model.generate(copies, num_beams=2, max_length=6)


@pytest.mark.parametrize(("name", "width", "tokens", "classes"), [("vit_tiny_patch16_224", 192, 5, 1), ("resnet18", 512, 1, 0)])
def test_any_model_of_timm_is_a_tower(tmp_path: Path, name: str, width: int, tokens: int, classes: int) -> None:
    """Tokens of a transformer and cells of a convolutional map, with weights from a file in timm's names."""
    extra = {"img_size": 32} if classes else {}
    torch.manual_seed(1)
    theirs = timm.create_model(name, pretrained=False, **extra).eval()
    save_weights(theirs.state_dict(), tmp_path / "tower.pth")
    config = tiny.model_config(tmp_path / "model", "blip2")
    config["qformer"]["input_dim"] = width
    config["vit"] |= {"vit_model": f"timm:{name}", "img_size": 32, "embed_dim": width, "pretrained": str(tmp_path / "tower.pth")}
    model = load_model_from_config(config).eval()
    image = torch.randn(2, 3, 32, 32)
    found = model.encoders["image"].encode(model.read({"modality": "image", "image": image}).inputs)
    assert found.embeds.shape == (2, tokens, width) and found.unplaced == classes
    features = theirs.forward_features(image)
    expected = features if features.dim() == 3 else features.flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.encoders["image"].compute(image), expected)
    assert model({"modality": "image", "image": image, "text_input": tiny.TEXTS[:2]}).loss.isfinite()


def test_a_tower_of_timm_says_its_width_and_near_names(tmp_path: Path) -> None:
    config = tiny.model_config(tmp_path / "model", "blip2")
    with pytest.raises(ConfigError, match="gives tokens 512 wide; set vit.embed_dim and qformer.input_dim to 512"):
        load_model_from_config({**config, "vit": {**config["vit"], "vit_model": "timm:resnet18"}})
    with pytest.raises(ConfigError, match="timm has no model 'resnet81'.*resnet18"):
        load_model_from_config({**config, "vit": {**config["vit"], "vit_model": "timm:resnet81"}})


def test_regions_chain(tmp_path: Path) -> None:
    """box_mlp and roi in a list are the published box with region_features: roi, weight for weight."""
    published = tiny.model_config(tmp_path / "model", "regionblip_opt", region_features="roi")
    chained = {**tiny.model_config(tmp_path / "model", "regionblip_opt")}
    for name in ("image_region", "pointcloud_region"):
        chained.setdefault("modalities", {})[name] = {"region": ["box_mlp", "roi"]}
    torch.manual_seed(0)
    first = load_model_from_config(published).eval()
    torch.manual_seed(0)
    second = load_model_from_config(chained).eval()
    assert first.state_dict().keys() == second.state_dict().keys()
    assert any(name.startswith("branches.image_region.region.roi") for name in first.state_dict())
    batch = tiny.image_batch("image_region")
    torch.testing.assert_close(first(batch).loss, second(batch).loss, atol=0, rtol=0)
