"""The export tool, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from lavis.common.checkpoint import load_weights, save_checkpoint
from lavis.models import load_model_from_config
from lavis.models.qformer.lora import adapter_parameters
from tests import tiny
from tests.tools.tool import run

BOXES = [[2, 3, 30, 20], [10, 5, 39, 28]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, a checkpoint whose region adapters are not zero, and a YAML of both."""
    folder = tmp_path_factory.mktemp("export")
    config = tiny.model_config(folder / "model", "regionblip_opt", llm_precision="bf16")
    model = load_model_from_config(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_parameters(model, "image_region"):
        parameter.data.normal_(std=0.4, generator=generator)
    save_checkpoint({"model": model.state_dict()}, folder / "trained.pth")
    config |= {"load_finetuned": True, "finetuned": str(folder / "trained.pth"), "allow_random_init": False}
    run_part = {"max_len": 9, "min_len": 3, "num_beams": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump({"model": config, "run": run_part}))
    Image.effect_noise((40, 30), 80).convert("RGB").save(folder / "room.png")
    return folder


def both_halves(place: Path, *options: str) -> tuple[Path, Path]:
    out, file = place / "served", place / "prompts.safetensors"
    common = ["--cfg-path", place / "run.yaml"]
    assert run("export_llm", "weights", *common, "--modality", "image_region", "-o", out, *options) == 0
    boxes = [",".join(map(str, numbers)) for numbers in BOXES]
    assert run("export_llm", "prompts", *common, "--image", place / "room.png", "--boxes", *boxes, "-o", file) == 0
    return out, file


def test_weights_and_prompts_give_the_captions_of_describe(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = both_halves(place, "--float32")
    said = capsys.readouterr().out
    assert "image_region merged into 4 layers, float32" in said and "inputs_embeds [2, 5, 32] of image_region" in said
    with safe_open(file, framework="pt") as opened:
        inputs = {name: opened.get_tensor(name) for name in ("inputs_embeds", "attention_mask")}
        about = json.loads(opened.metadata()["lavis"])
    assert about["image"] == "room.png" and about["boxes"] == BOXES
    made_of = json.loads((out / "export.json").read_text())
    checkpoint = made_of["checkpoint"]
    assert checkpoint["path"] == str(place / "trained.pth") and len(checkpoint["sha256"]) == 64
    assert about["checkpoint"] == checkpoint and about["adapters_sha256"] == made_of["adapters_sha256"]
    plain: Any = AutoModelForCausalLM.from_pretrained(out)
    found = AutoTokenizer.from_pretrained(out).batch_decode(plain.generate(**inputs), skip_special_tokens=True)
    config = yaml.safe_load((place / "run.yaml").read_text())["model"]
    model: Any = load_model_from_config(config)
    expected = model.describe(Image.open(place / "room.png"), BOXES, num_beams=1, max_length=9, min_length=3)
    assert [text.strip() for text in found] == expected


def test_the_precision_is_that_of_the_configuration(place: Path, tmp_path: Path) -> None:
    arguments = ["--cfg-path", place / "run.yaml", "--modality", "image_region", "-o", tmp_path / "out"]
    assert run("export_llm", "weights", *arguments) == 0
    assert {tensor.dtype for tensor in load_weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text()).get("dtype", "bfloat16") == "bfloat16"


def test_what_is_wrong_is_told_in_one_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--cfg-path", place / "run.yaml"]
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    weights, prompts = ["weights", *common, "--modality"], ["prompts", *common, "-o", tmp_path / "p.safetensors", "--image"]
    for arguments, message in (
        ([*weights, "regions", "-o", tmp_path / "out"], "Unknown modality 'regions'"),
        ([*weights, "image_region", "-o", full], "full is not empty"),
        ([*weights, "image", "-o", tmp_path / "out", "--checkpoint", tmp_path / "none.pth"], "none.pth does not exist"),
        ([*prompts, tmp_path / "none.png"], "none.png: no such file"),
        ([*prompts, place / "room.png", "--boxes", "60,3,70,20"], "box"),
        ([*prompts, place / "room.png", "--boxes", "1,2,3"], "--boxes 1,2,3 has 3 numbers; accepted: x1,y1,x2,y2"),
    ):
        assert run("export_llm", *arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists() and not (tmp_path / "p.safetensors").exists()
