"""Text processors blip_caption and blip_question.

After LAVIS (salesforce/LAVIS, lavis/processors/blip_processors.py): the same names, options and output.
"""

from __future__ import annotations

import re

import numpy as np

from lavis.common.errors import ConfigError
from lavis.common.registry import registry
from lavis.processors.base_processor import BaseProcessor

PUNCTUATION = re.compile(r'[.!"()*#:;~]')


def truncate_words(text: str, max_words: int) -> str:
    """The first `max_words` words of a text, words being what stands between single spaces."""
    words = text.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else text


class BlipTextProcessor(BaseProcessor):
    """What both text processors share: the limit in words."""

    def __init__(self, *, max_words: int = 50) -> None:
        if not isinstance(max_words, int) or max_words < 1:
            raise ConfigError(f"max_words is {max_words!r}; accepted: an integer of 1 or more")
        self.max_words = max_words


@registry.register_processor("blip_caption")
class BlipCaptionProcessor(BlipTextProcessor):
    """Lower-case a caption, put spaces for . ! " ( ) * # : ; ~, single the spaces, keep `max_words` words.

    `prompt` is put in front of the result as it is.
    """

    def __init__(self, *, prompt: str = "", max_words: int = 50) -> None:
        super().__init__(max_words=max_words)
        self.prompt = prompt

    def __call__(self, item: str, *, rng: np.random.RandomState | None = None) -> str:
        caption = PUNCTUATION.sub(" ", item.lower())
        caption = re.sub(r"\s{2,}", " ", caption).rstrip("\n").strip(" ")
        return self.prompt + truncate_words(caption, self.max_words)


@registry.register_processor("blip_question")
class BlipQuestionProcessor(BlipTextProcessor):
    """Lower-case a question, drop . ! " ( ) * # : ; ~ and trailing spaces, keep `max_words` words."""

    def __call__(self, item: str, *, rng: np.random.RandomState | None = None) -> str:
        question = PUNCTUATION.sub("", item.lower()).rstrip(" ")
        return truncate_words(question, self.max_words)
