"""Which checkpoint is taken, with which configuration, and what is said when something is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from lavis.common.checkpoint import load_checkpoint_file, save_checkpoint, save_weights
from lavis.common.config import ConfigError
from lavis.models import load_model_from_config
from lavis.serving import loading
from lavis.serving.loading import REPOSITORY, SHIPPED, default_checkpoint, load_captioner, points_read
from lavis.serving.strip import strip_checkpoint
from tests import tiny
from tools import strip_checkpoint as tool

RANDOM = ["model.allow_random_init=true"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a training of a tiny model, whose frozen parts are random."""
    folder = tmp_path_factory.mktemp("tiny")
    config = tiny.model_config(folder, "regionblip_opt", load_pretrained=True, pretrained="started/from.pth")
    model = load_model_from_config({**config, "load_pretrained": False, "pretrained": None})
    state = {
        "model": model.trainable_state_dict(),
        "optimizer": {"state": {0: torch.zeros(1000)}},
        "frozen_bases": model.frozen_bases(),
        "config": {
            "model": config,
            "run": {"max_len": 12, "output_dir": "somewhere"},
            "datasets": {
                "own": {"task_name": "task_alignLLM_PointcloudText", "build_info": {"pointcloud": {"num_points": 50}}},
                "rooms": {
                    "task_name": "pointcloud_region",
                    "annotations": {
                        "train": {"scanner_file": None, "num_points": 9},
                        "test": {"scanner_file": "a.json", "num_points": 40},
                    },
                },
            },
        },
        "epoch": 0,
        "progress": {"epoch": 1, "step": 1},
    }
    return save_checkpoint(state, folder / "checkpoint_0.pth")


def test_a_training_checkpoint_brings_its_configuration(trained: Path) -> None:
    captioner = load_captioner(trained, options=RANDOM)
    assert captioner.checkpoint == trained and captioner.decoding == {"max_length": 12}
    assert captioner.points == {"pointcloud": 50, "pointcloud_region": 40}
    saved = load_checkpoint_file(trained)["model"]
    own = captioner.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in saved.items())
    assert not captioner.model.training


def test_random_parts_are_refused(trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint_0\.pth: these parts .* hold random weights: .*visual_encoder"):
        load_captioner(trained)


def test_what_training_started_from_is_read_where_it_is_needed(trained: Path, tmp_path: Path) -> None:
    content = load_checkpoint_file(trained)
    whole = load_captioner(trained, options=RANDOM).model.state_dict()
    start = save_weights({name: tensor + 1 for name, tensor in whole.items()}, tmp_path / "start.pth")
    content["config"]["model"]["pretrained"] = str(start)
    captioner = load_captioner(save_checkpoint(content, tmp_path / "later.pth"))
    own = captioner.model.state_dict()
    name = "visual_encoder.patch_embed.proj.weight"
    assert torch.equal(own[name], whole[name] + 1)
    assert all(torch.equal(own[name], tensor) for name, tensor in content["model"].items())


def test_a_file_without_configuration_needs_one(trained: Path, tmp_path: Path) -> None:
    bare = save_weights(load_checkpoint_file(trained)["model"], tmp_path / "published.pth")
    with pytest.raises(ConfigError, match=r"published\.pth holds no configuration.*--cfg-path"):
        load_captioner(bare)
    config = tmp_path / "model.yaml"
    config.write_text(json.dumps({"model": load_checkpoint_file(trained)["config"]["model"]}))
    captioner = load_captioner(bare, cfg_path=config)  # whose configuration allows random parts, and is believed
    assert captioner.checkpoint == bare and captioner.points == {"pointcloud": 8192, "pointcloud_region": 40000}


@pytest.mark.parametrize(
    "options, message",
    [
        (["model.nothing=1"], "Unknown key 'model.nothing'"),
        (["run.max_len=3"], "run is no section that is read here; accepted: model"),
        (["model.vit.pretrained=away.pth"], "model.vit.pretrained: no file away.pth"),
    ],
)
def test_bad_options(trained: Path, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_captioner(trained, options=options)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"away\.pth does not exist"):
        load_captioner(tmp_path / "away.pth")
    (tmp_path / "bad.pth").write_text("<html>")
    with pytest.raises(ConfigError, match="is a web page"):
        load_captioner(tmp_path / "bad.pth")


def test_the_default_is_the_newest_of_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "REPOSITORY", tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint: neither of output/quickstart/clouds"):
        default_checkpoint()
    (tmp_path / SHIPPED).parent.mkdir(parents=True)
    (tmp_path / SHIPPED).touch()
    assert default_checkpoint() == tmp_path / SHIPPED
    for name in ("region/checkpoint_1.pth", "region/checkpoint_2.pth", "clouds/checkpoint_0.pth"):
        path = save_checkpoint({"progress": {}, "model": {}}, tmp_path / "output/quickstart" / name)
        assert default_checkpoint() == path


def test_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped, by_file = (
        load_captioner(REPOSITORY / SHIPPED),
        load_captioner(cfg_path=REPOSITORY / "run_scripts/quickstart/demo.yaml"),
    )
    picture = Image.new("RGB", (84, 84), "blue")
    assert shipped.caption_image(picture) == by_file.caption_image(picture)
    assert (shipped.points, shipped.decoding) == (by_file.points, by_file.decoding)
    assert Path(by_file.checkpoint).samefile(shipped.checkpoint)


def test_another_frozen_base_is_refused(tmp_path: Path) -> None:
    other = save_weights({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"regionblip\.safetensors: .*(lacks|holds no)|other\.safetensors"):
        load_captioner(REPOSITORY / SHIPPED, options=[f"model.vit.pretrained={other}"])
    copy = tmp_path / "vit.safetensors"
    with safe_open(REPOSITORY / "assets/quickstart/vit.safetensors", framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    name = next(iter(state))
    save_weights({**state, name: state[name] + 1}, copy)
    with pytest.raises(ConfigError, match=r"regionblip\.safetensors: it was trained over another visual_encoder"):
        load_captioner(REPOSITORY / SHIPPED, options=[f"model.vit.pretrained={copy}"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_stripped_checkpoint_says_the_same(trained: Path, tmp_path: Path, suffix: str) -> None:
    slim = strip_checkpoint(trained, tmp_path / f"slim{suffix}", note="a test")
    assert slim.stat().st_size < trained.stat().st_size
    whole, read = load_captioner(trained, options=RANDOM), load_captioner(slim, options=RANDOM)
    assert (read.points, read.decoding) == (whole.points, whole.decoding)
    saved, own = load_checkpoint_file(trained)["model"], read.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in saved.items())
    half = strip_checkpoint(trained, tmp_path / f"half{suffix}", dtype="float16")
    own = load_captioner(half, options=RANDOM).model.state_dict()
    assert all(torch.equal(own[name], tensor.half().float()) for name, tensor in saved.items())


def test_the_strip_tool(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.safetensors"
    assert tool.main([str(trained), "-o", str(target), "--dtype", "float16", "--note", "made by a test"]) == 0
    assert f"{target}: 0." in capsys.readouterr().out
    with safe_open(target, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["note"]) == "made by a test" and "started/from" not in str(metadata)
    assert tool.main([str(target), "-o", str(tmp_path / "again.pth")]) == 1
    assert "no training checkpoint of ours" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="dtype is 'int4'; accepted: float32, float16"):
        strip_checkpoint(trained, target, dtype="int4")


def test_the_shipped_file_names_no_machine() -> None:
    with safe_open(REPOSITORY / SHIPPED, framework="pt") as file:
        metadata: Any = file.metadata()
    model = json.loads(metadata["config"])["model"]
    bases = json.loads(metadata["frozen_bases"])
    assert '"/' not in str(metadata) and "make quickstart" in metadata["note"]
    paths = [model["bert_path"], model["opt_model"], model["blip2_pretrain"], *(base["path"] for base in bases.values())]
    assert all(path.startswith("assets/quickstart/") and (REPOSITORY / path).exists() for path in paths)


def test_points_of_published_defaults() -> None:
    assert points_read({}) == {"pointcloud": 8192, "pointcloud_region": 40000}
