"""The tokenizer gives the tokens of pycocoevalcap's: recorded ones always, the Java program's own where Java is."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from lavis.evaluation.captions import tokenizer
from lavis.evaluation.captions.tokenizer import PUNCTUATION, tokenize, tokenize_captions

# [caption, its tokens]: our sentences, in this order through pycocoevalcap 1.2's PTBTokenizer
RECORDED = json.loads((Path(__file__).parent / "ptb_tokens.json").read_text(encoding="utf-8"))

PIECES = {
    "words": ["a", "dog", "man's", "isn't", "Mr", "U.S", "a.m", "o'clock", "t-shirt", "A", " ", " ", ". ", ", ", "5"],
    "signs": [*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", " ", " ", "a", "B", "1", "...", "--", "''", "``"],
    "numbers": [*"0123456789.,:;-/+()#$%' ", "1/2", "½", "²", "\u00a0", "٣", "x", "555", "(650)", "-1234", "p.m."],
    "apostrophes": [*"'’‘`stndlmAYeoé ", "re", "ve", "ll", "I", "don", "can", "&apos;", "'90", "cannot", "gonna", "N'T"],
    "hyphens": [*"-_/.,'ab5é ", "--", "U.S", "u.k", "pro-", "\u2010", "\u2011", "\u00ad", "1/2", "d'", "\\/"],
    "addresses": [*"a@./x1-#,:?()<>é ", "www.", "http://", ".com", "net", "&", "=", ".jpg", "mail@"],
    "markup": ["<", ">", "</", "/>", "<b", "a", "=", '"', "'", " ", " ", "!", "&lt;", "&amp;", "&quot;", "&nbsp;", "--"],
    "smileys": [*":;=8-o*'()DPp[]{}@|\\<>^_.~ 1a"],
    "stops": [*".. !?,;a1", "…", "mr", "etc", "jan", "St", "Wash", "ph", "S", " The", " A", "no", "\u00a0"],
    "unicode": [*"aéßñŁİıǅσςжЯאبपกあア漢한ـ", "\u0301", "\u200d", "\ufeff", *"«»‹›„‚₤€£¥¢©®™°★☃♥😀👍", "\u3000", "\u2009", " "],
}


def random_captions(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    families = [*PIECES.values(), sum(PIECES.values(), [])]
    return ["".join(rng.choices(rng.choice(families), k=rng.randint(0, 14))) for _ in range(count)]


def test_recorded_tokens() -> None:
    found = tokenize_captions({index: [caption] for index, (caption, _) in enumerate(RECORDED)})
    wrong = [(caption, tokens, found[i]) for i, (caption, tokens) in enumerate(RECORDED) if found[i] != [tokens]]
    assert wrong == []
    assert len(RECORDED) > 60


def test_tokens_are_lower_case_without_punctuation() -> None:
    for caption in random_captions(0, 500):
        tokens = tokenize(caption)
        assert not PUNCTUATION.intersection(tokens)
        assert all(token == token.lower() and token and " " not in token for token in tokens)


WORDS = ["a", "A", "dog", "The", "I", "cannot", "ground", "no", "mr", "mass", "etc", "gonna", "x", "Ill", "end"]
MARKED = [
    "it's",
    '"red"',
    "t-shirt",
    "l'art",
    "don't",
    "rock",
    "'n'",
    "y'all",
    "e-mail.",
    "girls'",
    "x-'y",
    "n't",
    "-",
    "...",
    ".",
]
MARKED += [
    "2",
    "3",
    "1/2",
    "555",
    "1234",
    ".5",
    ".com",
    "u.s.",
    ":)",
    "(x)",
    "<b",
    "x>",
    "y='a",
    "b'>",
    '<a href="q',
    'q">',
    "\u00e9",
]


def test_the_short_way_agrees_with_the_rules() -> None:
    """Plain words are looked up one by one; the rules, on the whole line, would give the same."""
    rng = random.Random(0)
    mixed = [*WORDS, *MARKED, *(piece for pieces in PIECES.values() for piece in pieces)]
    captions = []
    for index in range(6000):
        chosen = rng.choices(mixed if index % 2 else WORDS, k=rng.randint(0, 6))
        words = [word + rng.choice(["", "", "", ".", ","]) for word in chosen]
        captions.append(rng.choice([" ", " ", "  "]).join(words))
    found = tokenize_captions({index: [caption] for index, caption in enumerate(captions)})
    looked_up = 0
    for index, caption in enumerate(captions):
        line = " ".join(tokenizer._lex(tokenizer._one_line(caption), tokenizer._following(captions, index))).lower()
        by_rules = [token for token in line.rstrip().split(" ") if token not in PUNCTUATION]
        assert found[index] == [" ".join(by_rules)], caption
        looked_up += tokenizer._known_tokens(caption) is not None
    assert 1000 < looked_up < 5000


def test_one_caption_is_one_line() -> None:
    assert tokenize("two\nlines\r\nand\u2028more\x0b.") == ["two", "lines", "and", "more"]
    assert tokenize("") == tokenize(" \n\t ") == tokenize("😀 .") == []


def test_ends_of_lines_see_the_next_caption() -> None:
    assert tokenize_captions({1: ["vitamin c.", "the dog"], 2: ["x"]})[1][0] == "vitamin c."
    assert tokenize_captions({1: ["vitamin c."], 2: ["The dog"]})[1] == ["vitamin c"]
    assert tokenize_captions({1: ["exit no.", "5 cars"]}) == {1: ["exit no.", "5 cars"]}
    assert tokenize_captions({1: ["hi :)", "hi :)"]}) == {1: ["hi :-rrb-", "hi -rrb-"]}
    assert tokenize_captions({}) == {}


@pytest.mark.parametrize("unit", ["word ", "a.b.", "x'", "<a ", "a@", "é-", "1,", ". ", "&amp;", "www.", "((", "'"])
def test_very_long_captions_are_quick(unit: str) -> None:
    start = time.perf_counter()
    tokenize(unit * 4000)
    assert time.perf_counter() - start < 5


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")
def test_same_tokens_as_the_java_program() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions: dict[int, list[str]] = {}
    for index, caption in enumerate([*random_captions(1, 20_000), *(caption for caption, _ in RECORDED), "the end."]):
        captions.setdefault(index // 3, []).append(caption)
    expected = PTBTokenizer().tokenize({key: [{"caption": text} for text in texts] for key, texts in captions.items()})
    found = tokenize_captions(captions)
    wrong = [(captions[key], expected[key], found[key]) for key in captions if expected[key] != found[key]]
    assert wrong == []
