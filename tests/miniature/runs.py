"""The runs of run_scripts on a miniature: which there are, what is overridden, and what each must leave behind."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import evaluate
import train
from lavis.common.config import Config
from tests.miniature import LLMS, Miniature
from tests.miniature.weights import SIZES
from tools import check_data

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "run_scripts"
# Of the toy size that they are, on data of their own: tests/test_smoke.py, tests/quickstart/test_scenes.py
ELSEWHERE = ("quickstart/", "train/smoke.yaml")
# Everything that is overridden; the other paths come from environment variables
OVERRIDDEN = {
    **{f"model.{key}": "size" for key in SIZES},
    "run.max_epoch": "size",  # of trainings
    "run.output_dir": "path",
}
OWN_REGIONS = ("REGIONS", "IMAGES", "EVA_VIT", "BLIP2", "REGION_SHARDS", "LAION")  # which the files below say themselves
OWN_TRAININGS = {"train/regions.yaml": {"image_region"}, "train/region_shards.yaml": {"image_region", "image"}}  # modalities
METRICS = {  # of what a run's task promises, the numbers
    "captions": ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "agg_metrics"),
    "vqa": ("overall", "other", "agg_metrics"),
    "gqa": ("acc", "agg_metrics"),
    "multimodal_3d_classification": ("top1", "top5", "agg_metrics"),
    "retrieval": ("txt_r1", "txt_r5", "txt_r10", "img_r1", "img_r5", "img_r10", "agg_metrics"),
}


class Run(NamedTuple):
    """A configuration below run_scripts, and the size of its model."""

    path: str
    size: str

    @property
    def is_training(self) -> bool:
        return self.path.startswith("train/")

    def __str__(self) -> str:
        return self.path if self.size in self.path else f"{self.path}[{self.size}]"


def all_runs() -> list[Run]:
    """Every configuration that is one, those that serve all sizes once for each."""
    runs = []
    for file in sorted(FOLDER.rglob("*.yaml")):
        path = file.relative_to(FOLDER).as_posix()
        if path.startswith(("shared/", *ELSEWHERE)):
            continue
        sizes = [size for size in LLMS if f"_{size}_" in path]
        if not sizes:
            sizes = list(LLMS) if "oc.env:MODEL" in file.read_text() else ["opt-2.7b"]
        runs += [Run(path, size) for size in sizes]
    return runs


@contextlib.contextmanager
def environment(miniature: Miniature, run: Run, **more: str) -> Iterator[dict[str, str]]:
    """The variables of a run, and no other of run_scripts/README.md. Java is not on the PATH, which for METEOR takes a while."""
    given = miniature.environment(run.size) | (miniature.own_regions() if run.path in OWN_TRAININGS else {}) | more
    with pytest.MonkeyPatch.context() as patch:
        for name in documented_variables():
            patch.delenv(name, raising=False)
        for name, value in given.items():
            patch.setenv(name, value)
        folders = os.environ.get("PATH", "").split(os.pathsep)
        patch.setenv("PATH", os.pathsep.join(folder for folder in folders if shutil.which("java", path=folder) is None))
        yield given


def documented_variables() -> set[str]:
    """Names of the table in run_scripts/README.md, and those that headers of configurations say."""
    table = re.findall(r"^\| `([A-Z0-9_]+)` \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    return {*table, "MODEL", *OWN_REGIONS}


def arguments(run: Run, output: Path) -> list[str]:
    """The command line of a run: its configuration with OVERRIDDEN, so far as it has these keys."""
    plain = Config.from_file(FOLDER / run.path).to_dict()
    options = [f"model.{key}={value}" for key, value in SIZES.items() if key in flat(plain["model"])]
    if plain["model"].get("modalities", {}).get("pointcloud", "none") is None:
        options = [option for option in options if "pointbert" not in option]
    options += ["run.max_epoch=1"] if run.is_training else []
    return ["--cfg-path", str(FOLDER / run.path), "--options", *options, f"run.output_dir={output}"]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings by dotted keys."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: value for name, part in node.items() for key, value in flat(part, f"{prefix}.{name}".lstrip(".")).items()}


def changed_keys(run: Run, output: Path) -> set[str]:
    """Keys of the whole configuration in which a run on the miniature differs from the file as it stands."""
    given = arguments(run, output)
    before = flat(Config.from_file(FOLDER / run.path).to_dict())
    after = flat(Config.from_file(FOLDER / run.path, options=given[given.index("--options") + 1 :]).to_dict())
    return {key for key in {*before, *after} if before.get(key) != after.get(key)}


def check(miniature: Miniature, run: Run, *more: str) -> int:
    """The exit code of tools/check_data.py: nothing is overridden."""
    with environment(miniature, run):
        return check_data.main(["--cfg-path", str(FOLDER / run.path), "--workers", "0", *more])


def start(miniature: Miniature, run: Run, output: Path, *more: str, **variables: str) -> int:
    """The exit code of train.py or evaluate.py, in this process."""
    with environment(miniature, run, **variables):
        main = train.main if run.is_training else evaluate.main
        return main([*arguments(run, output), *more])


class Outcome(NamedTuple):
    """What an evaluation left: the last line of evaluate.txt, and its result rows {id: caption or answer}."""

    dataset: str
    metrics: dict[str, Any]
    rows: list[tuple[Any, str]]

    @property
    def ids(self) -> list[Any]:
        return [key for key, _ in self.rows]


def outcome(output: Path) -> Outcome:
    line = json.loads((output / "evaluate.txt").read_text().splitlines()[-1])
    (metrics,) = (value for value in line.values() if isinstance(value, dict))
    files = [*(output / "result").glob("*_epochbest.json"), *(output / "result").glob("*_vqa_result.json")]
    rows = json.loads(files[0].read_text()) if files else []
    ids = [row["question_id"] if "question_id" in row else row["image_id"] for row in rows]
    said = [str(row.get("caption", row.get("answer", row.get("prediction")))) for row in rows]
    return Outcome(line["dataset"], metrics, list(zip(ids, said, strict=True)))


def expected_ids(miniature: Miniature, run: Run, dataset: str) -> set[Any]:
    """The ids that an evaluation must have results for."""
    if dataset != "general_box_caption":
        return miniature.ids[dataset]
    (name,) = re.findall(r"refcoco(?:\+|g)?(?=__|\.yaml)", run.path)
    return miniature.ids[name]


def promised(output: Path) -> tuple[str, ...]:
    """The numbers that the task of a run writes."""
    config = yaml.safe_load((output / "config_evaluate.yaml").read_text())
    task = config["run"]["task"]
    kind = "gqa" if "gqa" in config["datasets"] else "captions" if "captioning" in task else task
    return METRICS[kind]


def check_outcome(miniature: Miniature, run: Run, output: Path) -> Outcome:
    """Every id once, every metric a finite number, nothing unreadable."""
    found = outcome(output)
    ids = expected_ids(miniature, run, found.dataset)
    if found.dataset != "coco_retrieval":  # ranks, no rows
        assert len(found.ids) == len(ids) and set(found.ids) == ids, found.ids
    assert (found.metrics["num_samples"], found.metrics["num_unreadable"]) == (len(ids), 0)
    assert found.metrics.get("num_missing", 0) == 0 and "num_duplicates" not in found.metrics
    for name in promised(output):
        assert isinstance(found.metrics[name], (int, float)) and math.isfinite(found.metrics[name]), name
    return found


def quiet_environment() -> dict[str, str]:
    """For processes of their own."""
    kept = {name: value for name, value in os.environ.items() if name not in documented_variables()}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
