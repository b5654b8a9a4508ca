"""Damage planted in the miniature: check_data names and counts it, a run names and counts it too, and no sample leaves the
denominator."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import miniature
from tests.datasets.convert.raw_scannet import write_labels
from tests.datasets.files import write_json
from tests.miniature import Miniature, clouds, pictures, runs
from tests.miniature.runs import Run
from tests.tools.tool import run as tool

pytestmark = pytest.mark.slow
RUNS = {str(run): run for run in runs.all_runs()}
REFCOCO = "eval_opt/eval_regionblip_opt-2.7b_ImageRegion-caption_refcoco__A10040G.yaml"
ROOMS = "eval_opt/eval_regionblip_opt-2.7b_PointcloudRegion-caption_referscannet__A10040G.yaml"
OBJECTS = "eval_opt/eval_regionblip_opt-2.7b_Pointcloud-caption__A10040G.yaml"
SHAPES = "eval_opt/eval_regionblip_opt-2.7b_zeroshot_3d-classification__A10040G.yaml"
COCO = "eval_opt/eval_regionblip_opt-2.7b_Image-caption_coco__A10040G.yaml"
VQA, GQA, CROPS, RANKS = (
    *("eval/vqav2.yaml[opt-2.7b]", "eval/gqa.yaml[opt-2.7b]"),
    *("eval/refcoco_crop.yaml[opt-2.7b]", "eval/retrieval_coco.yaml"),
)
TRAIN = "train/regionblip_opt-2.7b_freeze-qformer_regloss_pcqformer_A10040G.yaml"
TRUTH = "coco/annotations/v2_mscoco_val2014_annotations.json"
SHAPES_FILE = "modelnet40_normal_resampled/modelnet40_test_8192pts_fps.dat"


def run_of(name: str) -> Run:
    return next(run for key, run in RUNS.items() if key.startswith(name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return miniature.build(tmp_path_factory.mktemp("miniature"))


@pytest.fixture
def small(whole: Miniature, tmp_path: Path) -> Miniature:
    """A copy to be damaged."""
    shutil.copytree(whole.data, tmp_path / "data")
    shutil.copytree(whole.weights, tmp_path / "weights")
    return Miniature(tmp_path, whole.ids)


def cut(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path


def problems(small: Miniature, run: Run, *more: str) -> dict[str, dict[str, Any]]:
    """{kind: what check_data counted and named} of its one or several splits, which are not well."""
    report = small.root / "check.json"
    assert runs.check(small, run, "--json", str(report), *more) == 1
    found = json.loads(report.read_text())
    assert not found["ok"] and not found["errors"] and not any(file["problem"] for file in found["files"])
    return {kind: finding for split in found["splits"] for kind, finding in split["problems"].items()}


# Files that stop a run


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        (REFCOCO, "data/Refer/refcoco/Refcoco_test.json", "not valid JSON"),
        (COCO, "data/coco/annotations/coco_karpathy_test.json", "not valid JSON"),
        (RANKS, "data/coco/annotations/coco_karpathy_test.json", "not valid JSON"),
        (CROPS, "data/RefCOCO_crop_test/RefCOCO_test_crop.json", "not valid JSON"),
        (ROOMS, "data/ScanRefer/ScanRefer_filtered_val.json", "not valid JSON"),
        (GQA, "data/gqa/annotations/testdev_balanced_questions.json", "not valid JSON"),
        (VQA, "data/coco/annotations/vqa_val_eval.json", "not valid JSON"),
        (VQA, "data/coco/annotations/answer_list.json", "not valid JSON"),
        (VQA, f"data/{TRUTH}", "is not a whole JSON file"),
        (SHAPES, f"data/{SHAPES_FILE}", "cannot be read as a pickle"),
        (REFCOCO, "weights/regionblip_pretrain_opt2.7b.pth", "cannot be read; it may be truncated"),
        (REFCOCO, "weights/opt-2.7b/model.safetensors", "Error while deserializing header"),
        (TRAIN, "data/Refer/refcoco/Refcoco_train.json", "not valid JSON"),
        (TRAIN, "weights/eva_vit_g.pth", "cannot be read; it may be truncated"),
    ],
)
def test_a_file_cut_short_is_named_by_both(
    small: Miniature, capsys: pytest.CaptureFixture[str], name: str, file: str, message: str
) -> None:
    path, run = cut(small.root / file), run_of(name)
    assert runs.check(small, run) == 1
    said = capsys.readouterr().out
    assert path.name in said and message in said and "all is well" not in said
    assert runs.start(small, run, small.root / "out") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (path.name in said or path.parent.name in said) and message in said
    assert not (small.root / "out" / "evaluate.txt").exists()


# Samples that cannot be read


def no_refcoco_picture(small: Miniature) -> None:
    rows = json.loads((small.data / "Refer/refcoco/Refcoco_test.json").read_text())
    (small.data / "Refer/images" / rows[0]["image"]).unlink()


def no_coco_picture(small: Miniature) -> None:
    (small.data / "coco/images" / pictures.coco_name("val2014", pictures.VAL2014[0])).unlink()


def no_crop(small: Miniature) -> None:
    next((small.data / "RefCOCO_crop_test/images").iterdir()).unlink()


def no_gqa_picture(small: Miniature) -> None:
    (small.data / "gqa/images" / f"{pictures.SCENES[0]}.jpg").unlink()


def cloud_cut_short(small: Miniature) -> None:
    name = min(small.ids["pointcloud_caption"])
    cut(small.data / "objaverse_pc_parallel" / name / f"{name}_8192.npz")


def shape_of_nan(small: Miniature) -> None:
    path = small.data / SHAPES_FILE
    points, labels = pickle.loads(path.read_bytes())
    points[3][7, 1] = np.nan
    path.write_bytes(pickle.dumps([points, labels]))


def scene_without_alignment(small: Miniature) -> None:
    """The raw file lacks it, the arrays are made anew."""
    scene = clouds.VAL_SCENES[1]
    (small.data / "ScanNet/scans" / scene / f"{scene}.txt").write_text("colorHeight = 968\n")
    for path in (small.data / "scannet_data").glob(f"{scene}_*.npy"):
        path.unlink()
    assert clouds.convert_scenes(small.data, write_labels(small.data / "ScanNet/scannetv2-labels.combined.tsv")) == 1
    failed = (small.data / "scannet_data" / "prepare_scannet_failed.txt").read_text().splitlines()
    assert len(failed) == 1 and "no axis alignment" in failed[0] and scene in failed[0]


@pytest.mark.parametrize(
    ("name", "damage", "kind", "lost"),
    [
        (REFCOCO, no_refcoco_picture, "missing image", 2),
        (COCO, no_coco_picture, "missing image", 1),
        (RANKS, no_coco_picture, "missing image", 1),
        (VQA, no_coco_picture, "missing image", 2),
        (GQA, no_gqa_picture, "missing image", 2),
        (CROPS, no_crop, "missing image", 1),
        (OBJECTS, cloud_cut_short, "broken point cloud", 1),
        (ROOMS, scene_without_alignment, "missing scene", 2),
        (SHAPES, shape_of_nan, "not finite", 1),
    ],
)
def test_what_cannot_be_read_is_counted_and_stays_in_the_denominator(
    small: Miniature, name: str, damage: Callable[[Miniature], None], kind: str, lost: int
) -> None:
    damage(small)
    run, out = run_of(name), small.root / "out"
    found = problems(small, run)
    assert {key: finding["count"] for key, finding in found.items()} == {kind: lost}
    assert len(found[kind]["first"]) == lost
    assert runs.start(small, run, out) == 0
    ended = runs.outcome(out)
    wanted = runs.expected_ids(small, run, ended.dataset)
    assert (ended.metrics["num_samples"], ended.metrics["num_unreadable"]) == (len(wanted), lost)
    if ended.rows:  # not of retrieval, which ranks
        assert len(ended.ids) == len(wanted) and set(ended.ids) == wanted
        assert sum(text in ("", "None") for _, text in ended.rows) >= lost
    truth = out / "result" / f"{next(iter(out.glob('result/*_epochbest.json')), Path('x_')).stem.split('_')[0]}_ground_truth.json"
    if truth.is_file():
        assert len(json.loads(truth.read_text())["images"]) == len(wanted)


def test_training_skips_names_and_counts(small: Miniature) -> None:
    """A picture of four expressions, a scene of four descriptions and an object."""
    rows = json.loads((small.data / "Refer/refcoco/Refcoco_train.json").read_text())
    gone = rows[0]["image"]
    (small.data / "Refer/images" / gone).unlink()
    (small.data / "scannet_data" / f"{clouds.TRAIN_SCENES[2]}_aligned_vert.npy").unlink()
    lines = (small.data / "Cap3D/Cap3D_automated_Objaverse_train.txt").read_text().splitlines()
    name = lines[0].partition(",")[0]
    cut(small.data / "objaverse_pc_parallel" / name / f"{name}_8192.npz")
    run, out = run_of(TRAIN), small.root / "out"
    counts = {kind: finding["count"] for kind, finding in problems(small, run).items()}
    assert counts == {"missing image": sum(row["image"] == gone for row in rows), "missing scene": 4, "broken point cloud": 1}
    assert runs.start(small, run, out) == 0
    last = json.loads((out / "log.txt").read_text().splitlines()[-1])
    assert last["finished"] and last["skipped"]
    told = json.dumps(last["skipped"])
    assert (
        "missing scene" in told
        and "missing image" in told
        and any(place in told for place in ("Refcoco_train.json[", "ScanRefer"))
    )


# Ids: of another split, unknown, twice, without a result


def test_a_refs_file_of_another_split_or_dataset(small: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    folder, images = small.data / "Refer/refcoco", small.data / "Refer/images"
    before = {path.name: path.read_bytes() for path in folder.glob("Refcoco_*.json")}
    shutil.copy(small.data / "Refer/refcocog/refs(umd).p", folder / "refs(unc).p")
    assert tool("convert_refer", "--refs", folder / "refs(unc).p", "--images", images) == 1
    said = capsys.readouterr().err
    assert "its refs are of the splits" in said and "accepted: train, val, testA, testB. Is it another file?" in said
    shutil.copy(small.data / "Refer/refcoco+/refs(unc).p", folder)
    assert tool("convert_refer", "--refs", folder / "refs(unc).p", "--images", images) == 1
    count = pictures.TRAIN_REFS + 3 * pictures.OTHER_REFS
    assert f"problem: {count} annotation absent from instances: " in capsys.readouterr().out
    cut(folder / "refs(unc).p")
    assert tool("convert_refer", "--refs", folder / "refs(unc).p", "--images", images) == 1
    assert "cannot be read as a pickle of data" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.glob("Refcoco_*.json")} == before


def test_the_test_file_of_another_split_is_seen_beside_the_training(small: Miniature) -> None:
    folder = small.data / "Refer/refcoco"
    shutil.copy(folder / "Refcoco_train.json", folder / "Refcoco_test.json")
    found = problems(small, run_of(REFCOCO), "--splits", "train", "test")
    assert found.keys() == {"also in train"} and found["also in train"]["count"] == pictures.TRAIN_REFS
    assert "5 of 5 that test reads are in train too" in found["also in train"]["first"][0]


def test_questions_twice_and_without_answers(small: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    run, path = run_of(VQA), small.data / "coco/annotations/vqa_val_eval.json"
    rows = json.loads(path.read_text())
    write_json(path, [*rows, {**rows[0], "question": "Again?"}])
    assert problems(small, run)["an id again, whose result is lost"]["count"] == 1
    assert runs.start(small, run, small.root / "out") == 0
    metrics = runs.outcome(small.root / "out").metrics
    assert (metrics["num_duplicates"], metrics["num_samples"], metrics["num_missing"]) == (1, len(rows), 0)
    write_json(path, [*rows, {**rows[0], "question_id": 7}])
    assert runs.check(small, run) == 1
    message = f"no answers to 1 of the {len(rows) + 1} questions of coco_vqa, val: 7"
    assert message in capsys.readouterr().out
    assert runs.start(small, run, small.root / "again") == 2 and message in capsys.readouterr().err
    write_json(path, rows[:-2])
    assert runs.start(small, run, small.root / "fewer") == 0
    assert runs.outcome(small.root / "fewer").metrics["num_missing"] == 2, "questions with answers that no row asks"


def test_captions_twice_unknown_and_missing(small: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    """Results are the references themselves, so that every score is known."""
    source = small.data / "ScanRefer/ScanRefer_filtered_val.json"
    assert tool("prepare_regionblip_eval_referscannet", "-i", source) == 0
    truth = source.with_name(f"{source.stem}__jianchong.json")
    first = {row["image_id"]: row["caption"] for row in json.loads(truth.read_text())["annotations"]}
    rows = [{"image_id": key, "caption": caption} for key, caption in first.items()]
    results, written = small.root / "results.json", small.root / "metrics.json"

    def scored(given: list[dict[str, str]]) -> int:
        write_json(results, given)
        return tool("eval_coco_caption", "-r", results, "-a", truth, "-o", written, "--metrics", "ROUGE_L", "--resamples", "0")

    assert scored([*rows, rows[2]]) == 1 and f"{rows[2]['image_id']!r} twice or more" in capsys.readouterr().err
    assert scored([*rows, {"image_id": "scene9999_00_1", "caption": "x"}]) == 1
    assert "ids that the ground truth does not list: 'scene9999_00_1'" in capsys.readouterr().err
    assert not written.exists()
    assert scored(rows) == 0 and json.loads(written.read_text())["metrics"]["ROUGE_L"] == pytest.approx(1)
    assert scored(rows[:-2]) == 0
    metrics = json.loads(written.read_text())["metrics"]
    assert metrics["ROUGE_L"] == pytest.approx(1 - 2 / len(rows)) and metrics["num_missing"] == 2
    assert f"{len(rows)} ids, 2 without a result" in capsys.readouterr().out


def test_regions_that_the_ground_truth_lacks_or_has_more_of(small: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    """run.annotation_file of another extent than the dataset."""
    source = small.data / "Refer/refcoco/Refcoco_test.json"
    truth, rows = source.with_name("Refcoco_test__jianchong.json"), json.loads(source.read_text())
    named, run = ("--options", f"run.annotation_file={truth}"), run_of(REFCOCO)
    assert tool("prepare_regionblip_eval_refercoco", "-i", source) == 0
    write_json(source, rows[:-2])  # a region less
    assert runs.start(small, run, small.root / "fewer", named[1]) == 0
    metrics = runs.outcome(small.root / "fewer").metrics
    assert metrics["num_missing"] == 1 and metrics["num_samples"] == len(rows) // 2 - 1
    assert tool("prepare_regionblip_eval_refercoco", "-i", source) == 0
    write_json(source, rows)
    assert runs.check(small, run, *named) == 1
    message = f"does not list 1 of the {len(rows) // 2} ids of general_box_caption, test"
    assert message in capsys.readouterr().out
    assert runs.start(small, run, small.root / "more", named[1]) == 2
    assert message in capsys.readouterr().err
