"""Every YAML file loads, says how it is run, and names no machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lavis.common.config import Config, dataset_defaults, model_defaults
from lavis.common.registry import registry
from lavis.datasets.builders.base_dataset_builder import dataset_zoo
from lavis.models import load_model_from_config, model_zoo
from lavis.processors import load_processor
from lavis.runners.checks import check_run

ROOT = Path(__file__).parents[1]
SHARED = ("quickstart/common.yaml", "quickstart/images.yaml", "quickstart/clouds.yaml")  # named by `base:` in others
FOLDER = ROOT / "run_scripts"
RUNS = sorted(
    path for path in FOLDER.rglob("*.yaml") if path.parent.name != "shared" and str(path.relative_to(FOLDER)) not in SHARED
)
ALL = sorted([*(ROOT / "run_scripts").rglob("*.yaml"), *(ROOT / "lavis/configs").rglob("*.yaml")])


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT)))
def test_run_configs_load_and_name_things_that_exist(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cfg = Config.from_file(path)
    check_run(cfg.run)
    registry.get_model_class(cfg.model.arch)
    splits, stage = (cfg.run.test_splits, "eval") if cfg.run.test_splits else (cfg.run.train_splits, "train")
    for name, dataset in cfg.datasets.items():
        builder = registry.get_builder_class(name)(dataset)
        node = dataset
        for key in builder.annotations_at:
            node = node[key]
        assert all(node[split][builder.storage_key] for split in splits), f"{name} has no file of {splits}"
        for kind in ("vis_processor", "text_processor"):
            load_processor(dataset[kind][stage].name, dataset[kind][stage])


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT)))
def test_run_configs_say_how_to_run_them(path: Path) -> None:
    comment = re.match(r"(#.*\n)+", path.read_text())
    assert comment, "a comment on top"
    for word in ("Run:", "Hardware:", "Expected:"):
        assert word in comment.group(), f"{path.name} does not say {word}"


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_config_names_a_machine(path: Path) -> None:
    assert not re.search(r"(?<![\w.$}])/(home|root|mnt|data|export|workspace)/", path.read_text())


OURS = [arch for arch, _ in model_zoo if registry.get_model_class(arch).__module__.startswith("lavis.")]


@pytest.mark.parametrize("arch", OURS)
def test_model_defaults_are_complete(arch: str) -> None:
    """Every registered type has defaults, which by themselves are a config that lacks files only."""
    for model_type in dict(model_zoo)[arch]:
        defaults = model_defaults(arch, model_type=model_type)
        assert defaults["model"]["arch"] == arch and "preprocess" in defaults
    with pytest.raises(ValueError, match="bert_path|bert-base-uncased"):
        load_model_from_config({"arch": arch, "bert_path": "no-such-folder"})


def test_dataset_defaults_are_complete() -> None:
    ours = [name for name in dataset_zoo.get_names() if registry.get_builder_class(name).__module__.startswith("lavis.")]
    assert {"coco_caption", "general_box_caption", "pointcloud_caption", "scannet_refer", "mobilenet40"} <= set(ours)
    for name in ours:
        builder = registry.get_builder_class(name)
        for dataset_type in builder.DATASET_CONFIG_DICT:
            block = dataset_defaults(name, dataset_type=dataset_type)
            for key in builder.annotations_at:
                block = block[key]
            assert block


def test_options_select_the_default_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = ROOT / "run_scripts/quickstart/eval_image_blip2.yaml"
    assert Config.from_file(path).model.arch == "blip2_opt"
    with pytest.raises(ValueError, match="pretrain_opt2.7b"):
        Config.from_file(path, options=["model.model_type=pretrain_opt2.6b"])
