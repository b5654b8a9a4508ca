"""BLEU, ROUGE-L and CIDEr against pycocoevalcap's own loops, and CIDEr without clipping against its formula."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from lavis.evaluation.captions.ngram_scores import bleu_of_sums, bleu_sums, ngram_statistics
from lavis.evaluation.captions.ngrams import encode, split_at_any_space
from lavis.evaluation.captions.rouge import longest_common, rouge_l
from lavis.evaluation.captions.scorers import Scorer

Captions = dict[int, list[str]]


def random_corpus(rng: random.Random) -> tuple[Captions, Captions]:
    """Few or many words, captions of 0 to 150 words, a wide space here and there, 1 to 6 references."""
    words = [f"w{index}" for index in range(rng.choice([1, 2, 5, 30, 300]))] + rng.choice([[], ["3\u00a01/2", "\u3000x"]])

    def caption() -> str:
        length = rng.choice([0, 1, 2, 3, 5, 8, 12, 20]) if rng.random() < 0.98 else rng.randint(60, 150)
        return " ".join(rng.choices(words, k=length))

    items = range(rng.choice([1, 2, 3, 10, 40]))
    references = {item: [caption() for _ in range(rng.randint(1, 6))] for item in items}
    references[0].append(rng.choice(words))  # pycocoevalcap's CIDEr fails without any word
    return references, {item: [caption()] for item in items}


def test_the_numbers_of_pycocoevalcap() -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    rng = random.Random(0)
    for _ in range(120):
        references, predictions = random_corpus(rng)
        scorer = Scorer(references, predictions)
        bleu, bleus = Bleu(4).compute_score(references, predictions, verbose=0)
        found = scorer.score("Bleu")
        for n in range(4):
            assert found.corpus[f"Bleu_{n + 1}"] == pytest.approx(bleu[n], abs=1e-12)
            assert found.each[f"Bleu_{n + 1}"] == pytest.approx(np.array(bleus[n]), abs=1e-12)
        for name, theirs in {"ROUGE_L": Rouge(), "CIDEr": Cider()}.items():
            corpus, each = theirs.compute_score(references, predictions)
            assert scorer.score(name).corpus[name] == pytest.approx(corpus, abs=1e-12)
            assert scorer.score(name).each[name] == pytest.approx(each, abs=1e-12)


def test_plain_cider_is_the_mean_cosine_of_tf_idf() -> None:
    """Without clipping and Gaussian, from the formula of the paper; a caption that repeats itself loses nothing."""
    references = {0: ["a red car", "the red car"], 1: ["two dogs run"], 2: ["a dog on the road"]}
    predictions = {0: ["a red red car"], 1: ["two dogs run"], 2: ["two dogs"]}

    def vector(text: str, n: int) -> dict[tuple[str, ...], float]:
        def grams(line: str) -> Counter[tuple[str, ...]]:
            words = line.split()
            return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

        df = Counter(gram for lines in references.values() for gram in {g for line in lines for g in grams(line)})
        return {gram: times * (math.log(3) - math.log(max(1, df[gram]))) for gram, times in grams(text).items()}

    expected = []
    for item, lines in references.items():
        total = 0.0
        for line in lines:
            for n in range(1, 5):
                one, other = vector(predictions[item][0], n), vector(line, n)
                norms = math.hypot(*one.values()) * math.hypot(*other.values())
                total += sum(value * other.get(gram, 0.0) for gram, value in one.items()) / norms if norms else 0.0
        expected.append(10 * total / 4 / len(lines))
    scorer = Scorer(references, predictions)
    assert scorer.score("CIDEr_plain").each["CIDEr_plain"] == pytest.approx(np.array(expected), abs=1e-12)
    assert scorer.score("CIDEr").corpus["CIDEr"] < scorer.score("CIDEr_plain").corpus["CIDEr_plain"]


def test_bleu_takes_the_closest_length_and_the_shorter_of_two() -> None:
    corpus = encode([["a b c d e f", "a b"], ["a"]], ["a b c d", ""])
    corpus = split_at_any_space(corpus)
    sums = bleu_sums(corpus, ngram_statistics(corpus).correct)
    assert sums.tolist() == [[4, 3, 2, 1, 4, 3, 2, 1, 4, 2], [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]]
    whole = bleu_of_sums(sums.sum(axis=0))
    assert whole["Bleu_1"] == pytest.approx(1) and bleu_of_sums(sums)["Bleu_1"][1] == 0


def test_longest_common_subsequences_by_bits_and_by_table() -> None:
    rng = random.Random(1)
    for _ in range(200):
        one, other = (rng.choices("abcdef", k=rng.randint(0, 90)) for _ in range(2))
        row = [0] * (len(other) + 1)
        for word in one:
            before = row[:]
            for index, second in enumerate(other, 1):
                row[index] = before[index - 1] + 1 if word == second else max(before[index], row[index - 1])
        assert longest_common(one, other) == row[-1]
        pair = encode([[" ".join(one)]], [" ".join(other)])
        common = row[-1] if one and other else float(one == other)
        precision, recall = common / max(len(other), 1), common / max(len(one), 1)
        expected = 2.44 * precision * recall / (recall + 1.44 * precision) if common else 0.0
        assert rouge_l(pair)[0] == pytest.approx(expected, abs=1e-12)


def test_captions_that_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="1 predictions of 2 items, 1 of them without a reference"):
        encode([["a"], []], ["a"])
    with pytest.raises(ValueError, match="holds the end of a line"):
        encode([["a \n b"]], ["a"])
    assert Scorer({0: [""], 1: [""]}, {0: ["x"], 1: [""]}).score("CIDEr").corpus == {"CIDEr": 0.0}
    with pytest.raises(ValueError, match="Unknown caption metric 'Blue'"):
        Scorer({0: ["a"]}, {0: ["a"]}).score("Blue")
