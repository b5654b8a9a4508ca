from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.datasets import dataset_zoo, load_dataset, load_dataset_config
from lavis.datasets.datasets.base_dataset import AnnotationError
from lavis.datasets.datasets.captions import CaptionDataset, CaptionEvalDataset, CocoCaptionBuilder
from tests.datasets.files import write_images, write_json

NAMES = ("coco_caption", "general_box_caption", "general_box_caption_2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", ["x_1.png", "x_2.png"])
    write_json(tmp_path / "train.json", [{"image": "x_1.png", "caption": "one"}])
    write_json(tmp_path / "more.json", [{"image": "x_2.png", "caption": "two"}])
    write_json(tmp_path / "test.json", [{"image": "x_2.png", "caption": ["two", "zwei"]}])
    return tmp_path


def config(folder: Path, **splits: Any) -> dict[str, Any]:
    splits = splits or {"train": {"storage": str(folder / "train.json")}}
    return {
        "vis_processor": {"train": {"name": "blip2_image_train", "image_size": 16}}
        | {"eval": {"name": "blip_image_eval", "image_size": 16}},
        "text_processor": {"train": {"name": "blip_caption"}, "eval": {"name": "blip_caption"}},
        "build_info": {"annotations": splits, "images": {"storage": str(folder / "images")}},
    }


@pytest.mark.parametrize("name", NAMES)
def test_registered_with_a_default_yaml(name: str) -> None:
    assert name in dataset_zoo.get_names() and name in dataset_zoo
    builder = registry.get_builder_class(name)()
    assert builder.modality == ("image" if name == "coco_caption" else "image_region")
    assert builder.name == name
    with pytest.raises(ConfigError, match=rf"datasets\.{name}\.build_info\.annotations: no split has a storage"):
        builder.build_datasets()


def test_splits_and_lists_of_files(folder: Path) -> None:
    files = [str(folder / "train.json"), str(folder / "more.json")]
    cfg = config(
        folder,
        train={"storage": files, "dataset_repeat_num": 2},
        test={"storage": str(folder / "test.json")},
        val={"storage": None},
    )
    datasets = CocoCaptionBuilder(OmegaConf.create(cfg)).build_datasets()
    assert set(datasets) == {"train", "test"}
    train, test = datasets["train"], datasets["test"]
    assert isinstance(train, CaptionDataset) and isinstance(test, CaptionEvalDataset)
    assert (len(train), train.name, train.split, train.modality) == (4, "coco_caption", "train", "image")
    assert len(test) == 1 and test.split == "test"
    only = CocoCaptionBuilder(cfg).build_datasets(splits=["test"])
    assert list(only) == ["test"]


def test_relative_paths(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(folder, train={"storage": "train.json"})
    cfg["build_info"]["images"]["storage"] = "images"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"annotations\.train\.storage: no file at .*elsewhere.*nowhere"):
        CocoCaptionBuilder(cfg).build_datasets()
    monkeypatch.setenv("LAVIS_CACHE", str(folder))
    assert len(CocoCaptionBuilder(cfg).build_datasets()["train"]) == 1
    monkeypatch.delenv("LAVIS_CACHE")
    assert len(CocoCaptionBuilder(cfg, cache_root=folder).build_datasets()["train"]) == 1
    monkeypatch.chdir(folder)
    assert len(CocoCaptionBuilder(cfg).build_datasets()["train"]) == 1


def test_missing_files_are_named_before_any_is_read(folder: Path) -> None:
    (folder / "train.json").write_text("not json")
    cfg = config(
        folder,
        train={"storage": str(folder / "train.json")},
        test={"storage": "/gone.json", "url": "https://example.org/gone.json"},
    )
    with pytest.raises(ConfigError) as caught:
        CocoCaptionBuilder(cfg).build_datasets()
    message = str(caught.value)
    assert "datasets.coco_caption.build_info.annotations.test.storage: no file at /gone.json" in message
    assert "https://example.org/gone.json" in message
    cfg = config(folder)
    cfg["build_info"]["images"]["storage"] = str(folder / "pictures")
    with pytest.raises(ConfigError, match=r"build_info\.images\.storage: no folder at .*pictures"):
        CocoCaptionBuilder(cfg).build_datasets()


def test_no_picture_found_is_an_error_that_names_the_file(folder: Path) -> None:
    (folder / "empty").mkdir()
    cfg = config(folder)
    cfg["build_info"]["images"]["storage"] = str(folder / "empty")
    with pytest.raises(AnnotationError, match=r"train\.json: no usable row among 1; .*missing image: .*empty"):
        CocoCaptionBuilder(cfg).build_datasets()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"build_info": {"annotations": {"train": {"storag": "x"}}}}, "storag.*storage"),
        ({"build_info": {"annotations": {"train": {"storage": 3}}}}, "storage is 3; accepted: the path of a file"),
        ({"vis_procesor": {}}, "vis_procesor.*vis_processor"),
        ({"vis_processor": {"train": {"name": "blip_imag_eval"}}}, r"vis_processor\.train: .*blip_image_eval"),
        ({"vis_processor": {"train": {"image_siz": 3}}}, r"vis_processor\.train: .*image_siz.*image_size"),
        ({"vis_processor": {"train": {"name": None}}}, r"vis_processor\.train\.name is not set; accepted: .*blip"),
        ({"task_name": "task_alignLLM_ImageTxt"}, "task_alignLLM_ImageText"),
        ({"data_type": "videos"}, "data_type is 'videos'; accepted: images"),
    ],
)
def test_mistakes_are_named(folder: Path, change: dict[str, Any], message: str) -> None:
    cfg = OmegaConf.create(config(folder))
    cfg.merge_with(change)
    with pytest.raises(ConfigError, match=message):
        CocoCaptionBuilder(cfg).build_datasets()


def test_split_that_has_no_storage(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"annotations\.val\.storage is not set; splits with a storage: train"):
        CocoCaptionBuilder(config(folder)).build_datasets(splits=["val"])


def test_checksum_is_compared(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "train.json"
    good = hashlib.md5(path.read_bytes()).hexdigest()
    CocoCaptionBuilder(config(folder, train={"storage": str(path), "md5": good})).build_datasets()
    assert "md5" not in caplog.text
    CocoCaptionBuilder(config(folder, train={"storage": str(path), "md5": "0" * 32})).build_datasets()
    assert f"train.json has md5 {good}" in caplog.text


def test_load_dataset(folder: Path) -> None:
    block = {"build_info": {"annotations": {"test": {"storage": str(folder / "test.json")}}}}
    path = folder / "my.yaml"
    OmegaConf.save(OmegaConf.create({"datasets": {"coco_caption": block}}), path)
    datasets = load_dataset("coco_caption", cfg_path=path, vis_path=folder / "images")
    sample = datasets["test"][0]
    assert isinstance(sample["image"], Image.Image), "pictures pass as they are where no processor is configured"
    assert sample["text_input"] == "two" and sample["image_id"] == 2
    with pytest.raises(ConfigError, match=r"no block datasets\.general_box_caption"):
        load_dataset("general_box_caption", cfg_path=path)
    with pytest.raises(ConfigError, match="no configuration file at"):
        load_dataset("coco_caption", cfg_path=folder / "none.yaml")
    with pytest.raises(ConfigError, match="coco_caption"):
        load_dataset("coco_captoin")


def test_load_dataset_reads_a_published_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A YAML that evaluates a model gives its dataset, references and environment variables filled in."""
    rows = [{"image": "x_1.png", "image_id": "1", "bbox": [1, 2, 30, 20], "caption": "left"}]
    for split in ("train", "test"):
        write_json(folder / f"refer/refcoco/Refcoco_{split}.json", rows)
    write_images(folder / "refer/images", ["x_1.png"])
    monkeypatch.setenv("REFER", str(folder / "refer"))
    path = Path(__file__).parents[3] / "run_scripts/shared/refcoco.yaml"
    datasets = load_dataset("general_box_caption", cfg_path=path)
    assert datasets["train"][0]["image"].shape == (3, 224, 224) and datasets["test"][0]["image"].shape == (3, 364, 364)
    assert datasets["test"][0]["image_id"] == "1_box_1_2_30_20"
    assert load_dataset_config(path) == load_dataset_config(path, "general_box_caption")
    assert load_dataset_config(path).build_info.images.storage == str(folder / "refer/images")
    with pytest.raises(ConfigError, match="no block datasets.coco_caption"):
        load_dataset_config(path, "coco_caption")
    (folder / "unset.yaml").write_text("datasets: {coco_caption: {data_type: '${oc.env:NOT_SET_ANYWHERE}'}}")
    with pytest.raises(ConfigError, match="unset.yaml.*NOT_SET_ANYWHERE"):
        load_dataset_config(folder / "unset.yaml")


def test_load_dataset_with_another_block_of_build_info(folder: Path) -> None:
    annotations = {"test": {"storage": str(folder / "test.json")}}
    path = folder / "my.yaml"
    OmegaConf.save(OmegaConf.create({"datasets": {"coco_caption": {"build_info": {"annotations": annotations}}}}), path)
    datasets = load_dataset("coco_caption", path, folder / "images", "images")
    assert datasets["test"][0]["image"].size == (40, 30)
    with pytest.raises(ConfigError, match=r"datasets\.coco_caption\.data_type 'image'. Did you mean 'images'.*Accepted: images"):
        load_dataset("coco_caption", path, folder / "images", "image")


def test_the_zoo_prints_and_iterates() -> None:
    lines = str(dataset_zoo).splitlines()
    assert lines[1].split() == ["Datasets", "Types"]
    table = dict(dataset_zoo)
    assert list(table) == dataset_zoo.get_names() and len(dataset_zoo) == sum(map(len, table.values()))
    assert table["mobilenet40"] == ["default", "ensemble"] and any(line.split() == ["coco_caption", "default"] for line in lines)
    assert "coco_captoin" not in dataset_zoo
