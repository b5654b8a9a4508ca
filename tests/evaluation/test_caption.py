"""Caption metrics: pycocoevalcap's numbers, ids and rows that do not match, metrics that cannot run here."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from lavis.evaluation import caption as caption_module
from lavis.evaluation import scorers
from lavis.evaluation.caption import build_ground_truth, caption_metrics

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


def test_without_java_the_result_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(scorers.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = caption_metrics(truth(a=["a car"], b=["x"]), rows(a="a car", b="x"))
    assert "METEOR" not in found and "SPICE" not in found and found["Bleu_1"] == pytest.approx(1)
    assert set(found["unavailable"]) == {"METEOR", "SPICE"}
    assert "java was not found on PATH; install" in found["unavailable"]["METEOR"]
    assert caplog.text.count("METEOR is not computed") == 1
    json.dumps(found)


def test_missing_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scorers.shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(scorers, "_package_folder", lambda: tmp_path)
    assert "meteor/data/paraphrase-en.gz" in str(scorers.missing_parts("METEOR"))
    reason = str(scorers.missing_parts("SPICE"))
    assert "stanford-corenlp-3.6.0-models.jar" in reason and "get_stanford_models" in reason
    assert scorers.missing_parts("CIDEr") is None


def test_a_program_that_fails_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise BrokenPipeError("java went away")

    monkeypatch.setattr(scorers, "missing_parts", lambda name: None)
    monkeypatch.setattr(scorers, "_java_score", broken)
    found = caption_metrics(truth(a=["a car"]), rows(a="a car"), metrics=["METEOR", "CIDEr"])
    assert "java went away" in found["unavailable"]["METEOR"] and "CIDEr" in found


def test_spice_keeps_ids_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in, as SPICE's models are seldom there: its scores come back to the right ids."""

    class Spice:
        def compute_score(self, gts: dict[Any, list[str]], res: dict[Any, list[str]]) -> tuple[float, list[Any]]:
            ids = sorted(gts)
            return 0.5, [{"All": {"f": float(len(res[key][0]))}} for key in ids]

    module = types.ModuleType("pycocoevalcap.spice.spice")
    module.Spice = Spice  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice.spice", module)
    monkeypatch.setattr(scorers, "missing_parts", lambda name: None)
    reference = {**truth(zoo=["x"], ape=["y"])}
    found = caption_metrics(reference, rows(ape="four", zoo="sevenly"), metrics=["SPICE"], per_sample=True)
    assert found["SPICE"] == 0.5
    assert found["per_sample"] == {"zoo": {"SPICE": 7.0}, "ape": {"SPICE": 4.0}}


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
