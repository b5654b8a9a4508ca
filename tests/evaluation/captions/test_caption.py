"""Caption metrics: pycocoevalcap's numbers, ids and rows that do not match, metrics that cannot run here."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from lavis.evaluation.captions import caption as caption_module
from lavis.evaluation.captions.caption import build_ground_truth, caption_metrics

# our captions scored by pycocoevalcap 1.2 with its own Java tokenizer
RECORDED = json.loads((Path(__file__).parent / "caption_scores.json").read_text(encoding="utf-8"))
PYTHON_METRICS = ("Bleu", "ROUGE_L", "CIDEr")


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_module, "_told", set())


def truth(**captions: list[str]) -> dict[str, Any]:
    rows = [(key, text) for key, texts in captions.items() for text in texts]
    return {
        "images": [{"id": key} for key in captions],
        "annotations": [{"image_id": key, "id": i, "caption": text} for i, (key, text) in enumerate(rows)],
    }


def rows(**captions: str) -> list[dict[str, str]]:
    return [{"image_id": key, "caption": text} for key, text in captions.items()]


def test_recorded_scores() -> None:
    found = caption_metrics(RECORDED["ground_truth"], RECORDED["results"], metrics=PYTHON_METRICS, per_sample=True)
    for name, value in RECORDED["scores"].items():
        if name != "METEOR":
            assert found[name] == pytest.approx(value, abs=1e-9), name
    assert found["agg_metrics"] == pytest.approx(found["CIDEr"] + found["Bleu_4"])
    assert found["num_missing"] == 0 and "unavailable" not in found
    each = {str(key): scores["CIDEr"] for key, scores in found["per_sample"].items()}
    assert each == pytest.approx(RECORDED["CIDEr_each"], abs=1e-9)
    assert {"Bleu_4", "ROUGE_L", "CIDEr"} <= set(found["per_sample"]["sky"])


def test_names_of_cider() -> None:
    names = ["CIDEr", "CIDEr-D", "CIDEr_plain"]
    found = caption_metrics(RECORDED["ground_truth"], RECORDED["results"], metrics=names)
    assert found["CIDEr"] == found["CIDEr-D"] == pytest.approx(RECORDED["scores"]["CIDEr"], abs=1e-9)
    assert found["CIDEr_plain"] > found["CIDEr"] and "agg_metrics" not in found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")
def test_meteor_of_the_java_program() -> None:
    found = caption_metrics(RECORDED["ground_truth"], RECORDED["results"], metrics=["METEOR"])
    assert found["METEOR"] == pytest.approx(RECORDED["scores"]["METEOR"], abs=1e-6)


def test_a_file_and_its_content_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(RECORDED["ground_truth"]))
    content = caption_metrics(RECORDED["ground_truth"], RECORDED["results"], metrics=PYTHON_METRICS)
    assert caption_metrics(path, RECORDED["results"], metrics=PYTHON_METRICS) == content


def test_ids_may_be_text_or_ints() -> None:
    as_text = [{**row, "image_id": str(row["image_id"])} for row in RECORDED["results"]]
    found = caption_metrics(RECORDED["ground_truth"], as_text, metrics=["CIDEr"])
    assert found["CIDEr"] == pytest.approx(RECORDED["scores"]["CIDEr"])
    both: dict[str, Any] = {"images": [{"id": 1}, {"id": "1"}], "annotations": []}
    for image in both["images"]:
        both["annotations"].append({"image_id": image["id"], "id": 0, "caption": "x"})
    with pytest.raises(ValueError, match="differ by type only"):
        caption_metrics(both, [], metrics=["CIDEr"])


def test_an_id_without_a_result_scores_as_empty(caplog: pytest.LogCaptureFixture) -> None:
    reference = truth(a=["a red car"], b=["a blue car"], c=["two dogs"])
    with caplog.at_level(logging.WARNING):
        found = caption_metrics(reference, rows(a="a red car"), metrics=PYTHON_METRICS)
    assert found["num_missing"] == 2
    assert "2 of 3 ids have no result" in caplog.text and "'b', 'c'" in caplog.text
    written = caption_metrics(reference, rows(a="a red car", b="", c=""), metrics=PYTHON_METRICS)
    assert {**written, "num_missing": 2} == found
    assert found["ROUGE_L"] == pytest.approx(1 / 3)


def test_nothing_predicted_and_nothing_to_predict() -> None:
    found = caption_metrics(truth(a=["a red car"], b=["dogs"]), [], metrics=PYTHON_METRICS)
    assert found["CIDEr"] == found["Bleu_1"] == found["ROUGE_L"] == 0
    found = caption_metrics(truth(a=[""], b=["..."]), rows(a="x", b=""), metrics=PYTHON_METRICS)
    assert found["CIDEr"] == 0


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (rows(a="x") + rows(a="y"), "image_id 'a' twice"),
        (rows(a="x", zebra="y"), "does not list: 'zebra'"),
        ([{"image_id": "a"}], "result 0: .* is not a row"),
        ([{"image_id": "a", "caption": None}], "result 0: .* is not a row"),
        (["a"], "result 0: a is not a row"),
    ],
)
def test_results_that_do_not_fit(results: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        caption_metrics(truth(a=["a red car"]), results, metrics=["CIDEr"])


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ValueError, match="Unknown caption metric 'Cider'.*Did you mean 'CIDEr'"):
        caption_metrics(truth(a=["x"]), [], metrics=["Cider"])


def test_scoring_changes_nothing_it_is_given() -> None:
    ground_truth, results = copy.deepcopy(RECORDED["ground_truth"]), copy.deepcopy(RECORDED["results"])
    caption_metrics(ground_truth, results, metrics=PYTHON_METRICS)
    assert (ground_truth, results) == (RECORDED["ground_truth"], RECORDED["results"])


def test_built_ground_truth_scores_itself(tmp_path: Path) -> None:
    build_ground_truth([("a", "a red car"), (7, "two dogs run"), ("a", "red car")], tmp_path / "truth.json")
    results = [{"image_id": "a", "caption": "a red car"}, {"image_id": "7", "caption": "two dogs run"}]
    found = caption_metrics(tmp_path / "truth.json", results, metrics=["Bleu", "ROUGE_L"])
    assert found["Bleu_2"] == pytest.approx(1) and found["ROUGE_L"] == pytest.approx(1)
    assert "agg_metrics" not in found
