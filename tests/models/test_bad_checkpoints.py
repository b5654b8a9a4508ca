"""Files that are no checkpoint for a model: refused with what was expected and what was found, and nothing is changed."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lavis.common.config import ConfigError
from lavis.models import load_model_from_config
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="module")
def opt(folder: Path) -> Any:
    return load_model_from_config(tiny.model_config(folder, "regionblip_opt"))


@pytest.fixture(scope="module")
def t5(folder: Path) -> Any:
    return load_model_from_config(tiny.model_config(folder, "regionblip_t5"))


def refused(model: Any, path: Any, message: str) -> None:
    """The model says `message` of the file and stays what it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        model.load_checkpoint(path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("layout", ["lavis", "regionblip", "blip2"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "trained"])
def test_another_llm(opt: Any, t5: Any, tmp_path: Path, layout: str, whole: bool) -> None:
    """By the LLM's own weights, by its adapters, or by the name of its projection alone."""
    state, _ = t5.key_map.write(t5.state_dict() if whole else t5.trainable_state_dict(), layout)
    if layout == "blip2" and not whole:
        state = {"query_tokens": torch.zeros(1, 4, 32), "t5_proj.weight": torch.zeros(32, 32)}
    torch.save({"model": state}, tmp_path / "t5.pth")
    found, expected = r"it holds (t5_|llm\.model\.(shared|encoder))", r"this model's is opt of .*\(model\.opt_model\)"
    refused(opt, tmp_path / "t5.pth", rf"t5\.pth: it belongs to another language model: {found}.*{expected}")


def test_a_stage1_model_reads_any_stage2_file(folder: Path, t5: Any) -> None:
    """Without an LLM there is nothing to clash with; the LLM's half is ignored, by name."""
    model = load_model_from_config(tiny.model_config(folder, "blip2"))
    state, _ = t5.key_map.write(t5.state_dict(), "blip2")
    report = model.load_checkpoint({"model": state})
    assert report.ignored and all(name.startswith("t5_") for name in report.ignored)
    assert torch.equal(model.branches["image"].query_tokens, t5.branches["image"].query_tokens)


def test_another_width(opt: Any, folder: Path, tmp_path: Path) -> None:
    wide = {name: torch.cat([t, t]) if name.endswith("llm_proj.weight") else t for name, t in opt.trainable_state_dict().items()}
    save_file({name: tensor.contiguous().clone() for name, tensor in wide.items()}, tmp_path / "wide.safetensors")
    found = r"branches\.image_region\.llm_proj\.weight: \(64, 32\) in the file, \(32, 32\) in the model"
    refused(opt, tmp_path / "wide.safetensors", rf"wide\.safetensors: .*\(3 tensors\):\n  {found}")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file(opt: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    state = {name: tensor.clone() for name, tensor in opt.trainable_state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"model": state}, path)
    path.write_bytes(path.read_bytes()[:-5000])
    refused(opt, path, f"cut{suffix} cannot be read; it may be truncated")


class Code:
    """Pickles as a call that makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_with_code(opt: Any, tmp_path: Path, writer: str) -> None:
    path, target = tmp_path / "code.pth", tmp_path / "made_by_code"
    content = {"model": {"query_tokens_img": torch.zeros(1, 4, 32)}, "config": Code(target)}
    torch.save(content, path) if writer == "torch" else path.write_bytes(pickle.dumps(content))
    refused(opt, path, r"code\.pth (holds Python objects other than tensors|cannot be read)")
    assert not target.exists(), "the code did not run"


def test_a_web_page(opt: Any, tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>\n<html><title>Sign in</title></html>")
    refused(opt, tmp_path / "page.pth", "page.pth is a web page, not weights: the download did not reach the file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "holds no weights; its keys are epoch"),
        ({"model": {}}, "holds no weights; its keys are model"),
        ({"resnet.conv1.weight": torch.zeros(2)}, "no known checkpoint layout .* first keys: resnet.conv1.weight"),
        ({"query_tokens_thermal": torch.zeros(2)}, "nothing in it fits this model"),
    ],
)
def test_something_else(opt: Any, tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "else.pth")
    refused(opt, tmp_path / "else.pth", message)


def test_no_file_and_an_empty_folder(opt: Any, folder: Path, tmp_path: Path) -> None:
    refused(opt, tmp_path / "none.pth", "none.pth does not exist")
    refused(opt, tmp_path, "holds no weights; accepted: model.safetensors.index.json, model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {}}')
    refused(opt, tmp_path, "is no index of weight files: it lacks a weight_map")
    config = tiny.model_config(folder, "regionblip_opt", load_blip2_pretrain=True, blip2_pretrain=str(tmp_path / "sub"))
    (tmp_path / "sub").mkdir()
    with pytest.raises(ConfigError, match="sub holds no weights"):
        load_model_from_config(config)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_a_folder_without_a_tokenizer(folder: Path, tmp_path: Path, kind: str) -> None:
    config = tiny.model_config(folder, f"blip2_{kind}")
    shutil.copytree(config[f"{kind}_model"], tmp_path / "llm")
    for file in (tmp_path / "llm").iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    with pytest.raises(ConfigError, match=f"no tokenizer could be read from '{tmp_path / 'llm'}'"):
        load_model_from_config({**config, f"{kind}_model": str(tmp_path / "llm")})


@pytest.mark.parametrize("arch", ["blip2_t5", "regionblip_t5"])
@pytest.mark.parametrize("key", ["t5_precision", "llm_precision"])
def test_t5_in_fp16(folder: Path, arch: str, key: str) -> None:
    changes = {"t5_precision": None, key: "float16"}
    with pytest.raises(ConfigError, match="float16: T5 overflows in float16; accepted: bfloat16, float32"):
        load_model_from_config(tiny.model_config(folder, arch, **changes))


def test_a_bert_folder_without_a_vocabulary(folder: Path, tmp_path: Path) -> None:
    config = tiny.model_config(folder, "blip2")
    shutil.copy(Path(config["bert_path"]) / "config.json", tmp_path)
    with pytest.raises(ConfigError, match="model.bert_path .* holds no (BERT|vocab.txt)"):
        load_model_from_config({**config, "bert_path": str(tmp_path)})


def test_the_other_kind_of_llm_folder(folder: Path) -> None:
    t5 = tiny.t5_folder(folder / "a_t5")
    with pytest.raises(
        ConfigError, match=r"'.*a_t5' holds a t5; a causal language model \(OPT, Llama, \.\.\.\) is expected here"
    ):
        load_model_from_config(tiny.model_config(folder, "blip2_opt", opt_model=t5))
    opt = tiny.opt_folder(folder / "an_opt")
    with pytest.raises(ConfigError, match=r"'.*an_opt' holds a opt; an encoder-decoder \(T5\) is expected here"):
        load_model_from_config(tiny.model_config(folder, "blip2_t5", t5_model=opt))


def test_an_absent_base_says_what_is_needed(folder: Path, tmp_path: Path) -> None:
    """A checkpoint over a released ViT, in a model with a random one: refused, or (random weights allowed) said in the report."""
    config = tiny.model_config(folder, "regionblip_opt")
    source = load_model_from_config(config)
    torch.save(source.visual_encoder.state_dict(), tmp_path / "eva.pth")
    with_vit = {**config, "vit": {**config["vit"], "pretrained": str(tmp_path / "eva.pth")}}
    trained = load_model_from_config(with_vit)
    content = {"model": trained.trainable_state_dict(), "frozen_bases": trained.frozen_bases()}
    assert set(content["frozen_bases"]) == {"visual_encoder", "llm"}
    assert not load_model_from_config(with_vit).load_checkpoint(content).needed
    sha = content["frozen_bases"]["visual_encoder"]["sha256"][:12]
    needed = "which this model lacks: name it in model.vit.pretrained"
    message = f"trained over visual_encoder {tmp_path / 'eva.pth'}, sha256 {sha}, {needed}"
    report = load_model_from_config(config).load_checkpoint(content)
    assert message in report.needed[0] and message in str(report)
    strict = load_model_from_config({**config, "allow_random_init": False})
    refused(strict, content, message)
    vit = {f"visual_encoder.{name}": tensor for name, tensor in source.visual_encoder.state_dict().items()}
    assert not strict.load_checkpoint({**content, "model": {**content["model"], **vit}}).needed, "the file brings the ViT itself"


def test_another_base_is_named_with_both_hashes(folder: Path, tmp_path: Path) -> None:
    config = tiny.model_config(folder, "regionblip_opt")
    model = load_model_from_config(config)
    bases = {"llm": {"path": "elsewhere/opt", "sha256": "0" * 64}}
    message = rf"trained over another llm \(then elsewhere/opt, sha256 {'0' * 12}; now .*opt, sha256 "
    refused(model, {"model": model.trainable_state_dict(), "frozen_bases": bases}, message)
