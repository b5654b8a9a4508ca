"""How long caption metrics take beside pycocoevalcap, which starts Java for its tokens.

    python benchmarks/caption_metrics.py
    python benchmarks/caption_metrics.py --items 10752 --references 5 --repeats 3

Generates captions (seeded; words by Zipf's law, some of them of a common topic; stops, commas, hyphens, apostrophes, numbers,
quotes, brackets and accents), scores them both ways in turn, with empty caches, and prints the seconds of each, their medians,
and the largest difference of the numbers, per corpus and per id. Without Java the tokens are ours on both sides, and it says
so. Measured on 2 CPU cores that did other work too: see README.md.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from lavis.evaluation.captions import tokenizer
from lavis.evaluation.captions.caption import caption_metrics

METRICS = ("Bleu", "ROUGE_L", "CIDEr")
MARKS: tuple[tuple[float, Callable[[str], str]], ...] = (  # share of captions, what is done to them
    (0.6, lambda text: text + "."),
    (0.1, lambda text: text.replace(" ", ", ", 1)),
    (0.05, lambda text: text.replace(" ", "-", 1)),
    (0.05, lambda text: text.replace(" ", "'s ", 1)),
    (0.05, lambda text: text.replace(" ", " 2 ", 1)),
    (0.03, lambda text: text.replace(" ", ' "stop" ', 1)),
    (0.02, lambda text: text.replace(" ", " (left) ", 1)),
    (0.01, lambda text: text.replace(" ", " caf\u00e9 ", 1)),
)
Captions = dict[int, list[str]]


def generate(items: int, references: int, *, seed: int, vocabulary: int = 4000) -> tuple[Captions, Captions]:
    """{id: references} and {id: [prediction]}."""
    rng = random.Random(seed)
    words = list(dict.fromkeys("".join(rng.choices("abcdefghiklmnoprstuw", k=rng.randint(2, 9))) for _ in range(vocabulary)))
    weights = [1 / (rank + 2) for rank in range(len(words))]

    def caption(topic: list[str]) -> str:
        said = rng.choices(words, weights, k=max(3, round(rng.gauss(10.5, 2.5))))
        said[::3] = rng.choices(topic, k=len(said[::3]))
        text = " ".join(said).capitalize()
        for share, change in MARKS:
            text = change(text) if rng.random() < share else text
        return text

    meant: Captions = {}
    said: Captions = {}
    for item in range(items):
        topic = rng.sample(words, 6)
        meant[item] = [caption(topic) for _ in range(references)]
        said[item] = [caption(topic)]
    return meant, said


def theirs(meant: Captions, said: Captions) -> dict[str, Any]:
    """What pycocoevalcap's COCOEvalCap does for these metrics; {metric: (corpus, per id)}."""
    if shutil.which("java"):
        tokens = [PTBTokenizer().tokenize({k: [{"caption": c} for c in v] for k, v in part.items()}) for part in (meant, said)]
    else:
        tokens = [tokenizer.tokenize_captions(meant), tokenizer.tokenize_captions(said)]
    bleu, bleus = Bleu(4).compute_score(*tokens, verbose=0)
    found = {f"Bleu_{n + 1}": (bleu[n], bleus[n]) for n in range(4)}
    return found | {"ROUGE_L": Rouge().compute_score(*tokens), "CIDEr": Cider().compute_score(*tokens)}


def ours(meant: Captions, said: Captions) -> dict[str, Any]:
    """The same from COCO's layouts, through the function that evaluations call."""
    annotations = [{"image_id": key, "id": 0, "caption": text} for key, texts in meant.items() for text in texts]
    truth = {"images": [{"id": key} for key in meant], "annotations": annotations}
    rows = [{"image_id": key, "caption": texts[0]} for key, texts in said.items()]
    found = caption_metrics(truth, rows, metrics=METRICS, per_sample=True)
    each = found["per_sample"]
    names = [name for name in found if name.startswith("Bleu") or name in METRICS]
    return {name: (found[name], [each[key][name] for key in meant]) for name in names}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10752)
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    captions = generate(given.items, given.references, seed=given.seed)
    print(f"{given.items} predictions, {given.references} references each, seed {given.seed}")
    if not shutil.which("java"):
        print("java was not found: pycocoevalcap's scorers run on our tokens, which costs them less than their own")
    seconds: dict[str, list[float]] = {"pycocoevalcap": [], "ours": []}
    found: dict[str, Any] = {}
    for repeat in range(given.repeats):
        for name, score in (("pycocoevalcap", theirs), ("ours", ours)):
            tokenizer.forget()
            start = time.perf_counter()
            found[name] = score(*captions)
            seconds[name].append(time.perf_counter() - start)
        print(f"run {repeat + 1}: " + ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items()))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(", ".join(f"{name} {value:.2f} s" for name, value in medians.items()), end="")
    print(f" (medians): {medians['pycocoevalcap'] / medians['ours']:.1f} times faster")
    worst = 0.0
    for name, (corpus, each) in found["pycocoevalcap"].items():
        mine, mine_each = found["ours"][name]
        worst = max([worst, abs(corpus - mine), *(abs(a - b) for a, b in zip(each, mine_each, strict=True))])
        print(f"{name}: {corpus:.6f} {mine:.6f}")
    print(f"largest difference, per corpus or per id: {worst:.1e}")
    return 0 if worst < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
