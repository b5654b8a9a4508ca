"""The 30 published run files: their names and what they set; the further evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lavis.common.config import Config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "run_scripts"
LLMS = {"opt-2.7b": "opt2.7b", "opt-6.7b": "opt6.7b", "t5-xl": "flant5xl", "t5-xxl": "flant5xxl"}
# what an evaluation asks -> (dataset, split, task)
ASKED = {
    "Image-caption_coco": ("coco_caption", "test", "image_captioning_coco"),
    "ImageRegion-caption_refcoco": ("general_box_caption", "test", "imageregion_captioning_refcoco"),
    "ImageRegion-caption_refcocog": ("general_box_caption", "test", "imageregion_captioning_refcoco"),
    "Pointcloud-caption": ("pointcloud_caption", "test", "pointcloud_captioning_objaverse"),
    "Pointcloud-caption_objaverse": ("pointcloud_caption", "test", "pointcloud_captioning_objaverse"),
    "PointcloudRegion-caption_referscannet": ("scannet_refer", "val", "pointcloudregion_captioning_refscannet"),
    "zeroshot_3d-classification": ("mobilenet40", "test", "multimodal_3d_classification"),
    "zeroshot_3d-classificatoin": ("mobilenet40", "test", "multimodal_3d_classification"),
    "zeroshot_vqav2": ("coco_vqa", "val", "vqa"),
}
OPT = ["Image-caption_coco", "ImageRegion-caption_refcoco", "Pointcloud-caption", "PointcloudRegion-caption_referscannet"]
T5 = [name if name != "Pointcloud-caption" else "Pointcloud-caption_objaverse" for name in OPT]
EVALUATIONS = {
    "opt-2.7b": [*OPT, "zeroshot_3d-classification", "ImageRegion-caption_refcocog"],
    "opt-6.7b": [*OPT, "zeroshot_3d-classification"],
    "t5-xl": [*T5, "zeroshot_vqav2", "zeroshot_3d-classificatoin"],
    "t5-xxl": [*T5, "zeroshot_vqav2"],
}
EVAL_FILES = [
    (f"eval_{size.split('-')[0]}/eval_regionblip_{size}_{asked}__A10040G.yaml", size, asked)
    for size, names in EVALUATIONS.items()
    for asked in names
]
TRAIN_FILES = [
    (f"train/regionblip_{size}_freeze-qformer_regloss_pcqformer_{'A100' if size.startswith('t5') else 'A10040G'}.yaml", size)
    for size in LLMS
]
SCRIPTS = [path.replace(".yaml", "_4node.sh") for path, _ in TRAIN_FILES]
PATHS = ("WEIGHTS", "DATA", "BERT", "OPT", "T5", "CHECKPOINT")


@pytest.fixture(autouse=True)
def dummy_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVA_VIT", "BLIP2", "POINT_BERT", "MODEL", "COCO", "REFER", "CAP3D", "OBJAVERSE", "SCANREFER", "SCANNET"):
        monkeypatch.delenv(name, raising=False)
    for name in PATHS:
        monkeypatch.setenv(name, f"/dummy/{name}")


def load(path: str, *options: str) -> Config:
    return Config.from_file(FOLDER / path, options=options)


def texts(node: Any) -> list[str]:
    """Every text of nested containers."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in texts(value)]
    if isinstance(node, list):
        return [text for value in node for text in texts(value)]
    return [node] if isinstance(node, str) else []


def test_the_thirty_published_names_exist() -> None:
    expected = {*(path for path, *_ in EVAL_FILES), *(path for path, _ in TRAIN_FILES), *SCRIPTS}
    found = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*regionblip_*") if path.is_file()}
    assert len(expected) == 30 and found == expected


def check_size(cfg: Config, size: str) -> None:
    """The published model, with every path from the environment."""
    model, family = cfg.model, size.split("-")[0]
    assert model.arch == f"regionblip_{family}" and model[f"{family}_model"] == f"/dummy/{family.upper()}"
    assert model.blip2_pretrain == f"/dummy/WEIGHTS/blip2_pretrained_{LLMS[size]}.pth" and model.load_blip2_pretrain
    assert model.vit.pretrained == "/dummy/WEIGHTS/eva_vit_g.pth" and model.bert_path == "/dummy/BERT"
    assert model.pointbert.pretrained == "/dummy/WEIGHTS/point_bert_pretrained.pt"
    assert model.enable_pointcloud_qformer and model.freeze_qformer and model.freeze_vit and model.freeze_point_encoder
    assert (model.max_txt_len, model.embed_dim, model.vit.vit_precision) == (32, 256, "fp16")
    assert dict(model.qformer) == {"input_dim": 1408, "num_query_token": 32, "cross_attention_freq": 2}
    assert cfg.run.runner == "runner_regionblip" and cfg.run.seed == 42 and cfg.run.amp and cfg.run.num_workers == 4
    relative = [text for text in texts(cfg.to_dict()["datasets"]) if "/" in text and not text.startswith("/dummy/DATA/")]
    assert not relative, "data paths that no variable moves"


@pytest.mark.parametrize(("path", "size", "asked"), EVAL_FILES, ids=lambda value: str(value))
def test_published_evaluations(path: str, size: str, asked: str) -> None:
    cfg = load(path)
    check_size(cfg, size)
    dataset, split, task = ASKED[asked]
    assert list(cfg.datasets) == [dataset] and list(cfg.run.test_splits) == [split] and cfg.run.task == task
    assert cfg.model.load_pretrained and cfg.model.pretrained == "/dummy/CHECKPOINT" and cfg.run.evaluate
    pixels = 224 if task == "vqa" else 364
    assert cfg.model.vit.img_size == pixels and cfg.run.num_beams == 5
    size_of_pictures = cfg.datasets[dataset].vis_processor.eval.get("image_size")
    assert size_of_pictures == (pixels if dataset not in ("pointcloud_caption", "scannet_refer", "mobilenet40") else None)
    assert (cfg.run.max_len, cfg.run.min_len) == ((10, 1) if task == "vqa" else (30, 8))
    assert cfg.run.batch_size_eval == (8 if task == "vqa" else 16)
    assert cfg.run.prompt == ("Question: {} Short answer:" if task == "vqa" else None)
    assert cfg.run.output_dir.startswith("training_dir/eval_regionblip_")


@pytest.mark.parametrize(("path", "size"), TRAIN_FILES, ids=lambda value: str(value))
def test_published_trainings(path: str, size: str) -> None:
    cfg = load(path)
    check_size(cfg, size)
    run, data = cfg.run, cfg.datasets
    assert (run.task, run.lr_sched, run.max_epoch) == ("regionblip_pretrain", "linear_warmup_cosine_lr", 10)
    assert (run.init_lr, run.min_lr, run.warmup_lr, run.warmup_steps, run.weight_decay) == (1e-4, 1e-5, 1e-6, 200, 0.05)
    names = ("ImageRegionText_posembed", "PointcloudText", "PointcloudRegionText_posembed")
    assert dict(run.batch_size_train_per_task) == {f"task_alignLLM_{name}": 16 for name in names}
    assert {data[name].task_name for name in data} == set(run.batch_size_train_per_task)
    assert cfg.model.vit.img_size == 224 == data.general_box_caption.vis_processor.train.image_size
    clouds, rooms = data.pointcloud_caption.build_info.pointcloud, data.scannet_refer.annotations.train
    assert clouds.num_points == 8192 and clouds.pc_augmentation
    assert rooms.num_points == 40000 and rooms.dataset_repeat_num == 2 and not (rooms.use_color or rooms.use_height)
    assert not rooms.augment and not rooms.use_random_cuboid and list(run.test_splits) == []
    assert cfg.model.freeze_blip2_pretrain and not cfg.model.load_pretrained


@pytest.mark.parametrize("name", ["refcoco+", "refcocog", "vqav2", "okvqa", "gqa"])
def test_further_evaluations_serve_every_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in LLMS:
        monkeypatch.setenv("MODEL", size)
        if name in ("okvqa", "gqa"):
            monkeypatch.setenv(name.upper(), f"/dummy/DATA/{name}")
        cfg = load(f"eval/{name}.yaml")
        check_size(cfg, size)
        assert cfg.model.load_pretrained and cfg.run.output_dir == f"output/eval_regionblip_{size}_{name}"
        assert cfg.run.task == ("imageregion_captioning_refcoco" if name.startswith("ref") else "vqa")
    if name.startswith("ref"):
        assert f"/{name}/" in cfg.datasets.general_box_caption.build_info.annotations.test.storage
    monkeypatch.setenv("MODEL", "opt-13b")
    with pytest.raises(ValueError, match=r"opt-13b\.yaml"):
        load(f"eval/{name}.yaml")
