"""tools/memory.py, as a user calls it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from lavis.common.config import Config
from lavis.models import load_model_from_config
from lavis.runners.memory import account
from tests import tiny
from tests.models.test_real_sizes import LLM_PARAMETERS

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "run_scripts" / "train"
MODALITIES = {
    "coco_caption": "image",
    "general_box_caption": "image_region",
    "pointcloud_caption": "pointcloud",
    "scannet_refer": "pointcloud_region",
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("memory_tool", ROOT / "tools" / "memory.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_run(folder: Path, arch: str, **run: Any) -> tuple[Path, dict[str, Any]]:
    """A YAML of a small model and four datasets."""
    model = tiny.model_config(folder / "model", arch, enable_aux_regloss=True)
    path = folder / "run.yaml"
    content = {"model": model, "datasets": dict.fromkeys(MODALITIES), "run": {"batch_size_train": 2, **run}}
    path.write_text(yaml.safe_dump(content))
    return path, model


@pytest.mark.parametrize(("arch", "shard"), [("regionblip_opt", "none"), ("regionblip_opt", "all"), ("regionblip_t5", "llm")])
def test_it_says_of_a_model_without_numbers_what_holds_with_them(tool: ModuleType, tmp_path: Path, arch: str, shard: str) -> None:
    """The account of the real model is checked against a real training in tests/runners/test_sharding.py."""
    path, model_cfg = tiny_run(tmp_path, arch, shard=shard, accum_grad_iters=4)
    if arch.endswith("t5"):  # whose language head is its own, as in Flan-T5; this transformers ties a saved one
        (Path(model_cfg["t5_model"]) / "model.safetensors").unlink()
    said = tool.count(Config.from_file(path), world_size=2, device="cpu")
    model = load_model_from_config(model_cfg).train()
    learning = {}
    for modality in MODALITIES.values():
        model(tiny.batch_of(modality, rows=2)).loss.backward()
        learning[modality] = [name for name, param in model.named_parameters() if param.grad is not None]
        model.zero_grad()
    expected = account(model, world_size=2, shard=shard, learning=learning, accumulate=True)
    assert said.weights == expected.weights and said.buffers == expected.buffers
    for name in ("moments", "gradients", "bucket", "gathered"):
        assert getattr(said, name) == getattr(expected, name) > (-1 if name == "gathered" and shard == "none" else 0)
    assert (
        said.activations > 0 and said.notes[0] == f"model.{arch[-3:].lstrip('_')}_model: config.json of {model_cfg[_key(arch)]}"
    )


def _key(arch: str) -> str:
    return "t5_model" if arch.endswith("t5") else "opt_model"


@pytest.mark.slow
def test_the_published_training_of_t5_xxl(
    tool: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any file: 11.1 billion numbers of two bytes fill 20.7 GiB, or 3.0 in 8 shards of the layers."""
    for name in ("T5", "BERT", "WEIGHTS", "EVA_VIT", "BLIP2", "POINT_BERT"):
        monkeypatch.delenv(name, raising=False)
    path = TRAIN / "regionblip_t5-xxl_freeze-qformer_regloss_pcqformer_A100.yaml"
    options = ["model.vit.depth=2", "model.llm_grad_checkpoint=true"]  # a shallow ViT for the test's time: it keeps nothing
    assert tool.main(["--cfg-path", str(path), "--world-size", "8", "--options", "run.shard=llm", *options]) == 0
    text = capsys.readouterr().out
    layers, rest = (line.split() for line in text.splitlines() if line.startswith("llm, frozen") and " bfloat16 " in line)
    assert float(layers[-2]) + float(rest[-2]) == pytest.approx(LLM_PARAMETERS["flant5xxl"] * 2 / 2**30, abs=0.02)
    assert float(layers[-1]) == pytest.approx(float(layers[-2]) / 8, abs=0.01)
    assert "public size of flan-t5-xxl (google/flan-t5-xxl is not here)" in text and "40 GB card yes" in text


def test_an_evaluation_holds_no_gradients(tool: ModuleType, tmp_path: Path) -> None:
    path, _ = tiny_run(tmp_path, "regionblip_opt", evaluate=True, num_beams=3, max_len=10, batch_size_eval=5)
    said = tool.count(Config.from_file(path), world_size=2, device="cpu")
    assert said.gradients == said.moments == said.bucket == 0
    model_length, vocabulary = 4 + 16 + 10, load_vocabulary(tmp_path)
    assert said.activations == 5 * 3 * (2 * 2 * model_length * 32 * 4 + 3 * 4 * vocabulary)


def load_vocabulary(folder: Path) -> int:
    model = load_model_from_config(tiny.model_config(folder / "model", "regionblip_opt"))
    rows: int = model.llm.model.get_input_embeddings().num_embeddings  # type: ignore[union-attr]
    return rows


def test_mistakes_are_told(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = tiny_run(tmp_path, "regionblip_opt")
    for options, message in (
        (["run.shard=lmm"], "Unknown run.shard 'lmm'"),
        (["model.opt_model=facebook/opt-13b"], "no config.json at 'facebook/opt-13b', and no public size of that name"),
        (["run.shrad=llm"], "Unknown key 'run.shrad'"),
    ):  # fmt: skip
        assert tool.main(["--cfg-path", str(path), "--world-size", "2", "--options", *options]) == 2
        assert message in capsys.readouterr().err
