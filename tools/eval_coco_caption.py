"""Caption metrics of a result file, without a model and without Java.

    python tools/eval_coco_caption.py -r output/run/result/test_epochbest.json -a annotations/Refcoco_test__jianchong.json

RESULT holds rows {"image_id", "caption"}, ANNOTATION is a COCO caption file. BLEU-1..4, ROUGE-L and CIDEr (which is CIDEr-D)
are those of pycocoevalcap; METEOR and SPICE are added where Java and their files are there, and what they lack is told. Prints
a line per metric with its 95 % interval, and writes <RESULT's stem>_metrics.json: metrics, the scores and tokens of every id,
versions, and the hash of the annotation. Two captions of one id and an id that the annotation lacks are errors; an id
without a caption is named, counted and scores as an empty one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lavis.evaluation.captions.caption import EXTRA, METRICS, metric_versions, score_captions
from lavis.evaluation.captions.score_file import file_hash, write_scores
from lavis.evaluation.files import read_json


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--results", required=True, help="JSON list of rows {image_id, caption}")
    parser.add_argument("-a", "--annotations", required=True, help="ground truth, a COCO caption file")
    parser.add_argument("-o", "--output", help="default: <stem of the results>_metrics.json beside them")
    parser.add_argument("--metrics", nargs="+", default=METRICS, metavar="NAME", help=f"of {' '.join((*METRICS, *EXTRA))}")
    parser.add_argument("--resamples", type=int, default=1000, help="for the 95 %% intervals; 0: none (default: 1000)")
    parser.add_argument("--seed", type=int, default=42, help="of the resamples (default: 42)")
    parser.add_argument("--java-timeout", type=float, default=20.0, metavar="MINUTES", help="METEOR and SPICE (default: 20)")
    given = parser.parse_args(arguments)
    source = Path(given.results)
    target = Path(given.output) if given.output else source.with_name(f"{source.stem}_metrics.json")
    try:
        rows = read_json(source)
        if not isinstance(rows, list):
            raise ValueError(f"{source} holds a {type(rows).__name__}; expected a list of rows {{image_id, caption}}")
        scores = score_captions(
            given.annotations,
            rows,
            metrics=given.metrics,
            resamples=given.resamples,
            seed=given.seed,
            java_timeout=60 * given.java_timeout,
        )
        settings = {"results": {"path": str(source), "sha256": file_hash(source)}}
        versions = metric_versions(set(given.metrics) - set(scores.metrics.get("unavailable", ())))
        write_scores(scores, target, ground_truth=given.annotations, settings=settings, versions=versions)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, value in scores.metrics.items():
        if isinstance(value, float):
            low, high = scores.metrics.get(f"{name}_ci95", (None, None))
            print(f"{name}: {value:.4f}" + ("" if low is None else f"  (95 % interval {low:.4f} to {high:.4f})"))
    print(f"{len(scores.captions)} ids, {len(scores.missing)} without a result; written to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
