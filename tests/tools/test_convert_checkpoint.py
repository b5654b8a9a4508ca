"""The checkpoint converter, as a user calls it: round trips are bitwise, what is left out is said."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lavis.common.checkpoint import load_checkpoint_file
from lavis.models import load_model_from_config
from lavis.models.weights.convert import convert
from lavis.models.weights.hf_blip2 import FolderConfig
from tests import hf, parity, tiny

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "convert_checkpoint.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )


def main(*arguments: str | Path) -> int:
    """The tool's main in this process, which has imported everything already."""
    spec = importlib.util.spec_from_file_location("convert_checkpoint", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([*map(str, arguments)])


def read(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else load_checkpoint_file(path)["model"]


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def published(llm: str) -> Path:
    return parity.parity_dir() / "regionblip" / f"regionblip_{llm}_tiny.pth"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("llm", ["opt", "t5"])
def test_regionblip_to_ours_and_back_is_bitwise(tmp_path: Path, llm: str, suffix: str) -> None:
    """A full published checkpoint; ours holds no aliases."""
    ours, back = tmp_path / f"ours{suffix}", tmp_path / f"back{suffix}"
    done = convert(published(llm), ours)
    assert done.layout == "regionblip" and done.target_layout == "lavis" and not done.left_out
    aliases = [name for name in read(published(llm)) if "predictions.decoder" in name or name.endswith("position_ids")]
    assert done.read - done.written == len(aliases) + {"opt": 1, "t5": 2}[llm]
    assert not convert(ours, back, layout="regionblip").left_out
    assert_same(read(back), read(published(llm)))
    parity.count_records(1)


@pytest.mark.parametrize("llm", ["opt", "t5"])
def test_a_published_training_checkpoint_comes_back_bitwise(tmp_path: Path, llm: str) -> None:
    """It holds what was trained, buffers, and aliases of frozen tensors that it does not hold: they keep their names."""
    saved = (parity.parity_dir() / "regionblip" / f"runner_saved_keys_{llm}.txt").read_text().split()
    whole = read(published(llm))
    trained = {name: whole[name] for name in saved}
    assert "Qformer.cls.predictions.decoder.weight" in trained
    assert "Qformer.bert.embeddings.word_embeddings.weight" not in trained
    torch.save({"model": trained, "epoch": 3}, tmp_path / "trained.pth")
    convert(tmp_path / "trained.pth", tmp_path / "ours.pth")
    convert(tmp_path / "ours.pth", tmp_path / "back.pth", layout="regionblip")
    assert_same(read(tmp_path / "back.pth"), trained)
    parity.count_records(1)


def test_the_converted_file_loads_as_the_published_one(tmp_path: Path) -> None:
    from tests.models.test_parity import published_config

    convert(published("opt"), tmp_path / "ours.safetensors")
    models = [load_model_from_config(published_config("opt")) for _ in range(2)]
    reports = [
        model.load_checkpoint(path) for model, path in zip(models, (published("opt"), tmp_path / "ours.safetensors"), strict=True)
    ]
    assert [report.layout for report in reports] == ["regionblip", "lavis"]
    assert not reports[0].ignored and not reports[1].ignored and not reports[0].missing and not reports[1].missing
    assert_same(models[0].state_dict(), models[1].state_dict())
    parity.count_records(1)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_a_hugging_face_folder_through_every_layout(tmp_path: Path, kind: str) -> None:
    """transformers' shards -> LAVIS' BLIP-2 -> RegionBLIP -> ours -> transformers' names: what a file can say comes back bitwise.

    The k part of `qkv.bias`, which has no effect, comes back as zeros.
    """
    _, folder = hf.captioner(tmp_path, kind)
    assert FolderConfig.read(folder) is not None and len(list(Path(folder).glob("*.safetensors"))) > 1
    steps = [("blip2", ".pth"), ("regionblip", ".safetensors"), ("lavis", ".pth"), ("hf-blip2", ".safetensors")]
    source: Path = Path(folder)
    for layout, suffix in steps:
        target = tmp_path / f"{kind}_{layout}{suffix}"
        assert not convert(source, target, layout=layout).left_out, layout
        source = target
    expected = {name: t for shard in Path(folder).glob("*.safetensors") for name, t in load_file(shard).items()}
    for name in [name for name in expected if name.endswith("qkv.bias")]:
        q, k, v = expected[name].chunk(3)
        assert k.any()
        expected[name] = torch.cat([q, torch.zeros_like(k), v])
    found = {name: t for name, t in read(source).items() if name in expected or not name.startswith("language_model.")}
    assert_same(found, expected)


def test_the_command_line(tmp_path: Path) -> None:
    """HF folder -> RegionBLIP's layout, with progress by shard and a report; the result serves as blip2_pretrain."""
    _, folder = hf.captioner(tmp_path, "opt")
    target = tmp_path / "out" / "blip2.pth"
    done = run("-i", folder, "-o", target, "--to", "regionblip", "--no-llm")
    assert done.returncode == 0, done.stderr
    assert "hf-blip2 layout" in done.stdout and "regionblip layout" in done.stdout and "left out: " in done.stdout
    shards = len(list(Path(folder).glob("*.safetensors")))
    assert f"({shards} of {shards}, " in done.stderr and "writing blip2.pth" in done.stderr
    state = read(target)
    assert {"query_tokens_img", "opt_proj_img.weight", "ln_vision.bias"} <= set(state)
    assert not any(name.startswith("opt_model.") for name in state)
    config = tiny.model_config(tmp_path, "regionblip_opt", load_blip2_pretrain=True, blip2_pretrain=str(target))
    assert "ln_vision" not in load_model_from_config(config).random_parts()
    assert sorted(path.name for path in target.parent.iterdir()) == ["blip2.pth"], "no temporary file stays"


def test_what_has_no_place_is_said(tmp_path: Path) -> None:
    done = convert(published("opt"), tmp_path / "blip2.pth", layout="blip2")
    assert {"branches.image_region.query_tokens", "pc_adapter.weight"} <= set(done.left_out)
    assert "adapters of modality image are left out though they are not zero" in str(done)
    assert {"query_tokens", "opt_proj.weight", "vision_proj.bias", "Qformer.cls.predictions.decoder.weight"} <= set(
        read(tmp_path / "blip2.pth")
    )
    parity.count_records(1)


def test_an_eva_file_loses_what_is_not_read(tmp_path: Path) -> None:
    """40 blocks, a final norm and a head in; 39 blocks out."""
    state = {"pos_embed": torch.zeros(1, 5, 4), "patch_embed.proj.weight": torch.zeros(4, 3, 2, 2), "norm.weight": torch.ones(4)}
    state |= {f"blocks.{i}.norm1.weight": torch.full((4,), float(i)) for i in range(40)} | {"head.bias": torch.zeros(2)}
    torch.save(state, tmp_path / "eva.pth")
    done = convert(tmp_path / "eva.pth", tmp_path / "vit.safetensors", layout="regionblip")
    assert done.layout == "eva" and len(done.left_out) == 3
    found = read(tmp_path / "vit.safetensors")
    assert len(found) == 2 + 39 and found["visual_encoder.blocks.38.norm1.weight"][0] == 38


def test_a_model_of_its_own_needs_its_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another modality has its suffix in the YAML; a projection alone does not say which LLM it is for."""
    row = {"suffix": "thermal", "encoder": "image", "losses": {"llm": 1.0}}
    config = tmp_path / "model.yaml"
    config.write_text(json.dumps({"model": {"arch": "regionblip_t5", "modalities": {"thermal": row}}}))
    state = {"branches.thermal.query_tokens": torch.ones(1, 2, 3), "branches.image.llm_proj.weight": torch.ones(2, 2)}
    save_file(state, tmp_path / "ours.safetensors")
    given = ("-i", tmp_path / "ours.safetensors", "-o", tmp_path / "x.pth", "--format", "regionblip")
    assert main(*given) == 1 and not (tmp_path / "x.pth").exists()
    assert "give its YAML as config" in capsys.readouterr().err
    assert main(*given, "--config", config) == 0
    assert set(read(tmp_path / "x.pth")) == {"query_tokens_thermal", "t5_proj_img.weight"}


@pytest.mark.parametrize(
    ("output", "message"),
    [("in.safetensors", "is the input; give another output"), ("out.npz", "accepted: .safetensors, .pth, .pt, .bin")],
)
def test_bad_outputs_are_refused(tmp_path: Path, output: str, message: str) -> None:
    save_file({"query_tokens": torch.ones(1, 2, 3)}, tmp_path / "in.safetensors")
    before = (tmp_path / "in.safetensors").read_bytes()
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "in.safetensors", tmp_path / output)
    assert (tmp_path / "in.safetensors").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_bases_stay_beside_the_weights(tmp_path: Path) -> None:
    bases: dict[str, Any] = {"llm": {"path": "opt", "sha256": "0" * 64}}
    torch.save({"model": {"query_tokens_img": torch.ones(1, 2, 3)}, "frozen_bases": bases}, tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.pth")
    assert load_checkpoint_file(tmp_path / "out.pth")["frozen_bases"] == bases
