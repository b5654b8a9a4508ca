"""METEOR and SPICE: what is missing is named, programs that hang, die or talk nonsense are told.

SPICE's models are not to be had here: pycocoevalcap's own caller runs against a stand-in for java, so that what is tested
is how captions go in and scores come back, not SPICE.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

from lavis.evaluation.captions import caption as caption_module
from lavis.evaluation.captions import java_metrics
from lavis.evaluation.captions.caption import caption_metrics, metric_versions
from lavis.evaluation.captions.java_metrics import MetricUnavailable, java_score, missing_parts

TRUTH = {
    "images": [{"id": "zoo"}, {"id": 7}],
    "annotations": [{"image_id": "zoo", "id": 0, "caption": "A lion."}, {"image_id": 7, "id": 1, "caption": "An ape, sleeping"}],
}
RESULTS = [{"image_id": 7, "caption": "an ape"}, {"image_id": "zoo", "caption": "one lion sleeps"}]

# What SPICE writes for its input: here F is a tenth of the number of words of the caption. Listed backwards.
SPICE_PROGRAM = """
import json, sys
arguments = sys.argv[1:]
assert arguments[:3] == ["-jar", "-Xmx8G", "spice-1.0.jar"] and "-silent" in arguments, arguments
items = json.load(open(arguments[3]))
tenths = {item["image_id"]: len(item["test"].split()) / 10 for item in items}
scores = [{"image_id": key, "scores": {"All": {"f": value, "pr": 0.0, "re": None}}} for key, value in tenths.items()]
json.dump(scores[::-1], open(arguments[arguments.index("-out") + 1], "w"))
"""
# METEOR's dialogue: a line of numbers for each SCORE; for EVAL a score for each of them, and their aggregate.
METEOR_PROGRAM = """
import sys
for line in iter(sys.stdin.readline, ""):
    kind, *parts = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":
        print(len(parts[-1].split()), flush=True)
    else:
        print("\\n".join(str(int(part) / 10) for part in parts), flush=True)
        print(0.25, flush=True)
"""


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_module, "_told", set())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of pycocoevalcap's Python with empty files in place of the programs and models."""
    real = java_metrics.package_folder()
    assert real is not None
    folder = tmp_path / "site" / "pycocoevalcap"
    shutil.copytree(real, folder, ignore=shutil.ignore_patterns("*.jar", "*.gz", "__pycache__", "tmp", "cache", "lib", "data"))
    for names in java_metrics.NEEDED_FILES.values():
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    for name in [name for name in sys.modules if name.split(".")[0] == "pycocoevalcap"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def install_java(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """A `java` on PATH that is a Python program."""
    folder.mkdir()
    (folder / "java").write_text(f"#!{sys.executable}\n{program}")
    (folder / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(("metric", "program", "corpus"), [("SPICE", SPICE_PROGRAM, 0.25), ("METEOR", METEOR_PROGRAM, 0.25)])
def test_captions_go_in_and_scores_come_back_to_their_ids(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, program: str, corpus: float
) -> None:
    install_java(tmp_path / "bin", monkeypatch, program)
    found = caption_metrics(TRUTH, RESULTS, metrics=[metric, "CIDEr"], per_sample=True, resamples=10, java_timeout=120)
    assert "unavailable" not in found and found[metric] == pytest.approx(corpus)
    assert {key: scores[metric] for key, scores in found["per_sample"].items()} == pytest.approx({"zoo": 0.3, 7: 0.2})
    assert ("SPICE_ci95" in found) == (metric == "SPICE") and "METEOR_ci95" not in found


@pytest.mark.parametrize("metric", ["SPICE", "METEOR"])
def test_a_program_that_dies_is_told_with_its_last_words(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    install_java(tmp_path / "bin", monkeypatch, "import sys; sys.exit('Unsupported class file major version 61')")
    found = caption_metrics(TRUTH, RESULTS, metrics=[metric, "CIDEr"], java_timeout=120)
    assert metric not in found and "CIDEr" in found
    assert f"the {metric} program did not finish" in found["unavailable"][metric]
    assert "Unsupported class file major version 61" in found["unavailable"][metric]


@pytest.mark.parametrize("metric", ["SPICE", "METEOR"])
def test_a_program_that_hangs_is_stopped(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str) -> None:
    program = "import os, time, sys; print('I am', os.getpid(), 'and busy', file=sys.stderr, flush=True); time.sleep(600)"
    install_java(tmp_path / "bin", monkeypatch, program)
    for limit in (2.0, 30.0, 120.0):  # until the program has begun within the limit
        reason = caption_metrics(TRUTH, RESULTS, metrics=[metric], java_timeout=limit)["unavailable"][metric]
        assert f"the {metric} program was stopped after {limit:g} seconds" in reason
        if "busy" in reason:
            break
    pid = re.search(r"I am (\d+) and busy", reason)
    assert pid is not None, reason
    end = time.monotonic() + 60
    while is_running(pid[1]) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(pid[1])


def is_running(pid: str) -> bool:
    """Whether a process is there and not just waiting to be buried."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


def test_scores_that_are_missing_are_told(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_java(tmp_path / "bin", monkeypatch, SPICE_PROGRAM.replace("scores[::-1]", "scores[:1]"))
    with pytest.raises(MetricUnavailable, match="(?s)SPICE program did not finish.*KeyError: 1"):
        java_score("SPICE", [["a"], ["b"]], ["a", "b"], timeout=120)
    install_java(tmp_path / "other", monkeypatch, SPICE_PROGRAM.replace('"f": value', '"f": value if key else None'))
    with pytest.raises(MetricUnavailable, match="SPICE program gave no number for 1 of 2 captions"):
        java_score("SPICE", [["a"], ["b"]], ["a", "b"], timeout=120)


def test_without_java_the_result_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(java_metrics.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = caption_metrics(TRUTH, RESULTS)
    assert "METEOR" not in found and "SPICE" not in found and found["Bleu_1"] > 0
    assert set(found["unavailable"]) == {"METEOR", "SPICE"}
    assert "java was not found on PATH" in found["unavailable"]["METEOR"]
    assert "apt-get install default-jre-headless" in found["unavailable"]["METEOR"]
    assert caplog.text.count("METEOR is not computed") == 1
    json.dumps(found)


def test_every_missing_piece_is_named_with_its_command(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_java(tmp_path / "bin", monkeypatch, "pass")
    assert missing_parts("METEOR") is None and missing_parts("SPICE") is None and missing_parts("CIDEr") is None
    (package / "meteor/data/paraphrase-en.gz").unlink()
    assert "meteor/data/paraphrase-en.gz not found" in str(missing_parts("METEOR"))
    assert "pip install --force-reinstall --no-deps pycocoevalcap==1.2" in str(missing_parts("METEOR"))
    jar, models = (package / name for name in java_metrics.NEEDED_FILES["SPICE"][1:])
    models.unlink()
    assert f"`rm {jar}; python -m pycocoevalcap.spice.get_stanford_models`" in str(missing_parts("SPICE"))
    jar.unlink()
    reason = str(missing_parts("SPICE"))
    assert "stanford-corenlp-3.6.0-models.jar (Stanford CoreNLP 3.6.0) not found" in reason
    assert "`python -m pycocoevalcap.spice.get_stanford_models`" in reason
    monkeypatch.setattr(java_metrics, "package_folder", lambda: None)
    assert "pip install pycocoevalcap==1.2" in str(missing_parts("SPICE"))


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_java(tmp_path / "bin", monkeypatch, "import sys; print('openjdk version \"17.0.1\"', file=sys.stderr)")
    found = metric_versions(["Bleu", "METEOR"])
    assert found["java"] == 'openjdk version "17.0.1"' and found["METEOR"] == "METEOR 1.5"
    assert found["pycocoevalcap"] == "1.2" and "SPICE" not in found
    assert "java" not in metric_versions(["Bleu"])
    assert java_metrics.package_version("no-such-package-here") == "not installed"
