"""Runs with a feature cache give bit by bit what runs without one do, and encode each picture once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import evaluate
import train
from lavis.common import feature_cache
from lavis.common.errors import ConfigError
from lavis.common.feature_cache import FeatureStore
from lavis.datasets.datasets.captions import CaptionDataset
from lavis.datasets.datasets.regions import RegionDataset, RegionEvalDataset
from lavis.models import load_model_from_config
from lavis.models.encoders.eva_vit import EvaViT
from lavis.processors import load_processor
from lavis.quickstart.scenes import generate
from lavis.runners.features import open_feature_cache
from tests import tiny
from tests.datasets.files import SIZE, options, write_images, write_json
from tests.runners import fakes
from tests.test_end_to_end import call, write_config

PICTURES = 6 + 2  # for training and for validation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("cached")
    generate(made / "data", seed=3, num_train=6, num_test=2)
    sizes = {"image": 4, "image_region": 24}
    write_config(made, valid_splits=["test"], max_epoch=2, batch_size_train_per_task=sizes, batch_size_eval=12)
    return made


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pictures each pass of a ViT encoded."""
    sizes: list[int] = []
    forward = EvaViT.forward

    def counted(self: EvaViT, image: torch.Tensor) -> torch.Tensor:
        sizes.append(len(image))
        return forward(self, image)

    monkeypatch.setattr(EvaViT, "forward", counted)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield sizes
    torch.set_num_threads(threads)


Log = tuple[list[dict[str, Any]], list[dict[str, int]]]


def trained(folder: Path, name: str, *given: str) -> Log:
    """The log of a run without its times, and what each epoch's line says of the cache."""
    output = folder / name
    train.train(["--cfg-path", str(folder / "config.yaml"), "--options", f"run.output_dir={output}", *given])
    rows = [json.loads(line) for line in (output / "log.txt").read_text().splitlines()]
    counts = [row["timing"]["feature_cache"] for row in rows if "feature_cache" in row.get("timing", {})]
    return [{key: value for key, value in row.items() if key != "timing"} for row in rows], counts


@pytest.fixture
def plain(folder: Path) -> list[dict[str, Any]]:
    """The log of a run without a cache, which is made once."""
    log = folder / "plain.json"
    if not log.is_file():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        log.write_text(json.dumps(trained(folder, "plain")[0]))
        torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = json.loads(log.read_text())
    return rows


def test_losses_are_those_without_and_each_picture_is_encoded_once(folder: Path, plain: Any, encoded: list[int]) -> None:
    cache = f"run.feature_cache={folder / 'cache'}"
    cold, filled = trained(folder, "cold", cache)
    once = sum(encoded)
    encoded.clear()
    warm, found = trained(folder, "warm", cache, "run.num_workers=2")
    assert json.loads(json.dumps(cold)) == plain and json.loads(json.dumps(warm)) == plain
    assert PICTURES <= once < PICTURES + 6, "a batch may hold a picture twice that is not there yet"
    assert filled[0]["written"] == 6 and filled[0]["misses"] + filled[0]["hits"] == found[0]["hits"] > 6
    assert filled[1] == found[1], "the second epoch is warm"
    assert encoded == [] and found[0]["misses"] == found[1]["misses"] == found[0]["damaged"] == 0
    assert len(list((folder / "cache").glob("*/*/*"))) == PICTURES


def test_captions_are_those_without(folder: Path, plain: Any, encoded: list[int]) -> None:
    given = ["run.test_splits=[test]", "run.task=captioning", "model.load_finetuned=true"]
    given += [f"model.finetuned={folder / 'plain' / 'checkpoint_1.pth'}", "run.caption_metrics=[Bleu]"]
    results = []
    for name, *cache in (("e0",), ("e1", f"run.feature_cache={folder / 'c'}"), ("e2", f"run.feature_cache={folder / 'c'}")):
        encoded.clear()
        command = ["--cfg-path", str(folder / "config.yaml"), "--options", f"run.output_dir={folder / name}", *given, *cache]
        evaluate.evaluate(command)
        results.append({path.name: path.read_text() for path in (folder / name / "result").glob("*_epochbest.json")})
    assert len(results[0]) == 2 and results[0] == results[1] == results[2]
    assert encoded == []


def test_damaged_files_are_computed_again_and_told(
    folder: Path, plain: Any, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(feature_cache.logger, "warning", lambda text, *values: told.append(text % values))
    given = [f"run.feature_cache={folder / 'damaged'}", "run.max_epoch=1", "run.valid_splits=[]"]
    trained(folder, "before", *given)
    files = sorted((folder / "damaged").glob("*/*/*.safetensors"))
    assert len(files) == 6
    for path in files:
        path.write_bytes(path.read_bytes()[:100])
    encoded.clear()
    again, counts = trained(folder, "after", *given)
    steps = [row for row in plain if "modality" in row and row["epoch"] == 0]
    assert json.loads(json.dumps(again))[: len(steps)] == steps
    assert counts[0]["damaged"] == counts[0]["written"] == 6 <= sum(encoded)
    assert len(told) == feature_cache.NAMED and all("was damaged; it is computed again" in text for text in told)


def test_a_full_cache_changes_nothing(folder: Path, plain: Any, encoded: list[int]) -> None:
    full, counts = trained(folder, "full", f"run.feature_cache={folder / 'small'}", "run.feature_cache_gb=3.0e-6")
    assert json.loads(json.dumps(full)) == plain
    assert 0 < counts[0]["written"] < 6 and counts[1]["hits"] > 0 < counts[1]["misses"]
    assert sum(path.stat().st_size for path in (folder / "small").rglob("*") if path.is_file()) <= 3000


@pytest.mark.slow
def test_two_processes_fill_one_cache(folder: Path) -> None:
    rows = []
    for name, *given in (("r0",), ("r1", f"run.feature_cache={folder / 'r'}"), ("r2", f"run.feature_cache={folder / 'r'}")):
        options = [f"run.output_dir={folder / name}", "run.num_workers=1", "run.group_by_image=true", *given]
        done = call("train.py", folder / "config.yaml", *options, processes=2)
        assert done.returncode == 0, done.stdout + done.stderr
        rows.append([json.loads(line) for line in (folder / name / "log.txt").read_text().splitlines()])
    filled, found = ([row["timing"]["feature_cache"] for row in part if row.get("mean")] for part in rows[1:])
    for part in rows:
        for row in part:
            row.pop("timing", None)
    assert rows[0] == rows[1] == rows[2]
    assert filled[0]["written"] == 6 and found[0]["misses"] == 0 < found[0]["hits"]


# What a dataset does


def cached(tmp_path: Path, dataset: Any) -> FeatureStore:
    store = FeatureStore(tmp_path / "store", {}, shape=(3, 4), limit=10**9)
    store.open()
    assert dataset.set_feature_cache(store)
    return store


def test_a_batch_of_hits_and_misses_keeps_its_order(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{i}.png" for i in range(5)])
    rows = [{"image": f"{i % 5}.png", "image_id": str(i), "bbox": [2, 3, 20, 10], "caption": "thing"} for i in range(7)]
    plain = RegionDataset(**options(tmp_path, write_json(tmp_path / "a.json", rows), modality="image_region"))
    for share in (True, False):
        dataset = RegionDataset(**options(tmp_path, tmp_path / "a.json", modality="image_region"))
        dataset.share_inputs = share
        store = cached(tmp_path / str(share), dataset)
        samples = [plain[index] for index in range(7)]
        first = dataset.collater([dataset[index] for index in range(7)])
        assert "image_features" not in first and "image_order" not in first
        names = first["image_cache"]["names"]
        marks = {i: torch.full((3, 4), float(i)) for i in (1, 3, 4)}
        for i, mark in marks.items():
            store.write(names[i], mark, (40, 30))
        dataset._kept._kept.clear()
        batch = dataset.collater([dataset[index] for index in range(7)])
        whole = list(batch["image"]) + list(batch["image_features"])
        index = batch["image_index"].tolist() if share else list(range(7))
        assert len(whole) == (5 if share else 7) and batch["image_cache"]["hits"] == (3 if share else 4)
        for row, place in enumerate(index):
            found = whole[batch["image_order"][place]]
            assert torch.equal(found, marks[row % 5] if row % 5 in marks else samples[row]["image"])
        assert torch.equal(batch["box"], plain.collater(samples)["box"]), "the size comes from the cache too"
        assert batch["image_cache"]["names"] == [names[0], names[2], *([] if share else [names[0]])]


def test_pictures_that_cannot_be_read_are_told_as_before(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    rows = [
        {"image": f"{name}.png", "image_id": name, "bbox": [1, 1, 9, 9], "caption": "x"} for name in ("a", "broken", "empty", "c")
    ]
    ann = write_json(tmp_path / "a.json", rows)
    given = options(tmp_path, ann, split="test", modality="image_region")
    plain, dataset = RegionEvalDataset(**given), RegionEvalDataset(**given)
    cached(tmp_path, dataset)
    batches = [each.collater([each[index] for index in range(4)]) for each in (plain, dataset)]
    told, now = ([(row, reason.split(" (")[0]) for row, reason in batch["skipped"]] for batch in batches)
    assert told == now and len(told) == 3
    assert torch.equal(batches[0]["image"], batches[1]["image"]) and batches[1]["image_cache"]["names"][1] == ""


def test_other_preparations_and_other_bytes_have_other_names(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    ann = write_json(tmp_path / "a.json", [{"image": "a.png", "caption": "x"}])

    def named(processor: str = "blip_image_eval", **given: Any) -> str:
        loaded = load_processor(processor, {"image_size": SIZE, **given})
        dataset = CaptionDataset(**options(tmp_path, ann, vis_processor=loaded))
        cached(tmp_path, dataset)
        name: str = dataset[0]["image_entry"]["name"]
        return name

    known = named()
    assert known == named("general_box_caption_img_trainval"), "evaluation finds what training wrote"
    others = {named(image_size=32), named(mean=[0.5, 0.5, 0.5]), named(std=[0.5, 0.5, 0.5])}
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    assert len({known, named(), *others}) == 5


# What is refused


def opened(tmp_path: Path, model: Any, datasets: Any = None) -> Any:
    run_cfg = fakes.config(tmp_path / "out", feature_cache=tmp_path / "cache").run_cfg
    return open_feature_cache(run_cfg, model=model, datasets=datasets or {}, device=torch.device("cpu"))


def test_augmented_pictures_are_read_as_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, ["a.png"])
    ann = write_json(tmp_path / "a.json", [{"image": "a.png", "caption": "x"}])
    crop = load_processor("blip2_image_train", {"image_size": 28})
    train_set = CaptionDataset(**options(tmp_path, ann, vis_processor=crop))
    test_set = CaptionDataset(**options(tmp_path, ann))
    model = load_model_from_config(tiny.model_config(tmp_path / "model", "blip2"))
    with caplog.at_level(logging.INFO, logger="lavis"):
        opened(tmp_path, model, {"coco_caption": {"train": train_set, "test": test_set}})
    told = [record.message for record in caplog.records if "augments" in record.message]
    assert told == ["dataset coco_caption, train augments its pictures: run.feature_cache keeps no features of them"]
    assert "image_entry" not in train_set[0] and "image_entry" in test_set[0]


def test_models_whose_features_change_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.freeze_vit is false.*accepted here: null"):
        opened(tmp_path, load_model_from_config(tiny.model_config(tmp_path / "model", "blip2", freeze_vit=False)))
    model = load_model_from_config(tiny.model_config(tmp_path / "model", "blip2"))
    model._eval_locked.clear()
    with pytest.raises(ConfigError, match="training mode, in which drop path draws"):
        opened(tmp_path, model.train())
    with pytest.raises(ConfigError, match="no modality of this FakeModel reads images"):
        opened(tmp_path, fakes.FakeModel())


def test_the_folder_follows_from_weights_and_settings(tmp_path: Path) -> None:
    model = load_model_from_config(tiny.model_config(tmp_path / "model", "blip2")).eval()
    folder = opened(tmp_path, model).store.folder
    assert opened(tmp_path, model).store.folder == folder and json.loads((folder / "about.json").read_text())["device"] == "cpu"
    low = model.encoders["image"].identity(autocast=torch.bfloat16)
    assert low["computed_in"] == "torch.bfloat16" != model.encoders["image"].identity(autocast=torch.float32)["computed_in"]
    with torch.no_grad():
        next(model.visual_encoder.parameters()).view(-1)[0] += 1e-3
    assert opened(tmp_path, model).store.folder != folder


@pytest.mark.parametrize("value", [0, -1, None])
def test_a_bound_must_be_a_number(tmp_path: Path, value: Any) -> None:
    from lavis.runners.checks import check_run

    config = fakes.config(tmp_path / "out", feature_cache_gb="null" if value is None else value)
    with pytest.raises(ConfigError, match=r"run\.feature_cache_gb must be a number of GB above 0"):
        check_run(config.run_cfg)
