"""How a family of language models writes: which tokens open a text, close it, fill up rows and end an answer.

    opt            the tokenizer's `</s>` opens the first text, behind the vectors, and is learned; a newline closes a text
    of_tokenizer   what the tokenizer itself puts in front (Llama's <bos>; nothing for Qwen); its end-of-sequence token closes
    t5             nothing opens; `</s>` closes the prompt (for the encoder) and the target, also where that is cut

A model whose <bos> stands before everything, vectors too, sets `bos` and not `opens_text`; one whose texts end in a given text
("###") sets `end_text` and `closes_by_text`, and `stops` where an answer may end in several tokens. Special tokens that a
tokenizer lacks, or that it does not put there, are not added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lavis.common.errors import ConfigError
from lavis.models.language.prompt import Prompt

NEWLINE = "\n"
ANCHOR = "answer:"  # a text that ends in a sign, behind which the tokens of an answer are looked at

Piece = list[int] | Tensor  # token ids, or input embeddings [n, H]


@dataclass(frozen=True)
class Dialect:
    """How one tokenizer's model is written to. Ids are of that tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int  # a target is cut to so many, and a text of a prompt where `cuts_prompts`
    ends: tuple[int, ...]  # tokens that end an answer; the first closes a target
    pad: int
    start: int  # counts as the first token of an answer
    end_text: str  # `ends[0]`, or what closes a target, as text
    bos: tuple[int, ...] = ()  # in front of the whole input
    opens_text: bool = True  # the tokenizer's own opening stands in front of the first text
    adds_end: bool = False  # the tokenizer itself closes what it opens
    closes_by_text: bool = False  # `end_text` is part of the text that is tokenised
    closes_prompt: bool = False  # `ends[0]` stands behind a prompt too, and a target that is cut keeps it
    cuts_prompts: bool = True
    start_is_text: bool = False  # a repetition penalty counts the start token
    stops: tuple[tuple[int, ...], ...] = ()  # sequences of tokens that end an answer as well
    _choices: dict[str, tuple[list[str], list[list[int]]]] = field(default_factory=dict, compare=False, repr=False)

    def encode(self, text: str) -> list[int]:
        """Ids of the first text of an input, opened but not closed (some tokenizers add the end themselves)."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text; in one call, and equal texts (prompts) once."""
        different = list(dict.fromkeys(texts))
        if not different:
            return []
        ids = self.tokenizer(different, add_special_tokens=self.opens_text).input_ids
        if self.adds_end:
            ids = [row[:-1] for row in ids]
        known = dict(zip(different, ids, strict=True))
        return [known[text] for text in texts]

    def inside(self, text: str) -> list[int]:
        """Ids of a text that others stand in front of."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def pieces(self, prompts: Sequence[Prompt]) -> list[list[Piece]]:
        """Prompts as ids and vectors, those of a row in their order."""
        limit = self.max_tokens if self.cuts_prompts else None
        firsts = [next((s for s in prompt.segments if isinstance(s, str)), None) for prompt in prompts]
        opened = iter(self.encode_all([text for text in firsts if text is not None]))
        rows: list[list[Piece]] = []
        for prompt in prompts:
            row: list[Piece] = [list(self.bos)] if self.bos else []
            is_open = False
            for segment in prompt.segments:
                if isinstance(segment, str):
                    row.append((self.inside(segment) if is_open else next(opened))[:limit])
                    is_open = True
                else:
                    row.append(segment)
            if self.closes_prompt:
                row.append([self.ends[0]])
            rows.append(joined(row))
        return rows

    def targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that stand behind vectors alone: opened, closed, cut to `max_tokens`."""
        if self.closes_by_text:  # so a text that is cut loses its end, as published
            return [ids[: self.max_tokens] for ids in self.encode_all([text + self.end_text for text in texts])]
        if self.closes_prompt:
            return [[*ids[: self.max_tokens - 1], self.ends[0]] for ids in self.encode_all(texts)]
        return [[*ids, self.ends[0]][: self.max_tokens] for ids in self.encode_all(texts)]

    def answer(self, question: str, answer: str) -> list[int]:
        """Ids of an answer and its end, as they stand behind a question: with a space, unless there is no question."""
        text = answer + self.end_text
        if question and not question[-1].isspace():
            anchor, whole = (self.tokenizer(words).input_ids for words in (ANCHOR, f"{ANCHOR} {text}"))
            if whole[: len(anchor)] == anchor and whole[-1] in self.ends:  # a tokenizer may close texts by itself
                return list(whole[len(anchor) :])
            text = f" {text}"
        return self.inside(text)

    def choices(self, question: str, answers: Sequence[str]) -> list[list[int]]:
        """`answer` of a whole list, which for all questions that end alike is the same: the last list is kept."""
        kind = "" if not question else " " if question[-1].isspace() else "?"
        held = self._choices.get(kind)
        if held is None or held[0] != list(answers):
            held = self._choices[kind] = (list(answers), [self.answer(question, answer) for answer in answers])
        return held[1]

    def text_before_end(self, ids: Sequence[int]) -> list[int]:
        """The tokens of an answer in front of its first end or stop."""
        for place, token in enumerate(ids):
            if token in self.ends or any(tuple(ids[place : place + len(stop)]) == stop for stop in self.stops):
                return list(ids[:place])
        return list(ids)


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces with neighbouring ids as one."""
    found: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, list) and found and isinstance(found[-1], list):
            found[-1] = [*found[-1], *piece]
        else:
            found.append(piece)
    return found


DialectOf = Callable[[PreTrainedTokenizerBase, Any, int], Dialect]  # (tokenizer, model, max_txt_len) -> Dialect


def opt(tokenizer: PreTrainedTokenizerBase, model: Any, max_tokens: int) -> Dialect:
    """BLIP-2's OPT."""
    end = tokenizer(NEWLINE, add_special_tokens=False).input_ids[-1]
    return Dialect(
        tokenizer, max_tokens, ends=(end,), pad=_pad(tokenizer, model, end), start=_start(tokenizer, end), end_text=NEWLINE,
        closes_by_text=True, start_is_text=True,
    )  # fmt: skip


def of_tokenizer(tokenizer: PreTrainedTokenizerBase, model: Any, max_tokens: int) -> Dialect:
    """Llama, Qwen, SmolLM and others; ConfigError where the tokenizer is of another model, or no token ends a text.

    Decoding also stops at the end tokens that generation_config.json names.
    """
    source, rows = tokenizer.name_or_path, model.get_input_embeddings().num_embeddings
    if tokenizer.vocab_size > rows:
        raise ConfigError(
            f"{source}: its tokenizer knows {tokenizer.vocab_size} tokens, its model {rows}; they are of two models"
        )
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(named if isinstance(named, list | tuple) else [named])]
    ends = tuple(dict.fromkeys(int(end) for end in found if isinstance(end, int) and end < rows))
    if not ends:
        raise ConfigError(f"{source}: neither its tokenizer nor generation_config.json names an end-of-sequence token")
    return Dialect(
        tokenizer, max_tokens, ends=ends, pad=_pad(tokenizer, model, ends[0]), start=_start(tokenizer, ends[0]),
        end_text=str(tokenizer.convert_ids_to_tokens(ends[0])), adds_end=tokenizer("a").input_ids[-1:] == [ends[0]],
    )  # fmt: skip


def t5(tokenizer: PreTrainedTokenizerBase, model: Any, max_tokens: int) -> Dialect:
    """T5 and Flan-T5: the encoder reads prompts whole."""
    return Dialect(
        tokenizer, max_tokens, ends=(model.config.eos_token_id,), pad=_pad(tokenizer, model, model.config.eos_token_id),
        start=model.config.decoder_start_token_id, end_text="", opens_text=False, closes_prompt=True, cuts_prompts=False,
        start_is_text=True,
    )  # fmt: skip


def of_causal(model_type: str) -> DialectOf:
    """The dialect of a causal family, by the name in its config."""
    return {"opt": opt}.get(model_type, of_tokenizer)


def _start(tokenizer: PreTrainedTokenizerBase, end: int) -> int:
    bos = tokenizer.bos_token_id
    return bos if isinstance(bos, int) else end


def _pad(tokenizer: PreTrainedTokenizerBase, model: Any, end: int) -> int:
    """The id that fills up rows; the end where the tokenizer has none (or one that the model has no embedding for)."""
    pad = tokenizer.pad_token_id
    return pad if isinstance(pad, int) and pad < model.get_input_embeddings().num_embeddings else end
