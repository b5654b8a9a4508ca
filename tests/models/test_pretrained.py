"""LAVIS' loaders: every registered type from tiny files found by name, and what is said of files that are not there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lavis.common.config import ConfigError, model_defaults
from lavis.common.registry import UnknownNameError, registry
from lavis.models import load_model, load_model_and_preprocess, load_model_from_config, model_zoo
from lavis.models.weights import pretrained
from tests import tiny

TYPES = [
    (arch, model_type)
    for arch, types in model_zoo
    for model_type in types
    if registry.get_model_class(arch).__module__.startswith("lavis.")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and caches without files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WEIGHTS", raising=False)
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def sizes(folder: Path, arch: str, **changes: Any) -> dict[str, Any]:
    """Overrides that make a type tiny. The ViT is EVA's, as the tiny files are."""
    config = tiny.model_config(folder, arch, allow_random_init=False)
    return {**config, "vit": {**config["vit"], "vit_model": "eva_clip_g"}, **changes}


def files_of(arch: str, model_type: str) -> dict[str, str]:
    """{dotted key: file name} of a type."""
    weights = model_defaults(arch, model_type=model_type)["weights"]
    flat = {}
    for block in (weights.get("+", {}), weights[model_type]):
        for key, value in block.items():
            flat |= {f"{key}.pretrained": value["pretrained"]} if isinstance(value, dict) else {key: value}
    return {key: name for key, name in flat.items() if not key.startswith("load_")}


def save_files(folder: Path, arch: str, model_type: str, where: Path) -> torch.nn.Module:
    """A random tiny model, and its weights in the files of a type; what a file of its own holds is in no other."""
    torch.manual_seed(3)
    model = load_model_from_config(sizes(folder, arch, allow_random_init=True))
    where.mkdir(parents=True, exist_ok=True)
    names = files_of(arch, model_type)
    own = {"vit.pretrained": "visual_encoder.", "pointbert.pretrained": "point_encoder."}
    rest = {key: value for key, value in model.state_dict().items() if not key.startswith("llm.")}
    for key, prefix in own.items():
        if key in names:
            part = {name.removeprefix(prefix): value for name, value in rest.items() if name.startswith(prefix)}
            rest = {name: value for name, value in rest.items() if not name.startswith(prefix)}
            torch.save({"model": part} if prefix == "visual_encoder." else {"base_model": part}, where / names[key])
    for key in names.keys() - own.keys():
        torch.save({"model": rest}, where / names[key])
    return model


def test_every_type_names_files_and_defaults() -> None:
    assert {"blip2", "blip2_opt", "blip2_t5", "regionblip_opt", "regionblip_t5"} == {arch for arch, _ in TYPES}
    for arch, model_type in TYPES:
        files = files_of(arch, model_type)
        assert files and all(name.endswith((".pth", ".pt")) for name in files.values()), (arch, model_type)


@pytest.mark.parametrize(("arch", "model_type"), TYPES)
def test_a_type_without_its_files_says_which(arch: str, model_type: str, elsewhere: Path) -> None:
    with pytest.raises(ConfigError) as told:
        load_model(arch, model_type, overrides={"bert_path": "no/such/bert"})
    message = str(told.value)
    for key, name in files_of(arch, model_type).items():
        assert f"model.{key}: {name}" in message
    assert "model.bert_path: no/such/bert" in message and str(elsewhere / "cache") in message and "overrides=" in message


@pytest.mark.parametrize(("arch", "model_type"), TYPES)
def test_every_type_loads_from_the_cache(arch: str, model_type: str, folder: Path, elsewhere: Path) -> None:
    saved = save_files(folder, arch, model_type, elsewhere / "cache")
    size = {"vit": {"img_size": 28}} if "coco" not in model_type else {"vit": {"img_size": 42}}
    overrides = sizes(folder, arch)
    overrides["vit"] |= size["vit"]
    model, visual, text = load_model_and_preprocess(arch, model_type, is_eval=True, overrides=overrides)
    assert not model.training and model.cfg.model_type == model_type
    loaded, first = model.state_dict(), saved.state_dict()
    assert loaded.keys() == first.keys()
    other = [name for name in first if not torch.equal(loaded[name], first[name])]
    assert other == ([] if "coco" not in model_type else ["visual_encoder.pos_embed"]), "a larger picture has more positions"
    pixels = size["vit"]["img_size"]
    assert set(visual) == set(text) == {"train", "eval"}
    assert all(visual[split](Image.new("RGB", (50, 40))).shape == (3, pixels, pixels) for split in visual)
    assert text["eval"]("A red Square.") == "a red square"


def test_where_files_are_looked_for(folder: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "blip2_pretrained.pth"
    places = [elsewhere, elsewhere / "mine", elsewhere / "cache", elsewhere / "torch/hub/checkpoints"]
    monkeypatch.setenv("WEIGHTS", "mine")
    assert pretrained.find(name) is None
    for place in reversed(places):
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"")
        assert pretrained.find(name) == place / name
    assert pretrained.find(str(elsewhere / "absent.pth")) is None


def test_paths_by_override_and_checkpoint(folder: Path, elsewhere: Path) -> None:
    arch, model_type = "blip2_opt", "pretrain_opt2.7b"
    saved = save_files(folder, arch, model_type, elsewhere / "far")
    vit, file = elsewhere / "far/eva_vit_g.pth", elsewhere / "far/blip2_pretrained_opt2.7b.pth"
    small = sizes(folder, arch)
    small["vit"]["pretrained"] = str(vit)
    for model in (
        load_model(arch, model_type, overrides={**small, "pretrained": str(file)}),
        load_model(arch, model_type, checkpoint=str(file), overrides=small),
        load_model(arch, model_type, True, "cpu", "far/blip2_pretrained_opt2.7b.pth", overrides=small),
    ):
        assert torch.equal(model.branches["image"].query_tokens, saved.branches["image"].query_tokens)
    with pytest.raises(ConfigError, match=r"absent.pth"):
        load_model(arch, model_type, checkpoint="absent.pth", overrides=small)


def test_a_path_set_to_none_is_left_out(folder: Path, elsewhere: Path) -> None:
    """RegionBLIP without a checkpoint of its own: BLIP-2's weights stay, its own are not looked for."""
    saved = save_files(folder, "regionblip_opt", "pretrain_opt2.7b", elsewhere / "cache")
    (elsewhere / "cache/regionblip_pretrain_opt2.7b.pth").unlink()
    overrides = sizes(folder, "regionblip_opt", pretrained=None)
    model = load_model("regionblip_opt", "pretrain_opt2.7b", overrides=overrides)
    assert torch.equal(model.branches["image"].query_tokens, saved.branches["image"].query_tokens)
    assert not model.cfg.load_pretrained


def test_a_part_that_no_file_holds_is_refused_unless_allowed(
    folder: Path, elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_files(folder, "blip2", "pretrain", elsewhere)
    small = sizes(folder, "blip2")
    with pytest.raises(ConfigError, match="blip2 pretrain: no file held weights of visual_encoder"):
        load_model("blip2", "pretrain", overrides={**small, "vit": {**small["vit"], "pretrained": None}})
    (elsewhere / "eva_vit_g.pth").unlink()
    with caplog.at_level(logging.WARNING, "lavis"):
        load_model("blip2", "pretrain", overrides={**small, "allow_random_init": True})
    assert "model.vit.pretrained: no file eva_vit_g.pth; it is left out" in caplog.text
    assert "no file held weights of visual_encoder; they are random" in caplog.text


def test_from_pretrained_and_unknown_names(elsewhere: Path) -> None:
    with pytest.raises(ConfigError, match="blip2_caption_opt6.7b.pth"):
        registry.get_model_class("blip2_opt").from_pretrained("caption_coco_opt6.7b")
    with pytest.raises(UnknownNameError, match="Did you mean 'blip2_opt'"):
        load_model("blip2_otp", "pretrain_opt2.7b")
    with pytest.raises(ConfigError, match="Did you mean 'pretrain_opt2.7b'"):
        load_model("blip2_opt", "pretrain_opt2.6b")
    with pytest.raises(ConfigError, match="Unknown key 'model.vit.img_sise'"):
        load_model("blip2_opt", "pretrain_opt2.7b", overrides={"vit": {"img_sise": 28}})


def test_the_zoo_prints_and_iterates() -> None:
    lines = str(model_zoo).splitlines()
    assert lines[1].split() == ["Architectures", "Types"]
    table = dict(model_zoo)
    assert len(lines) == 3 + len(table) and len(model_zoo) == sum(map(len, table.values()))
    for line, (arch, types) in zip(lines[3:], table.items(), strict=True):
        assert line.split(maxsplit=1) == [arch, ", ".join(types)]
    assert "caption_coco_flant5xl" in table["blip2_t5"] and "blip2" in model_zoo and "blip3" not in model_zoo
