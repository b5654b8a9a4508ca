"""Lemmas of answers, as LAVIS gives them to score OK-VQA: nouns and verbs by their lemma, all other words as they are.

spaCy and its model en_core_web_sm are looked for when they are asked for, and only then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from lavis.common.errors import ConfigError

SPACY_MODEL = "en_core_web_sm"
LEMMATISED = ("NOUN", "VERB")


@functools.lru_cache(maxsize=1)
def load_lemmatizer() -> Callable[[str], Iterable[Any]]:
    """spaCy's pipeline, a text to its tokens. ConfigError says what is to be installed where something is missing."""
    install = f"install both: pip install spacy; python -m spacy download {SPACY_MODEL}"
    try:
        import spacy
    except ImportError as error:
        raise ConfigError(f"model.apply_lemmatizer is true, but spaCy is not there ({error}); {install}") from error
    try:
        pipeline: Callable[[str], Iterable[Any]] = spacy.load(SPACY_MODEL)
    except (OSError, ImportError) as error:
        raise ConfigError(f"model.apply_lemmatizer is true, but spaCy has no model {SPACY_MODEL} ({error}); {install}") from error
    return pipeline


def lemmatize(answers: Iterable[str]) -> list[str]:
    """The answers with their nouns and verbs as lemmas, one space between tokens."""
    pipeline = load_lemmatizer()
    return [" ".join(token.lemma_ if token.pos_ in LEMMATISED else token.text for token in pipeline(text)) for text in answers]
