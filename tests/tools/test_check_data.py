"""The command: what it prints, what it writes, and how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lavis.quickstart.scenes import generate
from tests import tiny
from tests.test_end_to_end import spoil, write_config
from tools.check_data import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generate(folder / "data", seed=3, num_train=12, num_test=4)
    write_config(folder, test_splits=["test"], task="image_captioning_coco")
    return folder


def check(folder: Path, *arguments: str) -> int:
    return main(["--cfg-path", str(folder / "config.yaml"), "--workers", "0", *arguments])


def test_all_is_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(folder, "--json", str(folder / "check.json")) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "all is well"
    for line in ("ok       coco_caption, train: 24 rows", "ok       general_box_caption, test", "ok       model.bert_path"):
        assert line in said
    found = json.loads((folder / "check.json").read_text())
    assert found["ok"] and [split["ok"] for split in found["splits"]] == [True] * 4 and found["errors"] == []
    assert {file["key"]: file["problem"] for file in found["files"]} == {"model.bert_path": "", "model.opt_model": ""}


def test_what_a_run_would_skip_is_told_and_may_be_tolerated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(tmp_path / "data", seed=3, num_train=12, num_test=4)
    spoil(tmp_path / "data")
    write_config(tmp_path, test_splits=["test"], task="image_captioning_coco")
    assert check(tmp_path, "--json", str(tmp_path / "check.json")) == 1
    said = capsys.readouterr().out
    assert "PROBLEM  general_box_caption, train: 148 rows, 147 samples, 147 looked at" in said
    assert "1 x missing image" in said and "Refcoco_train.json[0]: missing image: " in said
    assert "ok       coco_caption, train" in said
    assert said.splitlines()[-1].startswith("not well: problems in 2 of 4 splits (") and "ERROR" not in said
    found = {
        f"{split['dataset']}/{split['split']}": split for split in json.loads((tmp_path / "check.json").read_text())["splits"]
    }
    kinds = {kind: finding["count"] for kind, finding in found["general_box_caption/train"]["problems"].items()}
    assert kinds == {"empty caption": 1, "missing image": 1, "broken image": 1, "empty bbox": 1}
    assert found["general_box_caption/test"]["problems"]["missing image"]["first"][0].startswith("Refcoco_test.json[")
    assert check(tmp_path, "--tolerate", "0.05") == 1, "1 of 17 regions"
    assert check(tmp_path, "--tolerate", "0.06") == 0
    capsys.readouterr()
    assert check(tmp_path, "--options", "run.evaluate=true") == 1
    said = capsys.readouterr().out
    assert "general_box_caption, test: 49 rows, 17 samples" in said and ", train" not in said
    assert check(tmp_path, "--splits", "test", "--limit", "3") == 1
    assert "3 looked at" in capsys.readouterr().out


def test_files_of_the_model_and_keys_of_the_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = yaml.safe_load((folder / "config.yaml").read_text())
    plain["model"] |= {"load_pretrained": True, "pretrained": str(tmp_path / "gone.pth")}
    plain["model"]["bert_path"] = tiny.bert_folder(tmp_path / "bert")
    plain["run"]["task_order"] = "sequentially"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(plain))
    assert main(["--cfg-path", str(path), "--workers", "0", "--limit", "2"]) == 1
    said = capsys.readouterr().out
    assert "ERROR    Unknown run.task_order 'sequentially'. Did you mean 'sequential'" in said
    assert f"ERROR    model.pretrained {tmp_path / 'gone.pth'}: no file" in said
    assert said.splitlines()[-1].startswith("not well: 2 errors (") and said.count("ERROR ") == 2
    plain["run"]["task_order"] = "sequential"
    path.write_text(yaml.safe_dump(plain))
    assert main(["--cfg-path", str(path), "--workers", "0", "--limit", "2"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("not well: 1 error (")  # a file of the model alone
    del plain["model"]["pretrained"]
    plain["model"]["load_pretrained"] = False
    plain["datasets"]["general_box_caption"]["build_info"]["annotations"]["test"]["storage"] = str(tmp_path / "gone.json")
    path.write_text(yaml.safe_dump(plain))
    assert main(["--cfg-path", str(path), "--workers", "0", "--limit", "2"]) == 1
    said = capsys.readouterr().out
    assert "ERROR    general_box_caption, test: 0 rows" in said and said.splitlines()[-1].startswith("not well: 1 error (")
    plain["run"]["task_ordr"] = "x"
    path.write_text(yaml.safe_dump(plain))
    assert main(["--cfg-path", str(path)]) == 2 and "task_ordr" in capsys.readouterr().err
