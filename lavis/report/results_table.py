"""Tables of finished evaluations, the publication's numbers in columns of their own.

Reads what an evaluation leaves in its folder: evaluate.txt (a JSON line {name: metrics, "epoch", "dataset"} each; the last of
a split counts) and the configuration. Published numbers are those of RegionBLIP (arXiv 2308.02299, tables of the paper) and
stand beside ours only for the model, the dataset and the split that they are of.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONFIGS = ("config_evaluate.yaml", "config.yaml")  # of evaluate.py, of train.py
FAMILIES = {"regionblip_opt": "RegionBLIP", "regionblip_t5": "RegionBLIP", "blip2_opt": "BLIP-2", "blip2_t5": "BLIP-2"}
LANGUAGE_MODELS = {"opt-2.7b": "OPT-2.7B", "opt-6.7b": "OPT-6.7B", "flan-t5-xl": "Flan-T5-XL", "flan-t5-xxl": "Flan-T5-XXL"}
DATASETS = {
    "coco_caption": "COCO",
    "refcoco_crop_caption": "RefCOCO crops",
    "pointcloud_caption": "Objaverse",
    "scannet_refer": "ReferScanNet",
    "mobilenet40": "ModelNet40",
    "coco_vqa": "VQAv2",
    "ok_vqa": "OK-VQA",
    "gqa": "GQA",
    "coco_retrieval": "COCO",
    "flickr30k": "Flickr30k",
    "objaverse_retrieval": "Objaverse",
}
REFCOCO = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg"}  # by the folder of the annotation
NAMED_SETS = {"pointcloud_caption": "cap3d_automated_objaverse", "scannet_refer": "scanrefer_filtered"}  # how their files begin
MODELS = tuple(f"RegionBLIP {name}" for name in LANGUAGE_MODELS.values())
CIDER = "CIDEr x 100"
THEIRS_CIDER = {  # {dataset and split: one per MODELS}
    "RefCOCO test": (63.5, 64.2, 47.6, 56.1),
    "Objaverse test": (112.7, 113.6, 108.1, 109.0),
    "ReferScanNet val": (57.0, 59.3, 59.2, 53.6),
}
CAPTION_METRICS = ("SPICE", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
THEIRS_REFCOCO = (0.214, 0.337, 0.191, 0.106, 0.057, 0.245, 0.391, 0.635)  # OPT-2.7B, RefCOCO test, CAPTION_METRICS
RECALLS = ("txt_r1", "txt_r5", "txt_r10", "img_r1", "img_r5", "img_r10")


class Cell(NamedTuple):
    """A number of ours; `marked` where samples were missing or unreadable."""

    value: float
    interval: tuple[float, float] | None = None
    marked: bool = False


class Table(NamedTuple):
    """Rows are models, `digits` stand after the point."""

    title: str
    columns: list[str]
    digits: int
    ours: dict[str, dict[str, Cell]]  # {model: {column: cell}}
    theirs: dict[str, dict[str, float]]


class Result(NamedTuple):
    """The last evaluation of one split of one dataset by one run."""

    model: str
    run: str
    part: str  # dataset and split, as a table calls them
    metrics: Mapping[str, Any]


def read_run(run: str | os.PathLike[str]) -> list[Result]:
    """The results of a run's folder, or of its evaluate.txt. ValueError names a file that is missing or not whole."""
    folder = Path(run)
    folder = folder.parent if folder.is_file() else folder
    path = folder / "evaluate.txt"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; accepted: folders of runs that evaluated")
    config = _config(folder)
    model = model_name(config.get("model") or {}, folder)
    last: dict[str, Result] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            dataset = str(row.get("dataset", ""))
            metrics = {name: value for name, value in row.items() if isinstance(value, dict)}
        except (json.JSONDecodeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is not a line of results: {error}") from error
        for name, found in metrics.items():
            part = part_name(dataset, name.removeprefix(f"{dataset}_"), config)
            last[part] = Result(model, folder.name, part, found)
    return list(last.values())


def _config(folder: Path) -> dict[str, Any]:
    for name in CONFIGS:
        if (folder / name).is_file():
            try:
                content = OmegaConf.to_container(OmegaConf.load(folder / name), resolve=True)
            except (OmegaConfBaseException, yaml.YAMLError, ValueError, OSError) as error:
                raise ValueError(f"{folder / name} cannot be read: {error}") from error
            return content if isinstance(content, dict) else {}  # type: ignore[return-value]
    raise ValueError(f"{folder} holds neither {' nor '.join(CONFIGS)}, which say what was evaluated")


def model_name(model: Mapping[str, Any], folder: Path) -> str:
    """What a table calls a model: its kind and language model, and what of it was switched off."""
    arch = str(model.get("arch", ""))
    llm = str(model.get("opt_model") or model.get("t5_model") or model.get("llm_model") or "")
    llm = Path(llm.rstrip("/")).name
    parts = [FAMILIES.get(arch, arch), LANGUAGE_MODELS.get(llm.lower(), llm)]
    name = " ".join(part for part in parts if part) or folder.name
    if model.get("ablation_no_posembed"):
        name += ", no position"
    if model.get("region_features"):
        name += f", region_features {model['region_features']}"
    return name


def part_name(dataset: str, split: str, config: Mapping[str, Any]) -> str:
    """What a table calls a split of a dataset: RefCOCO's sets by the folder and the name of their annotation.

    A dataset has its publication's name only where the annotation has, too. One's own data, and the quickstart's generated data,
    go by the builder's name, in a column of their own.
    """
    block = (config.get("datasets") or {}).get(dataset) or {}
    entry = ((block.get("build_info") or block).get("annotations") or {}).get(split) or {}
    storage = entry.get("storage") or entry.get("scanner_file")
    path = Path(str(storage[0] if isinstance(storage, list) and storage else storage or ""))
    for folder in path.parts[:-1]:
        if dataset.startswith("general_box_caption") and folder.lower() in REFCOCO:
            named = re.fullmatch(r"refcoco_(\w+)", path.stem, re.IGNORECASE)
            return f"{REFCOCO[folder.lower()]} {named[1] if named else split}"
    generated = any(folder.lower().startswith("quickstart") for folder in path.parts)
    published = path.name.lower().startswith(NAMED_SETS.get(dataset, "")) and not generated
    return f"{DATASETS.get(dataset, dataset) if published else dataset} {split}".strip()


def tables(results: Iterable[Result]) -> Iterator[Table]:
    """CIDEr of all captions, all metrics of each captioned set, then classification, answers and retrieval where there are."""
    found = list(results)
    captions = [result for result in found if "CIDEr" in result.metrics or "Bleu_1" in result.metrics]
    parts = list(dict.fromkeys([*THEIRS_CIDER, *(result.part for result in captions)]))
    theirs = {model: {part: row[i] for part, row in THEIRS_CIDER.items()} for i, model in enumerate(MODELS)}
    yield _table(CIDER, parts, [(r, {r.part: _cell(r, "CIDEr", 100)}) for r in captions], theirs, digits=1)
    for part in parts:
        rows = [(r, {name: _cell(r, name, 1) for name in CAPTION_METRICS}) for r in captions if r.part == part]
        published = {MODELS[0]: dict(zip(CAPTION_METRICS, THEIRS_REFCOCO, strict=True))} if part == "RefCOCO test" else {}
        if rows or published:
            yield _table(f"Captions of {part}", CAPTION_METRICS, rows, published, digits=3)
    for title, names, scale in (("Zero-shot classes", ("top1", "top5"), 100), ("Recall", RECALLS, 1)):
        for part in dict.fromkeys(r.part for r in found if names[0] in r.metrics):
            rows = [
                (r, {name: _cell(r, name, scale) for name in names}) for r in found if r.part == part and names[0] in r.metrics
            ]
            yield _table(f"{title} of {part}, %", names, rows, {}, digits=1)
    answers = [r for r in found if "overall" in r.metrics or "acc" in r.metrics]
    if answers:
        cells = [(r, {r.part: _cell(r, "overall" if "overall" in r.metrics else "acc", 1)}) for r in answers]
        yield _table("Answers, accuracy in %", list(dict.fromkeys(r.part for r in answers)), cells, {}, digits=2)


def _table(
    title: str,
    columns: Sequence[str],
    found: Iterable[tuple[Result, Mapping[str, Cell | None]]],
    theirs: dict[str, dict[str, float]],
    *,
    digits: int,
) -> Table:
    """A row per model; a second run of a model for the same column gets a row of its own, with the run's name."""
    ours: dict[str, dict[str, Cell]] = {model: {} for model in theirs}
    for result, cells in found:
        given = {name: cell for name, cell in cells.items() if cell is not None}
        row = result.model
        while ours.get(row, {}).keys() & given.keys():
            row = f"{result.model} ({result.run})" if row == result.model else f"{row}'"
        ours.setdefault(row, {}).update(given)
    return Table(title, list(columns), digits, ours, theirs)


def _cell(result: Result, metric: str, scale: float) -> Cell | None:
    value = result.metrics.get(metric)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    interval = result.metrics.get(f"{metric}_ci95")
    both = (scale * interval[0], scale * interval[1]) if isinstance(interval, list) and len(interval) == 2 else None
    return Cell(scale * value, both, bool(notes(result)))


def notes(result: Result) -> str:
    """What a reader of a result's numbers should know: samples that were missing or could not be read; or ""."""
    counts = {"num_missing": "without a result", "num_unreadable": "unreadable", "num_duplicates": "listed twice"}
    told = [f"{result.metrics[name]} {what}" for name, what in counts.items() if result.metrics.get(name)]
    samples = f" of {result.metrics['num_samples']}" if "num_samples" in result.metrics else ""
    return f"{result.run}, {result.part}: {', '.join(told)}{samples}" if told else ""
