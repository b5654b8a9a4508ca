"""Files that a model configuration names: there, whole and of their kind, or told what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lavis.common.checkpoint import CheckpointError, MissingCheckpointError, check_header, save_checkpoint
from lavis.common.config import merge_model_config
from lavis.models.weights.file_checks import check_model_files
from tests import tiny

STATE = {"a": torch.arange(1000.0), "b": torch.ones(3)}


def problems(folder: Path, **changes: Any) -> dict[str, str]:
    cfg = merge_model_config(tiny.model_config(folder / "model", "regionblip_opt", **changes))
    return {key: problem for key, _, problem in check_model_files(cfg) if problem}


def written(folder: Path) -> dict[str, Path]:
    """The same weights as torch and safetensors write them, and as torch did before version 1.6."""
    files = {name: folder / name for name in ("new.pth", "old.pth", "flat.safetensors")}
    save_checkpoint({"model": STATE}, files["new.pth"])
    torch.save(STATE, files["old.pth"], _use_new_zipfile_serialization=False)
    save_file(STATE, files["flat.safetensors"])
    return files


def test_headers_of_whole_and_damaged_files(tmp_path: Path) -> None:
    for name, path in written(tmp_path).items():
        check_header(path)
        if name != "old.pth":  # it has no table of contents
            path.write_bytes(path.read_bytes()[:-200])
            with pytest.raises(CheckpointError, match=f"{name} cannot be read; it may be truncated"):
                check_header(path)
        path.write_bytes(b"")
        with pytest.raises(CheckpointError, match=f"{name} is empty"):
            check_header(path)
        path.write_bytes(b"<!DOCTYPE html>")
        with pytest.raises(CheckpointError, match="a web page"):
            check_header(path)
        path.write_bytes(b"something else, and long enough to look like anything")
        with pytest.raises(CheckpointError, match="cannot be read"):
            check_header(path)
    with pytest.raises(MissingCheckpointError, match="gone.pth does not exist"):
        check_header(tmp_path / "gone.pth")


def test_a_model_whose_files_are_there(tmp_path: Path) -> None:
    path = written(tmp_path)["new.pth"]
    assert problems(tmp_path, load_pretrained=True, pretrained=str(path)) == {}
    cfg = merge_model_config(tiny.model_config(tmp_path / "model", "regionblip_opt", load_pretrained=True, pretrained=str(path)))
    assert [key for key, _, _ in check_model_files(cfg)] == ["model.pretrained", "model.bert_path", "model.opt_model"]


def test_each_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    cut = written(tmp_path)["new.pth"]
    cut.write_bytes(cut.read_bytes()[:300])
    vit = {**tiny.model_config(tmp_path / "model", "regionblip_opt")["vit"], "pretrained": str(tmp_path / "gone.pth")}
    found = problems(tmp_path, load_pretrained=True, pretrained=str(cut), load_blip2_pretrain=True, vit=vit, bert_path="nowhere")
    assert {key: problem.split(": ")[0][:40] for key, problem in found.items()}.keys() == {
        *("model.pretrained", "model.blip2_pretrain", "model.vit.pretrained", "model.bert_path"),
    }
    assert "truncated" in found["model.pretrained"] and "names no file" in found["model.blip2_pretrain"]
    assert "gone.pth" in found["model.vit.pretrained"] and "holds no BERT" in found["model.bert_path"]


def test_language_models(tmp_path: Path) -> None:
    folder = Path(tiny.opt_folder(tmp_path / "model" / "opt"))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert "model.safetensors cannot be read" in problems(tmp_path)["model.opt_model"]
    weights.unlink()
    assert problems(tmp_path) == {}, "random weights are allowed"
    assert "holds no weights" in problems(tmp_path, allow_random_init=False)["model.opt_model"]
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-2.safetensors"}}')
    assert "lacks the shard model-1-of-2.safetensors" in problems(tmp_path)["model.opt_model"]
    for name in ("vocab.json", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    assert "no tokenizer could be read" in problems(tmp_path)["model.opt_model"]
    assert "model.opt_model is empty" in problems(tmp_path, opt_model=None)["model.opt_model"]


def test_what_the_model_itself_refuses(tmp_path: Path) -> None:
    assert "regions_from_image" in problems(tmp_path, regions_from_image=True)["model"]
