"""Every run of run_scripts on a miniature of the real files: nothing but paths and sizes overridden, each to its numbers."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lavis.common.checkpoint import load_checkpoint_file
from lavis.models.inference import lemmatizer
from lavis.report.results_table import Result, read_run, tables
from tests import miniature, parity
from tests.miniature import Miniature, runs
from tests.miniature.runs import Run
from tests.tools.tool import run as tool

RUNS = runs.all_runs()
EVALUATIONS = [run for run in RUNS if not run.is_training]
TRAININGS = [run for run in RUNS if run.is_training]
QUICK = (  # of every kind one, in the default run too
    "eval/gqa.yaml[t5-xl]",
    "eval_opt/eval_regionblip_opt-6.7b_ImageRegion-caption_refcoco__A10040G.yaml",
    "eval_t5/eval_regionblip_t5-xxl_PointcloudRegion-caption_referscannet__A10040G.yaml",
    "train/regionblip_opt-2.7b_freeze-qformer_regloss_pcqformer_A10040G.yaml",
)
CAPTIONED = (("ImageRegion-caption_refcoco__", "test"), ("Pointcloud-caption", "test"), ("caption_referscannet", "val"))


def marked(chosen: list[Run]) -> list[Any]:
    """Parameters: all but QUICK are slow."""
    return [pytest.param(run, id=str(run), marks=() if str(run) in QUICK else pytest.mark.slow) for run in chosen]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return miniature.build(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(autouse=True)
def spacy(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A stand-in for spaCy's pipeline, which OK-VQA's configuration asks for and which is no dependency: it takes an s away."""
    module = types.ModuleType("spacy")

    def token(word: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(text=word, pos_="NOUN", lemma_=word.removesuffix("s"))

    module.load = lambda name: lambda text: [token(word) for word in text.split()]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", module)
    lemmatizer.load_lemmatizer.cache_clear()
    yield module
    lemmatizer.load_lemmatizer.cache_clear()


@pytest.fixture(scope="module")
def ended(small: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Run], Path]:
    """The output folder of a run, which is run where it was not yet."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def output(run: Run) -> Path:
        if run not in done:
            path = folder / str(run).replace("/", "_")
            assert runs.start(small, run, path) == 0
            done[run] = path
        return done[run]

    return output


def test_every_configuration_is_run() -> None:
    files = {path.relative_to(runs.FOLDER).as_posix() for path in runs.FOLDER.rglob("*.yaml")}
    others = {path for path in files if path.startswith(("shared/", *runs.ELSEWHERE))}
    assert {run.path for run in RUNS} | others == files and not {run.path for run in RUNS} & others
    assert set(QUICK) <= {str(run) for run in RUNS} and len({str(run) for run in RUNS}) == len(RUNS)
    assert {run.size for run in RUNS if run.path == "eval/refcoco+.yaml"} == set(miniature.LLMS)


@pytest.mark.parametrize(("kind", "name"), [("opt", "opt6.7b"), ("t5", "flant5xl")])
def test_the_checkpoint_has_the_published_names(small: Miniature, kind: str, name: str) -> None:
    """But for the numbers of layers."""
    state = load_checkpoint_file(small.weights / f"regionblip_pretrain_{name}.pth")["model"]
    listed = (parity.parity_dir() / "regionblip" / f"runner_saved_keys_{kind}.txt").read_text().split()
    found, published = ({re.sub(r"\.\d+\.", ".N.", key) for key in keys} for keys in (state, listed))
    assert found == published
    parity.count_records(1)


@pytest.mark.parametrize("run", marked(RUNS))
def test_only_paths_and_sizes_are_overridden(small: Miniature, run: Run, tmp_path: Path) -> None:
    with runs.environment(small, run) as given:
        changed = runs.changed_keys(run, tmp_path)
    assert set(given) <= runs.documented_variables()
    assert "run.output_dir" in changed and "model.vit.depth" in changed
    assert changed <= set(runs.OVERRIDDEN), changed - set(runs.OVERRIDDEN)


@pytest.mark.parametrize("run", marked(RUNS))
def test_check_data_finds_nothing_wrong(small: Miniature, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.check(small, run) == 0, capsys.readouterr().out
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "all is well" and not any("note:" in line for line in said)


@pytest.mark.parametrize("run", marked(EVALUATIONS))
def test_an_evaluation_gives_every_id_and_every_number(small: Miniature, ended: Callable[[Run], Path], run: Run) -> None:
    runs.check_outcome(small, run, ended(run))


@pytest.mark.parametrize("run", marked(TRAININGS))
def test_a_training_ends_and_what_it_learned_is_evaluated(
    small: Miniature, ended: Callable[[Run], Path], run: Run, tmp_path: Path
) -> None:
    """An epoch over every modality, then the published evaluations of that size with its checkpoint."""
    output = ended(run)
    lines = [json.loads(line) for line in (output / "log.txt").read_text().splitlines()]
    means = next(line["mean"] for line in lines if "mean" in line)
    wanted = runs.OWN_TRAININGS.get(run.path, {"image_region", "pointcloud", "pointcloud_region"})
    assert set(means) == wanted and lines[-1]["finished"]
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert not lines[-1]["skipped"] and not any(lines[-1]["dropped_at_reading"].values())
    assert not (output / "evaluate.txt").exists(), "the configuration names no split to validate or test on"
    if run.path in runs.OWN_TRAININGS:
        return
    for asked, _ in CAPTIONED:
        (evaluation,) = (other for other in EVALUATIONS if f"_{run.size}_" in other.path and asked in other.path)
        assert runs.start(small, evaluation, tmp_path / asked, CHECKPOINT=str(output / "checkpoint_0.pth")) == 0
        runs.check_outcome(small, evaluation, tmp_path / asked)


def test_another_sizes_files_are_refused(small: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = (run for run in EVALUATIONS if "6.7b_ImageRegion" in run.path)
    other = str(small.weights / "regionblip_pretrain_opt2.7b.pth")
    assert runs.start(small, run, tmp_path / "out", CHECKPOINT=other) == 2
    assert f"{other}: the checkpoint has other sizes than the model" in capsys.readouterr().err


@pytest.mark.slow
def test_okvqa_without_spacy_is_refused_by_both(
    small: Miniature, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    run = Run("eval/okvqa.yaml", "t5-xl")
    assert runs.check(small, run) == 1 and "pip install spacy" in capsys.readouterr().out
    assert runs.start(small, run, tmp_path / "out") == 2 and "pip install spacy" in capsys.readouterr().err


# What follows an evaluation


@pytest.mark.slow
def test_a_table_has_a_cell_for_each(ended: Callable[[Run], Path], capsys: pytest.CaptureFixture[str]) -> None:
    outputs = [ended(run) for run in EVALUATIONS]
    capsys.readouterr()
    assert tool("results_table", *outputs) == 0
    printed = capsys.readouterr()
    assert "(theirs)" in printed.out and not printed.err, "no run lost a sample"
    results = [result for output in outputs for result in read_run(output)]
    assert len(results) == len(EVALUATIONS)
    found = list(tables(results))
    names = {part.partition(" ")[0] for part in (result.part for result in results)}
    assert names == {
        "COCO",
        "RefCOCO",
        "RefCOCO+",
        "RefCOCOg",
        "Objaverse",
        "ReferScanNet",
        "ModelNet40",
        "VQAv2",
        "OK-VQA",
        "GQA",
    }
    for result in results:
        assert has_cell(found, result), (result.run, result.part)
    cells = sum(len(row) for table in found if "Captions" not in table.title for row in table.ours.values())
    assert cells > len(EVALUATIONS), "runs of one model and one split have rows of their own"


def has_cell(found: list[Any], result: Result) -> bool:
    """Whether a table holds the first number of a result."""
    name, scale = next(
        (n, s) for n, s in (("CIDEr", 100), ("top1", 100), ("txt_r1", 1), ("acc", 1), ("overall", 1)) if n in result.metrics
    )
    wanted = scale * result.metrics[name]
    return any(
        cell.value == wanted
        for table in found
        for row, cells in table.ours.items()
        for column, cell in cells.items()
        if row.startswith(result.model) and (column == result.part or (result.part in table.title and column == name))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "tool_name", "annotation"),
    [
        ("opt-2.7b_ImageRegion-caption_refcoco__", "prepare_regionblip_eval_refercoco", "Refer/refcoco/Refcoco_test.json"),
        ("opt-2.7b_Pointcloud-caption", "prepare_regionblip_eval_objaverse", "Cap3D/Cap3D_automated_Objaverse_test.txt"),
        ("opt-2.7b_PointcloudRegion", "prepare_regionblip_eval_referscannet", "ScanRefer/ScanRefer_filtered_val.json"),
        ("refcoco_crop.yaml[opt-2.7b]", "prepare_blip2_zeroshot_RefcocoCrop_eval", "RefCOCO_crop_test/RefCOCO_test_crop.json"),
    ],
)
def test_published_ground_truth_gives_the_same_numbers(
    small: Miniature, ended: Callable[[Run], Path], tmp_path: Path, asked: str, tool_name: str, annotation: str
) -> None:
    (run,) = (run for run in EVALUATIONS if asked in str(run))
    source = Path(shutil.copy(small.data / annotation, tmp_path))
    assert tool(tool_name, "-a" if "Crop" in tool_name else "-i", source) == 0
    (truth,) = tmp_path.glob("*__jianchong.json")
    output = ended(run)
    rows, written = output / "result" / "test_epochbest.json", tmp_path / "metrics.json"
    rows = rows if rows.is_file() else rows.with_name("val_epochbest.json")
    names = ["Bleu", "ROUGE_L", "CIDEr"]
    assert tool("eval_coco_caption", "-r", rows, "-a", truth, "-o", written, "--metrics", *names) == 0
    again, first = json.loads(written.read_text())["metrics"], runs.outcome(output).metrics
    for name in runs.METRICS["captions"]:
        assert again[name] == pytest.approx(first[name], abs=1e-12), name


# In processes of their own


def call(command: list[str], *, cwd: Path, **variables: str) -> str:
    """stdout of a command that must succeed."""
    done = subprocess.run(command, cwd=cwd, env={**runs.quiet_environment(), **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def hugging_face_cache(small: Miniature, home: Path) -> Path:
    """The folders of BERT and language models where Hugging Face keeps what it has fetched."""
    names = {"opt-2.7b": "facebook--opt-2.7b", "flan-t5-xl": "google--flan-t5-xl", "bert-base-uncased": "bert-base-uncased"}
    for folder, name in names.items():
        model = home / "hub" / f"models--{name}"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text("0" * 40)
        (model / "snapshots").mkdir()
        (model / "snapshots" / ("0" * 40)).symlink_to(small.weights / folder)
    return home


@pytest.mark.slow
def test_by_hand_without_any_variable(small: Miniature, tmp_path: Path) -> None:
    """Files where the defaults look: data/ and weights/ in the working directory, names in Hugging Face's cache. With Java,
    where there is one. Two processes give what one gives."""
    here = {"HF_HOME": str(hugging_face_cache(small, tmp_path / "hf")), "HF_HUB_OFFLINE": "1"}
    (run,) = (run for run in EVALUATIONS if "opt-2.7b_ImageRegion-caption_refcoco__" in run.path)
    config = ["--cfg-path", str(runs.FOLDER / run.path)]
    said = call([sys.executable, str(runs.ROOT / "tools" / "check_data.py"), *config], cwd=small.root, **here)
    assert said.splitlines()[-1] == "all is well"
    with runs.environment(small, run):
        sizes = [option for option in runs.arguments(run, tmp_path) if option.startswith("model.")]
    script, found = str(runs.ROOT / "evaluate.py"), []
    for processes in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
        options = ["--options", *sizes, f"run.output_dir={tmp_path / f'out{processes}'}"]
        call([sys.executable, *launcher, script, *config, *options], cwd=small.root, **here)
        found.append(runs.check_outcome(small, run, tmp_path / f"out{processes}"))
    assert sorted(found[0].rows) == sorted(found[1].rows)
    with_java = shutil.which("java") is not None
    assert ("METEOR" in found[0].metrics) == with_java and ("METEOR" in found[0].metrics.get("unavailable", {})) != with_java
