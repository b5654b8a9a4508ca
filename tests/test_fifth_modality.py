"""A further modality on an encoder that is there: one row of YAML and a data set, no file under lavis/ touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import evaluate
import train
from lavis.common.config import Config
from lavis.models import load_model_from_config
from tests import tiny

USER_MODULE = '''
"""A user's own data set of CAD parts: the layout of Objaverse, read by a class of the user's."""
from lavis.common.registry import registry
from lavis.datasets.datasets.objaverse import PointcloudCaptionBuilder


@registry.register_builder("toy_cad")
class ToyCadBuilder(PointcloudCaptionBuilder):
    name = "toy_cad"
    DATASET_CONFIG_DICT = {"default": "toy_cad.yaml"}
'''
DEFAULTS = """
datasets:
  toy_cad:
    task_name: cad_part
    data_type: pointcloud
    vis_processor: {train: {name: base_point_cloud}, eval: {name: base_point_cloud}}
    text_processor: {train: {name: blip_caption}, eval: {name: blip_caption}}
    build_info:
      annotations:
        train: {storage: null, dataset_repeat_num: 1, url: null, md5: null}
        test: {storage: null, dataset_repeat_num: 1, url: null, md5: null}
      pointcloud: {storage: null, num_points: 64, pc_augmentation: true, use_color: false, all_captions: false}
"""
ROW = {"suffix": "cad", "encoder": "pointcloud", "qformer": "Qformer_pc", "losses": {"itc": 1.0, "lm": 1.0, "llm": 1.0}}


def write_objects(folder: Path) -> None:
    """Eight clouds and a line of caption for each."""
    rng = np.random.RandomState(0)
    lines = []
    for number in range(8):
        place = folder / "clouds" / f"part{number}"
        place.mkdir(parents=True)
        np.savez(place / f"part{number}_8192.npz", rng.randn(64, 3).astype("float32"))
        lines.append(f"part{number},{tiny.TEXTS[number % 4]}\n")
    (folder / "captions.txt").write_text("".join(lines))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cad")
    write_objects(folder)
    (folder / "my_cad.py").write_text(USER_MODULE)
    (folder / "toy_cad.yaml").write_text(DEFAULTS)
    files = {split: {"storage": str(folder / "captions.txt")} for split in ("train", "test")}
    content: dict[str, Any] = {
        "imports": ["my_cad.py"],
        "model": tiny.model_config(folder / "model", "regionblip_opt", modalities={"cad_part": ROW}),
        "datasets": {"toy_cad": {"build_info": {"annotations": files, "pointcloud": {"storage": str(folder / "clouds")}}}},
        "run": {
            "runner": "runner_regionblip",
            "task": "regionblip_pretrain",
            "batch_size_train_per_task": {"cad_part": 4},
            "max_epoch": 2,
            "init_lr": 1.0e-2,
            "warmup_steps": 1,
            "num_workers": 0,
            "log_freq": 1,
            "num_beams": 2,
            "max_len": 6,
            "min_len": 1,
            "tensorboard": False,
            "report_metric": False,
            "output_dir": str(folder / "out"),
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def seeded(cfg: Any) -> Any:
    torch.manual_seed(0)
    return load_model_from_config(cfg)


def test_it_trains_evaluates_and_leaves_the_others_alone(config: Path) -> None:
    folder = config.parent
    assert train.main(["--cfg-path", str(config)]) == 0
    lines = [json.loads(line) for line in (folder / "out" / "log.txt").read_text().splitlines()]
    assert {line["modality"] for line in lines if "modality" in line} == {"cad_part"}

    options = ["run.task=pointcloud_captioning_objaverse", "run.test_splits=[test]", f"run.output_dir={folder / 'eval'}"]
    checkpoint = folder / "out" / "checkpoint_1.pth"
    weights = ["model.load_finetuned=true", f"model.finetuned={checkpoint}"]
    assert evaluate.main(["--cfg-path", str(config), "--options", *options, *weights]) == 0
    rows = json.loads((folder / "eval" / "result" / "test_epochbest.json").read_text())
    assert {row["image_id"] for row in rows} == {f"part{i}" for i in range(8)}

    cfg = Config.from_file(config).model_cfg
    fresh, trained = (seeded(cfg) for _ in range(2))
    state = torch.load(checkpoint, weights_only=True)["model"]
    moved = [name for name, tensor in state.items() if ".cad_part" in name]
    trained.load_checkpoint({name: state[name] for name in moved})
    assert len(moved) > 10
    picture = {"image": tiny.image_batch()["image"], "modality": "image"}
    cloud = tiny.cloud_batch()
    for model in (fresh, trained):
        model.eval()
    assert trained.generate(picture, num_beams=2, max_length=8) == fresh.generate(picture, num_beams=2, max_length=8)
    features = [model.extract_features(cloud, mode="image").image_embeds for model in (fresh, trained)]
    assert torch.equal(*features), "adapters of the new modality do not reach clouds"
    own = [model.extract_features({**cloud, "modality": "cad_part"}, mode="image").image_embeds for model in (fresh, trained)]
    assert not torch.equal(*own), "and do reach its own"
