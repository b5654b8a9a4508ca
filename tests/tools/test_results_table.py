"""Tables from the folders of finished runs, as a user calls the tool."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools import tool

CAPTIONS = {"Bleu_4": 0.06, "ROUGE_L": 0.39, "CIDEr": 0.641, "CIDEr_ci95": [0.62, 0.66], "agg_metrics": 0.7, "num_missing": 0}


def run(
    folder: Path, metrics: dict[str, Any], *, dataset: str = "general_box_caption", split: str = "test", **changes: Any
) -> Path:
    """A run's folder; `storage` and keys of the model may be given."""
    storage = changes.pop("storage", "data/Refer/refcoco/Refcoco_test.json")
    model = {"arch": "regionblip_opt", "opt_model": "facebook/opt-2.7b", **changes}
    block = {"build_info": {"annotations": {split: {"storage": storage}}}}
    folder.mkdir(parents=True)
    (folder / "config_evaluate.yaml").write_text(yaml.safe_dump({"model": model, "datasets": {dataset: block}}))
    line = json.dumps({split: metrics, "epoch": "best", "dataset": dataset})
    (folder / "evaluate.txt").write_text(line + "\n")
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> str:
    assert tool.run("results_table", *arguments) == 0
    return capsys.readouterr().out


def rows_of(text: str) -> dict[str, dict[str, dict[str, str]]]:
    """{title: {model: {column: cell}}} of Markdown tables."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for block in text.split("**")[1:][::2]:
        lines = [line.strip("| ").split(" | ") for line in text.split(f"**{block}**")[1].split("**")[0].strip().splitlines()]
        found[block] = {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}
    return found


def test_ours_beside_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run(tmp_path / "refcoco", CAPTIONS)
    cap3d = "data/Cap3D/Cap3D_automated_Objaverse_test.txt"
    two = run(tmp_path / "objaverse", {**CAPTIONS, "CIDEr": 1.1}, dataset="pointcloud_caption", storage=cap3d)
    t5 = {"arch": "regionblip_t5", "opt_model": None, "t5_model": "/weights/flan-t5-xl/"}
    three = run(tmp_path / "t5", CAPTIONS, storage=["x/refcocog/Refcoco_val.json"], **t5)
    found = rows_of(printed(capsys, one, two / "evaluate.txt", three))
    cider = found["CIDEr x 100"]
    ours = cider["RegionBLIP OPT-2.7B"]
    assert (ours["RefCOCO test"], ours["RefCOCO test (theirs)"]) == ("64.1 [62.0, 66.0]", "63.5")
    assert (ours["Objaverse test"], ours["Objaverse test (theirs)"]) == ("110.0 [62.0, 66.0]", "112.7")
    assert ours["ReferScanNet val"] == "-" and ours["RefCOCOg val"] == "-" and "RefCOCOg val (theirs)" not in ours
    xl = cider["RegionBLIP Flan-T5-XL"]
    assert (xl["RefCOCO test"], xl["RefCOCO test (theirs)"], xl["RefCOCOg val"]) == ("-", "47.6", "64.1 [62.0, 66.0]")
    assert cider["RegionBLIP Flan-T5-XXL"]["ReferScanNet val (theirs)"] == "53.6"
    whole = found["Captions of RefCOCO test"]["RegionBLIP OPT-2.7B"]
    assert (whole["SPICE"], whole["SPICE (theirs)"], whole["Bleu_4"], whole["Bleu_4 (theirs)"]) == (
        "-",
        "0.214",
        "0.060",
        "0.057",
    )
    assert whole["CIDEr"] == "0.641 [0.620, 0.660]"
    assert "SPICE (theirs)" not in found["Captions of RefCOCOg val"]["RegionBLIP Flan-T5-XL"]


def test_published_numbers_stand_only_where_they_belong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another split, another folder, another model, an ablation: rows and columns of their own."""
    runs = [
        run(tmp_path / "a", CAPTIONS, storage="refcoco/Refcoco_testA.json"),
        run(tmp_path / "b", CAPTIONS, storage="mine/Refcoco_test.json"),
        run(tmp_path / "c", CAPTIONS, opt_model="folder/my-opt"),
        run(tmp_path / "d", CAPTIONS, ablation_no_posembed=True),
        run(tmp_path / "e", CAPTIONS, arch="blip2_opt"),
    ]
    cider = rows_of(printed(capsys, *runs))["CIDEr x 100"]
    ours = cider["RegionBLIP OPT-2.7B"]
    assert ours["RefCOCO test"] == "-" and ours["RefCOCO testA"].startswith("64.1")
    assert ours["general_box_caption test"].startswith("64.1")
    for name in ("RegionBLIP my-opt", "RegionBLIP OPT-2.7B, no position", "BLIP-2 OPT-2.7B"):
        assert cider[name]["RefCOCO test"].startswith("64.1") and cider[name]["RefCOCO test (theirs)"] == "-"


def test_generated_and_own_data_have_columns_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The quickstart's clouds and images are no Objaverse, ScanNet and COCO, wherever they lie; ScanRefer's own files are."""
    toy = "output/quickstart/data/annotations"
    runs = [
        run(tmp_path / "a", CAPTIONS, dataset="pointcloud_caption", storage=f"{toy}/cap3d_test.txt"),
        run(tmp_path / "b", CAPTIONS, dataset="pointcloud_caption", storage="elsewhere/cap3d_test.txt", opt_model="my-opt"),
        run(tmp_path / "c", CAPTIONS, dataset="coco_caption", storage=f"{toy}/coco_karpathy_test.json"),
        run(
            tmp_path / "d", {**CAPTIONS, "CIDEr": 0.5}, dataset="coco_caption", storage="coco/annotations/coco_karpathy_test.json"
        ),
    ]
    for name, file in (("e", "ScanRefer_test.json"), ("f", "ScanRefer_filtered_val.json")):
        folder = run(tmp_path / name, CAPTIONS)
        split = "val" if "val" in file else "test"
        block = {"annotations": {split: {"scanner_file": f"x/{file}"}}}
        config = {"model": {"arch": "regionblip_opt", "opt_model": "facebook/opt-2.7b"}, "datasets": {"scannet_refer": block}}
        (folder / "config_evaluate.yaml").write_text(yaml.safe_dump(config))
        (folder / "evaluate.txt").write_text(json.dumps({split: CAPTIONS, "epoch": 1, "dataset": "scannet_refer"}) + "\n")
        runs.append(folder)
    cider = rows_of(printed(capsys, *runs))["CIDEr x 100"]
    ours = cider["RegionBLIP OPT-2.7B"]
    assert ours["Objaverse test"] == "-" and cider["RegionBLIP my-opt"]["Objaverse test"] == "-"
    assert ours["pointcloud_caption test"].startswith("64.1") and "pointcloud_caption test (theirs)" not in ours
    assert ours["coco_caption test"].startswith("64.1") and ours["COCO test"].startswith("50.0")
    assert ours["scannet_refer test"].startswith("64.1") and ours["ReferScanNet val"].startswith("64.1")


def test_the_last_line_counts_and_a_second_run_gets_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = run(tmp_path / "one", CAPTIONS), run(tmp_path / "two", {"CIDEr": 0.5})
    with (one / "evaluate.txt").open("a") as stream:
        stream.write(json.dumps({"test": {"CIDEr": 0.7}, "epoch": 1, "dataset": "general_box_caption"}) + "\n")
    cider = rows_of(printed(capsys, one, two))["CIDEr x 100"]
    assert cider["RegionBLIP OPT-2.7B"]["RefCOCO test"] == "70.0"
    assert cider["RegionBLIP OPT-2.7B (two)"]["RefCOCO test"] == "50.0"


def test_other_tasks_and_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recalls = {f"{side}_r{k}": 10.0 * k for side in ("txt", "img") for k in (1, 5, 10)}
    runs = [
        run(tmp_path / "a", {"top1": 0.5, "top5": 0.75, "agg_metrics": 0.5}, dataset="mobilenet40"),
        run(tmp_path / "b", {"overall": 51.5, "num_unreadable": 2, "num_samples": 9}, dataset="coco_vqa", split="val"),
        run(tmp_path / "c", {"acc": 43.25}, dataset="gqa", split="val"),
        run(tmp_path / "d", recalls, dataset="coco_retrieval", arch="blip2", opt_model=None),
        run(tmp_path / "e", {**CAPTIONS, "num_missing": 3}),
    ]
    assert tool.run("results_table", *runs) == 0
    shown = capsys.readouterr()
    found = rows_of(shown.out)
    assert found["Zero-shot classes of ModelNet40 test, %"]["RegionBLIP OPT-2.7B"]["top5"] == "75.0"
    assert found["Answers, accuracy in %"]["RegionBLIP OPT-2.7B"]["VQAv2 val"] == "51.50*"
    assert found["Answers, accuracy in %"]["RegionBLIP OPT-2.7B"]["GQA val"] == "43.25"
    assert found["Recall of COCO test, %"]["blip2"]["txt_r5"] == "50.0"
    assert found["CIDEr x 100"]["RegionBLIP OPT-2.7B"]["RefCOCO test"] == "64.1* [62.0, 66.0]"
    assert "* b, VQAv2 val: 2 unreadable of 9" in shown.err and "* e, RefCOCO test: 3 without a result" in shown.err


def test_latex_and_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "one", CAPTIONS, opt_model="x/my_opt")
    latex = printed(capsys, folder, "--format", "latex")
    assert "RegionBLIP my\\_opt & 64.1 [62.0, 66.0] & - & " in latex and "RefCOCO test (theirs)" in latex
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 2
    rows = list(csv.DictReader(io.StringIO(printed(capsys, folder, "--format", "csv"))))
    cells = {(row["table"], row["model"], row["column"]): row for row in rows}
    ours = cells["CIDEr x 100", "RegionBLIP my_opt", "RefCOCO test"]
    assert (ours["value"], ours["low"], ours["high"], ours["theirs"]) == ("64.100", "62.000", "66.000", "-")
    theirs = cells["CIDEr x 100", "RegionBLIP OPT-6.7B", "Objaverse test"]
    assert (theirs["value"], theirs["theirs"]) == ("-", "113.6")


def test_runs_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "one", CAPTIONS)
    spoilt = {
        "evaluate.txt": ('{"test": {"CIDEr": 0.', "line 1 is not a line of results"),
        "config_evaluate.yaml": ("model: [", "config_evaluate.yaml cannot be read"),
    }
    for name, (content, message) in spoilt.items():
        kept = (folder / name).read_text()
        (folder / name).write_text(content)
        assert tool.run("results_table", folder) == 1 and message in capsys.readouterr().err
        (folder / name).write_text(kept)
    (folder / "config_evaluate.yaml").unlink()
    assert tool.run("results_table", folder) == 1
    assert "holds neither config_evaluate.yaml nor config.yaml" in capsys.readouterr().err
    assert tool.run("results_table", tmp_path / "none") == 1 and "does not exist" in capsys.readouterr().err
