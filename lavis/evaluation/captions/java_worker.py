"""The process in which pycocoevalcap's METEOR or SPICE runs: python -m lavis.evaluation.captions.java_worker METRIC GIVEN WRITTEN

Reads {"references": [[text, ...], ...], "predictions": [text, ...]}, tokenised, and writes {"corpus", "each"}. It is a
process of its own because pycocoevalcap's callers wait without limit for a Java program that has died or hangs, hold a lock
when they fail, and leave its stderr unread.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import IO, Any

Captions = dict[int, list[str]]


def meteor(references: Captions, predictions: Captions) -> tuple[float, list[float]]:
    """METEOR's aggregate and its score per item."""
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    reader = threading.Thread(target=_pass_on, args=(scorer.meteor_p.stderr,), daemon=True)
    reader.start()
    try:
        return scorer.compute_score(references, predictions)
    except (OSError, ValueError):
        scorer.meteor_p.kill()
        reader.join(10)  # what it said, before what we say
        raise
    finally:
        if scorer.lock.locked():  # it failed: the destructor would wait for this lock
            scorer.lock.release()


def _pass_on(stream: IO[bytes]) -> None:
    for line in stream:
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()


def spice(references: Captions, predictions: Captions) -> tuple[float, list[float]]:
    """SPICE's mean F score and the F score of each item; numbers as ids keep the order."""
    from pycocoevalcap.spice.spice import Spice

    corpus, each = Spice().compute_score(references, predictions)
    return float(corpus), [float(scores["All"]["f"]) for scores in each]


def main(metric: str, given: str, written: str) -> None:
    content: dict[str, Any] = json.loads(Path(given).read_text(encoding="utf-8"))
    references = dict(enumerate(content["references"]))
    predictions = {index: [text] for index, text in enumerate(content["predictions"])}
    corpus, each = {"METEOR": meteor, "SPICE": spice}[metric](references, predictions)
    Path(written).write_text(json.dumps({"corpus": float(corpus), "each": list(map(float, each))}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
