"""A YAML in the layout of the published code runs here with only path and size keys changed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
import train
from lavis.common import config as config_module
from lavis.common.config import Config, load_yaml
from lavis.models import load_model_from_config
from lavis.quickstart.clouds import generate_clouds
from lavis.quickstart.scenes import generate
from tests import tiny

PUBLISHED = Path(__file__).parent / "fixtures" / "published_layout.yaml"
# every key of the published files but the names of datasets, splits, stages and task names
KEYS = """
    arch enable_pointcloud_qformer load_finetuned finetuned load_pretrained pretrained load_blip2_pretrain blip2_pretrain
    freeze_blip2_pretrain bert_path max_txt_len embed_dim freeze_qformer qformer input_dim num_query_token cross_attention_freq
    freeze_vit vit vit_model img_size drop_path_rate use_grad_checkpoint vit_precision freeze_point_encoder pointbert with_color
    opt_model prompt enable_aux_regloss aux_regloss_weight ablation_no_posembed apply_lemmatizer

    task_name vis_processor text_processor name image_size build_info annotations storage dataset_repeat_num images pointcloud
    num_points pc_augmentation scene_root_dir scanner_file scannet_v2_tsv use_color use_height augment use_random_cuboid
    random_cuboid_min_points point_processor url md5 type data_type dataset_card

    runner task lr_sched init_lr min_lr warmup_lr warmup_steps weight_decay max_epoch batch_size_train batch_size_train_per_task
    batch_size_eval num_workers log_freq max_len min_len num_beams inference_method seed output_dir amp resume_ckpt_path evaluate
    train_splits valid_splits test_splits device world_size dist_url distributed
"""
NAMES = {"model", "datasets", "run", "train", "test", "eval", "general_box_caption", "pointcloud_caption", "scannet_refer"}


def keys_of(node: Any) -> set[str]:
    if not isinstance(node, dict):
        return set()
    below = (keys_of(value) for key, value in node.items() if key != "batch_size_train_per_task")
    return set(node).union(*below)


def test_the_file_has_every_published_key() -> None:
    assert keys_of(load_yaml(PUBLISHED)) - NAMES == set(KEYS.split())


def test_it_loads_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    config_module._noticed.clear()
    with caplog.at_level(logging.INFO, "lavis"):
        cfg = Config.from_file(PUBLISHED)
        Config.from_file(PUBLISHED)
    notices = [record.message.split()[0] for record in caplog.records if "without effect" in record.message]
    assert "datasets.pointcloud_caption.point_processor" in notices and len(set(notices)) == len(notices)
    assert cfg.model.vit.depth == 39 and cfg.model.pointbert.num_group == 512, "sizes that the published files leave out"
    assert list(cfg.datasets.general_box_caption.build_info.annotations.test.storage) == ["theirs/refcoco/Refcoco_test.json"]


def test_a_language_model_of_the_other_kind() -> None:
    content = load_yaml(PUBLISHED)
    content["model"] = {key: value for key, value in content["model"].items() if key != "opt_model"}
    content["model"] |= {
        "arch": "regionblip_t5",
        "t5_model": "theirs/flan-t5-xl",
        "t5_precision": "bfloat16",
        "prompt": "a photo of",
    }
    model = config_module.merge_model_config(content["model"])
    assert model.t5_model == "theirs/flan-t5-xl" and "opt_model" not in model


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The paths and sizes of tiny data and a tiny BLIP-2, which holds the ViT too."""
    folder = tmp_path_factory.mktemp("published")
    data = folder / "data"
    generate(data, seed=3, num_train=4, num_test=2)
    generate_clouds(data, seed=3, train_objects=16, test_objects=1, train_rooms=3, test_rooms=1)
    model = tiny.model_config(folder / "model", "regionblip_opt")
    torch.manual_seed(1)
    blip2 = load_model_from_config({key: value for key, value in model.items() if key != "pointbert"} | {"arch": "blip2_opt"})
    state = {blip2.key_map.from_lavis(name, "blip2"): tensor for name, tensor in blip2.state_dict().items()}
    torch.save({"model": state}, folder / "blip2.pth")
    point_encoder = load_model_from_config(model).point_encoder.state_dict()
    torch.save({"base_model": point_encoder}, folder / "point_bert.pt")
    small = {
        "blip2_pretrain": folder / "blip2.pth",
        "pointbert.pretrained": folder / "point_bert.pt",
        "bert_path": model["bert_path"],
        "opt_model": model["opt_model"],
        "embed_dim": 16,
        **{f"qformer.{key}": value for key, value in model["qformer"].items()},
        **{f"vit.{key}": value for key, value in model["vit"].items() if key != "vit_precision"},
        **{f"pointbert.{key}": value for key, value in model["pointbert"].items()},
    }
    rooms = {"scanner_file": data / "annotations/ScanRefer_train.json", "scene_root_dir": data / "rooms", "num_points": 256}
    regions = "general_box_caption.build_info"
    paths = {
        **{f"general_box_caption.vis_processor.{stage}.image_size": 28 for stage in ("train", "eval")},
        **{f"{regions}.annotations.{split}.storage": data / f"annotations/Refcoco_{split}.json" for split in ("train", "test")},
        f"{regions}.images.storage": data / "images",
        "pointcloud_caption.build_info.annotations.train.storage": data / "annotations/cap3d_train.txt",
        "pointcloud_caption.build_info.pointcloud.storage": data / "objects",
        "pointcloud_caption.build_info.pointcloud.num_points": 256,
        **{f"scannet_refer.annotations.train.{key}": value for key, value in rooms.items()},
    }
    return [
        *(f"model.{key}={value}" for key, value in small.items()),
        *(f"datasets.{key}={value}" for key, value in paths.items()),
        f"run.output_dir={folder / 'out'}",
    ]


def test_it_trains_and_evaluates(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The frozen BERT, LLM and point encoder have random weights here, which one key of ours allows."""
    out = Path(options[-1].partition("=")[2])
    allowed = "model.allow_random_init=true"
    assert train.main(["--cfg-path", str(PUBLISHED), "--options", *options, allowed]) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    means = next(line["mean"] for line in lines if "mean" in line)
    assert set(means) == {"image_region", "pointcloud", "pointcloud_region"}
    arguments = ["--cfg-path", str(PUBLISHED), "--options", *options, allowed]
    trained = ["model.load_pretrained=true", f"model.pretrained={out / 'checkpoint_0.pth'}"]
    ask = ["run.evaluate=true", "run.task=imageregion_captioning_refcoco"]
    assert evaluate.main([*arguments, *trained, *ask]) == 0, capsys.readouterr().err
    result = json.loads(next((out / "result").glob("*epochbest.json")).read_text())
    assert result and all(set(row) == {"caption", "image_id"} for row in result)
