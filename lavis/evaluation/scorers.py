"""The caption scorers of pycocoevalcap behind one call, and what each of them needs to run.

Provenance: BLEU, ROUGE-L and CIDEr are pycocoevalcap's own Python (github.com/salaniz/pycocoevalcap), METEOR 1.5
and SPICE 1.0 the Java programs that it ships or downloads. Nothing is ever downloaded from here.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

METRICS = ("Bleu", "ROUGE_L", "CIDEr", "METEOR", "SPICE")
_NEEDED_FILES = {
    "METEOR": ("meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz"),
    "SPICE": ("spice/spice-1.0.jar", "spice/lib/stanford-corenlp-3.6.0.jar", "spice/lib/stanford-corenlp-3.6.0-models.jar"),
}
_HOW_TO_GET = {
    "METEOR": "reinstall it with `pip install --force-reinstall pycocoevalcap`",
    "SPICE": "fetch them once with `python -m pycocoevalcap.spice.get_stanford_models`",
}


class MetricUnavailable(RuntimeError):
    """A metric cannot be computed on this machine; the message says what is missing or went wrong."""


class Score(NamedTuple):
    """A corpus score per name ("Bleu_1", ...) and, per name, one score for each id in order."""

    corpus: dict[str, float]
    each: dict[str, list[float]]


def missing_parts(metric: str) -> str | None:
    """What keeps METEOR or SPICE from running here and how to get it; None when nothing does."""
    folder = _package_folder()
    if metric not in _NEEDED_FILES:
        return None
    if shutil.which("java") is None:
        return "java was not found on PATH; install a Java runtime, for instance with `apt-get install default-jre-headless`"
    absent = [name for name in _NEEDED_FILES[metric] if not (folder / name).is_file()]
    return f"{', '.join(absent)} not found in {folder}; {_HOW_TO_GET[metric]}" if absent else None


def score(metric: str, references: Mapping[Any, list[str]], predictions: Mapping[Any, list[str]]) -> Score:
    """Score tokenised captions: {id: [reference, ...]} and {id: [prediction]} with the same ids in the same order.

    MetricUnavailable says what METEOR or SPICE lacks, or why its program did not finish.
    """
    reason = missing_parts(metric)
    if reason is not None:
        raise MetricUnavailable(reason)
    if metric == "Bleu":
        from pycocoevalcap.bleu.bleu import Bleu

        corpus, each = Bleu(4).compute_score(references, predictions, verbose=0)
        names = [f"Bleu_{n}" for n in (1, 2, 3, 4)]
        return Score(dict(zip(names, map(float, corpus), strict=True)), dict(zip(names, map(_floats, each), strict=True)))
    if metric == "ROUGE_L":
        from pycocoevalcap.rouge.rouge import Rouge

        return _single(metric, *Rouge().compute_score(references, predictions))
    if metric == "CIDEr":
        return _cider(references, predictions)
    try:
        return _java_score(metric, references, predictions)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise MetricUnavailable(f"the {metric} program did not finish: {type(error).__name__}: {error}") from error


def _cider(references: Mapping[Any, list[str]], predictions: Mapping[Any, list[str]]) -> Score:
    from pycocoevalcap.cider.cider import Cider

    if not any(caption for captions in references.values() for caption in captions):
        return _single("CIDEr", 0.0, [0.0] * len(references))  # the package fails without any word to count
    return _single("CIDEr", *Cider().compute_score(references, predictions))


def _java_score(metric: str, references: Mapping[Any, list[str]], predictions: Mapping[Any, list[str]]) -> Score:
    if metric == "METEOR":
        from pycocoevalcap.meteor.meteor import Meteor

        logger.info("METEOR: starting Java; reading its paraphrases takes a while")
        return _single(metric, *Meteor().compute_score(references, predictions))
    from pycocoevalcap.spice.spice import Spice

    # The program sorts by id and returns ids as text: numbers keep the order and bring the scores back to it.
    order = {index: key for index, key in enumerate(references)}
    corpus, each = Spice().compute_score(
        {index: references[key] for index, key in order.items()},
        {index: predictions[key] for index, key in order.items()},
    )
    return _single(metric, corpus, [scores["All"]["f"] for scores in each])


def _package_folder() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("caption metrics need pycocoevalcap; install it with `pip install pycocoevalcap`")
    return Path(next(iter(spec.submodule_search_locations)))


def _single(name: str, corpus: Any, each: Sequence[Any]) -> Score:
    return Score({name: float(corpus)}, {name: _floats(each)})


def _floats(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]
