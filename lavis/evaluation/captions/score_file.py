"""What stands behind the numbers of a caption evaluation, as a JSON file beside the captions.

Format: {"format": 1, "metrics": as in evaluate.txt, "settings": what the caller says of the run, "versions": of packages and
programs, "ground_truth": {"path", "sha256"}, "bootstrap": how intervals were made, "num_missing", "samples": a row per id
{"image_id", "caption", "missing": true where there was no result, "tokens", "references": tokens of each, "scores"}}.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lavis.evaluation.captions.caption import CaptionScores
from lavis.evaluation.files import write_text

FORMAT = 1


def write_scores(
    scores: CaptionScores,
    path: str | os.PathLike[str],
    *,
    ground_truth: str | os.PathLike[str],
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
) -> Path:
    """Write an evaluation whole or not at all; the path. Scores that are no numbers are null."""
    content = {
        "format": FORMAT,
        "metrics": scores.metrics,
        "settings": dict(settings),
        "versions": dict(versions),
        "ground_truth": {"path": os.fspath(ground_truth), "sha256": file_hash(ground_truth)},
        "bootstrap": scores.bootstrap or None,
        "num_missing": len(scores.missing),
        "samples": list(_samples(scores)),
    }
    return write_text(json.dumps(_finite(content), ensure_ascii=False, indent=1, allow_nan=False) + "\n", path)


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _samples(scores: CaptionScores) -> Iterator[dict[str, Any]]:
    absent = set(scores.missing)
    for key, caption in scores.captions.items():
        yield {
            "image_id": key,
            "caption": caption,
            **({"missing": True} if key in absent else {}),
            "tokens": scores.tokens[key],
            "references": scores.reference_tokens[key],
            "scores": scores.each[key],
        }


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON has not."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
