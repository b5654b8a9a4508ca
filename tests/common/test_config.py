"""Layers, selection of default files, and errors that say what is accepted."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lavis.common import config as config_module
from lavis.common.config import Config, ConfigError, merge_dataset_config, merge_model_config, model_defaults
from lavis.common.registry import registry

MODEL_YAML = """
model: {arch: tiny_cfg_model, width: 8, rate: 0.5, flag: false, name: x, nested: {depth: 2, kind: null}, free: {}}
types: {large: {width: 64}}
preprocess: {vis_processor: {eval: {name: blip_image_eval}}}
"""


class TinyModel:
    PRETRAINED_MODEL_CONFIG_DICT: dict[str, str] = {}


class TinyBuilder:
    DATASET_CONFIG_DICT: dict[str, str] = {}


registry.register_model("tiny_cfg_model")(TinyModel)
registry.register_builder("tiny_cfg_dataset")(TinyBuilder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def dataset(size: int) -> str:
        block = {"size": size, "build_info": {"annotations": {}, "images": {"storage": None}}}
        return yaml.dump({"datasets": {"tiny_cfg_dataset": block}})

    (tmp_path / "model.yaml").write_text(MODEL_YAML)
    (tmp_path / "other.yaml").write_text(MODEL_YAML.replace("width: 8", "width: 16"))
    (tmp_path / "small.yaml").write_text(dataset(1))
    (tmp_path / "big.yaml").write_text(dataset(1000))
    types = {"plain": "model.yaml", "large": "model.yaml", "other": "other.yaml"}
    table = {name: str(tmp_path / file) for name, file in types.items()}
    monkeypatch.setattr(TinyModel, "PRETRAINED_MODEL_CONFIG_DICT", table)
    sizes = {"default": str(tmp_path / "small.yaml"), "big": str(tmp_path / "big.yaml")}
    monkeypatch.setattr(TinyBuilder, "DATASET_CONFIG_DICT", sizes)
    return tmp_path


def load(folder: Path, content: dict[str, Any], *options: str) -> Config:
    path = folder / "user.yaml"
    path.write_text(yaml.dump({"model": {"arch": "tiny_cfg_model"}, **content}))
    return Config(Namespace(cfg_path=str(path), options=list(options)))


def test_layers(folder: Path) -> None:
    cfg = load(folder, {"run": {"max_epoch": 3, "seed": 1}, "datasets": {"tiny_cfg_dataset": None}}, "run.seed=7")
    assert (cfg.run_cfg.max_epoch, cfg.run.seed, cfg.run.lr_sched) == (3, 7, "linear_warmup_cosine_lr")
    assert (cfg.model.width, cfg.model_cfg.nested.depth) == (8, 2)
    assert cfg.datasets.tiny_cfg_dataset.size == 1
    assert cfg.to_dict()["model"]["free"] == {}
    assert "tiny_cfg_model" in cfg.pretty_print()


def test_options_select_the_default_files(folder: Path) -> None:
    datasets = {"datasets": {"tiny_cfg_dataset": {}}}
    assert load(folder, datasets, "model.model_type=large").model.width == 64
    assert load(folder, datasets, "model.model_type=other").model.width == 16
    assert load(folder, datasets, "model.model_type", "large", "model.width", "5").model.width == 5
    assert load(folder, datasets, "datasets.tiny_cfg_dataset.type=big").datasets.tiny_cfg_dataset.size == 1000
    with pytest.raises(ConfigError, match="Unknown model.model_type of tiny_cfg_model 'larg'. Did you mean 'large'"):
        load(folder, {}, "model.model_type=larg")
    with pytest.raises(ConfigError, match="datasets.tiny_cfg_dataset.type 'bigg'. Did you mean 'big'.*Accepted: big, default"):
        load(folder, datasets, "datasets.tiny_cfg_dataset.type=bigg")


def test_unknown_keys_are_refused_with_near_matches_and_accepted_keys(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown key 'run.max_epok'. Did you mean 'max_epoch'.*Accepted keys here: accum_"):
        load(folder, {"run": {"max_epok": 3}})
    with pytest.raises(ConfigError, match="Unknown key 'model.nested.dept'. Did you mean 'depth'.*here: depth, kind"):
        load(folder, {}, "model.nested.dept=3")
    with pytest.raises(ConfigError, match="Unknown key 'modle'. Did you mean 'model'.*base, datasets, env, imports, model, run"):
        load(folder, {"modle": {}})
    with pytest.raises(ConfigError, match="Unknown key 'datasets.tiny_cfg_dataset.build_info.imagse'"):
        load(folder, {"datasets": {"tiny_cfg_dataset": {"build_info": {"imagse": {}}}}})


def test_unknown_names_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown model 'tiny_cfg_modle'. Did you mean 'tiny_cfg_model'"):
        load(folder, {"model": {"arch": "tiny_cfg_modle"}})
    with pytest.raises(ConfigError, match="model.arch names no model: None. Accepted: .*tiny_cfg_model"):
        load(folder, {"model": {}})
    with pytest.raises(ConfigError, match="Unknown builder 'tiny_cfg_datase'"):
        load(folder, {"datasets": {"tiny_cfg_datase": {}}})


def test_an_empty_mapping_and_null_are_open(folder: Path) -> None:
    annotations = {"any_split": {"storage": ["a.json"], "deep": {"er": 1}}}
    content = {"datasets": {"tiny_cfg_dataset": {"build_info": {"annotations": annotations}}}}
    cfg = load(folder, content, "model.free.anything=1", "model.nested.kind={a: 1}")
    assert cfg.to_dict()["datasets"]["tiny_cfg_dataset"]["build_info"]["annotations"] == annotations
    assert cfg.to_dict()["model"]["free"] == {"anything": 1}
    assert cfg.model.nested.kind.a == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("run.max_epoch=two", "run.max_epoch must be a whole number .default 10., not 'two'"),
        ("run.max_epoch=1.5", "must be a whole number"),
        ("run.amp=yes please", "run.amp must be true or false"),
        ("run.init_lr=fast", "run.init_lr must be a number"),
        ("model.nested=3", "model.nested must be a mapping with keys depth, kind, not 3"),
        ("model.name=[1, 2]", "model.name must be text"),
        ("run.task=${nowhere}", "nowhere"),
        ("run.max_epoch", "'run.max_epoch' has no value"),
    ],
)
def test_values_of_another_kind_are_refused(folder: Path, option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(folder, {}, option)


def test_options_must_all_be_of_one_form(folder: Path) -> None:
    with pytest.raises(ConfigError, match="'run.seed' has no '='"):
        load(folder, {}, "run.max_epoch=1", "run.seed", "3")


def test_values_are_read_as_yaml(folder: Path) -> None:
    cfg = load(
        folder, {}, "run.test_splits=[a, b]", "run.init_lr=1e-3", "run.train_splits=train", "run.max_epoch=2.0", "model.rate=1"
    )
    assert (list(cfg.run.test_splits), cfg.run.init_lr, list(cfg.run.train_splits)) == (["a", "b"], 0.001, ["train"])
    assert isinstance(cfg.run.max_epoch, int) and cfg.model.rate == 1


def test_environment_variables_and_references(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data")
    cfg = load(folder, {"env": {"cache_root": "${oc.env:WHERE}/cache"}}, "run.output_dir=${env.cache_root}/out")
    assert cfg.run.output_dir == "/data/cache/out"


def test_base_files_are_merged_under(folder: Path) -> None:
    (folder / "base.yaml").write_text("run: {seed: 5, max_epoch: 9}\n")
    assert (load(folder, {"base": "base.yaml", "run": {"seed": 6}}).run.seed) == 6
    assert (load(folder, {"base": ["base.yaml"]}).run.max_epoch) == 9
    (folder / "base.yaml").write_text("base: user.yaml\n")
    with pytest.raises(ConfigError, match="goes in a circle"):
        load(folder, {"base": "base.yaml"})
    with pytest.raises(ConfigError, match="no configuration file at .*nowhere.yaml"):
        load(folder, {"base": "nowhere.yaml"})


def test_files_that_are_no_yaml(folder: Path) -> None:
    for text in ("a: [1\n", "- 1\n", "a: 1\na: 2\n"):
        (folder / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match="bad.yaml"):
            Config.from_file(folder / "bad.yaml")


def test_imports_register_user_code(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from lavis.common.registry import registry\n@registry.register_model('imported_model')\nclass Mine: pass\n"
    )
    cfg = load(folder, {"imports": ["mine.py"], "model": {"arch": "imported_model", "anything": 1}})
    assert cfg.model.anything == 1  # a class without default file: its keys are its own affair
    assert "lavis_user_mine" in sys.modules
    (folder / "saved.yaml").write_text(cfg.pretty_print())
    assert Config.from_file(folder / "saved.yaml").config == cfg.config  # what a run saves can be run again
    with pytest.raises(ConfigError, match="imports: no_such_module cannot be imported"):
        load(folder, {"imports": ["no_such_module"]})
    with pytest.raises(ConfigError, match="imports: no file .*absent.py"):
        load(folder, {"imports": ["absent.py"]})


def test_published_keys_without_effect_give_one_notice(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config_module._noticed.clear()
    block = {"dataset_card": "x", "build_info": {"annotations": {"train": {"url": "u", "md5": "m", "storage": "s"}}}}
    with caplog.at_level(logging.INFO, "lavis"):
        cfg = load(folder, {"datasets": {"tiny_cfg_dataset": block}})
        load(folder, {"datasets": {"tiny_cfg_dataset": block}})
    annotations = cfg.to_dict()["datasets"]["tiny_cfg_dataset"]["build_info"]["annotations"]
    assert annotations == {"train": {"storage": "s"}}
    notices = [record.message for record in caplog.records if "without effect" in record.message]
    assert sorted(notice.split()[0].rpartition(".")[2] for notice in notices) == ["dataset_card", "md5", "url"]


def test_a_key_of_an_older_version_gives_a_notice(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config_module._noticed.clear()
    with caplog.at_level(logging.INFO, "lavis"):
        merged = merge_model_config({"arch": "tiny_cfg_model", "model_type": "large", "packed_gb": 1.0})
    assert "packed_gb" not in merged
    assert [record.message for record in caplog.records] == [
        "model.packed_gb is a published key without effect here; it is ignored."
    ]


def test_sections_alone(folder: Path) -> None:
    full = merge_model_config({"arch": "tiny_cfg_model", "model_type": "large", "nested": {"depth": 9}})
    assert (full.width, full.nested.depth, full.nested.kind) == (64, 9, None)
    assert merge_model_config(full) == full
    assert model_defaults("tiny_cfg_model")["preprocess"]["vis_processor"]["eval"]["name"] == "blip_image_eval"
    part = merge_dataset_config("tiny_cfg_dataset", {"type": "big"})
    assert part.size == 1000 and merge_dataset_config("tiny_cfg_dataset", part) == part


def test_every_default_has_a_comment() -> None:
    text = (config_module.library_root / "configs" / "default.yaml").read_text()
    lines = [line for line in text.split("run:\n")[1].split("published_without_effect")[0].splitlines() if ":" in line]
    bare = [line for line in lines if "#" not in line]
    assert len(bare) <= 8, bare  # where the name says it all


def test_a_missing_default_file_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyModel, "PRETRAINED_MODEL_CONFIG_DICT", {"plain": "configs/models/absent.yaml"})
    with pytest.raises(ConfigError, match="TinyModel names the default file configs/models/absent.yaml"):
        load(folder, {})
