"""The quickstart's YAML files: read from anywhere, writing beside its results, promising what an evaluation prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import evaluate
import train
from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.quickstart.clouds import generate_clouds
from lavis.quickstart.scenes import generate

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "run_scripts" / "quickstart"
RUNS = sorted(path for path in FOLDER.glob("*.yaml") if path.stem not in ("common", "images", "clouds"))
RESULTS = ("output/quickstart", "output/quickstart-base")  # where make quickstart and make quickstart-base keep theirs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "data"
    generate(folder, seed=1, num_train=4, num_test=2)
    generate_clouds(folder, seed=1, train_objects=3, test_objects=3, train_rooms=2, test_rooms=2)
    return folder


def texts(value: Any) -> Iterator[str]:
    """All texts of a nested configuration."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def paths(config: Config) -> list[str]:
    """What a configuration reads of the shipped base and of the quickstart's output."""
    plain = config.to_dict()
    return [
        text for text in texts([plain["model"], plain["datasets"]]) if "assets/quickstart" in text or "output/quickstart" in text
    ]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_what_is_read_is_found_from_any_folder(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUICKSTART_BASE", raising=False)
    monkeypatch.delenv("QUICKSTART_DATA", raising=False)
    monkeypatch.chdir(ROOT)
    here = paths(Config.from_file(path))
    assert here and not any(Path(text).is_absolute() for text in here)
    monkeypatch.chdir(tmp_path)
    elsewhere = paths(Config.from_file(path))
    assert elsewhere == [str(ROOT / text) for text in here]
    assert all(Path(text).exists() for text in elsewhere if "assets/quickstart" in text)
    monkeypatch.setenv("QUICKSTART_BASE", "mine")
    assert not any("assets/quickstart" in text for text in paths(Config.from_file(path)))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_no_file_writes_into_the_quickstarts_own_results(path: Path) -> None:
    folder = Path(Config.from_file(path).run_cfg.output_dir)
    assert not folder.is_absolute() and not any(folder.is_relative_to(kept) for kept in RESULTS)


def test_an_evaluation_prints_the_attribute_accuracy(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shipped model over 8 regions, from a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICKSTART_DATA", str(data))
    shipped = f"model.finetuned={ROOT / 'assets/quickstart/regionblip.safetensors'}"
    options = [shipped, "run.num_workers=0", "run.num_beams=1", "run.bootstrap_resamples=0"]
    assert evaluate.main(["--cfg-path", str(FOLDER / "eval_region.yaml"), "--options", *options]) == 0
    metrics = json.loads((tmp_path / "output/eval_region/evaluate.txt").read_text())["test"]
    captions = json.loads((tmp_path / "output/eval_region/result/test_epochbest.json").read_text())
    scenes = json.loads((data / "annotations/scenes_test.json").read_text())
    things = [thing for scene in scenes for thing in scene["things"]]
    right = sum(
        f"{thing['colour']} {thing['kind']}" in row["caption"]
        for thing, row in zip(things, ordered(captions, scenes), strict=True)
    )
    assert metrics["attribute_accuracy"] == right / len(things) > 0.5


def ordered(captions: list[dict[str, str]], scenes: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Result rows in the order of the scenes' things, by their published ids."""
    rows = {row["image_id"]: row for row in captions}
    ids = [
        f"{scene['image_id']}_box_" + "_".join(str(int(v)) for v in thing["bbox"])
        for scene in scenes
        for thing in scene["things"]
    ]
    return [rows[key] for key in ids]


def test_accuracy_of_every_kind_of_data(data: Path) -> None:
    Config.from_file(FOLDER / "eval_image.yaml")  # imports the task
    accuracy = vars(sys.modules[registry.get_task_class("quickstart_captioning").__module__])["accuracy"]

    def rows(name: str) -> Any:
        return json.loads((data / "annotations" / name).read_text())

    whole = {str(s["image_id"]): ", ".join(f"a {t['colour']} {t['kind']}" for t in s["things"]) for s in rows("scenes_test.json")}
    objects = dict(line.split(",", 1) for line in (data / "annotations/cap3d_test.txt").read_text().splitlines())
    rooms = {f"{row['scene_id']}_{row['object_id']}": row["description"] for row in rows("ScanRefer_test.json")}
    for dataset, captions in (("coco_caption", whole), ("pointcloud_caption", objects), ("scannet_refer", rooms)):
        assert accuracy(captions, dataset=dataset, data=data) == 1.0
        first = next(iter(captions))
        assert accuracy({**captions, first: "nothing"}, dataset=dataset, data=data) == pytest.approx(1 - 1 / len(captions))
    with pytest.raises(FileNotFoundError):
        accuracy(whole, dataset="coco_caption", data=data / "nowhere")


def test_training_on_regions_of_ones_own(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`$REGIONS` and `$IMAGES` alone, over the shipped base; it writes to output/my_regions of the folder it is run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGIONS", str(data / "annotations/Refcoco_train.json"))
    monkeypatch.setenv("IMAGES", str(data / "images"))
    assert Config.from_file(FOLDER / "my_regions.yaml").run_cfg.max_epoch == 60
    options = ["run.max_epoch=1", "run.num_workers=0", "run.log_freq=1"]
    assert train.main(["--cfg-path", str(FOLDER / "my_regions.yaml"), "--options", *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "output/my_regions/log.txt").read_text().splitlines()]
    regions = len(json.loads((data / "annotations/Refcoco_train.json").read_text()))
    assert max(line.get("step", 0) for line in lines) == -(-regions // 16)
    assert (tmp_path / "output/my_regions/checkpoint_0.pth").is_file()
