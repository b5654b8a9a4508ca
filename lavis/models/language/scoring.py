"""Answers to questions: the loss that teaches them, and the choice of one from a list.

    causal    [prefix, <bos> question, answer <end>]     the loss counts the answer and its end
    T5        encoder [prefix, question </s>], decoder   answer </s>

Ranking follows LAVIS' BLIP (salesforce/LAVIS, lavis/models/blip_models/blip_vqa.py): the answers whose first token is
likeliest are read whole, and the one with the largest sum of log-probabilities wins.

Mixed into the two language models. Shapes: B rows, P prefix positions, H model width, A candidates, L tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from lavis.models.losses import IGNORE, TokenLoss, token_cross_entropy

logger = logging.getLogger(__name__)

ANCHOR = "answer:"  # a text that ends in a sign, behind which the tokens of an answer are looked at


def pad_right(rows: list[list[int]], pad: int, device: torch.device) -> Tensor:
    """Lists of ids as one tensor [B, longest]."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)


def likeliest_starts(log_probs: Tensor, first: Tensor, candidates: int) -> Tensor:
    """Places, in order, of the answers whose first tokens [N] are likeliest by log_probs [V]; equals keep their order."""
    order = log_probs[first].argsort(descending=True, stable=True)
    return order[:candidates].sort().values


def sequence_scores(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Sum of the log-probabilities of ids [A, L] where mask [A, L] is 1, by logits [A, L, V] -> [A]."""
    log_probs = F.log_softmax(logits.float(), dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return (log_probs * mask).sum(dim=-1)


class CausalAnswers:
    """Answers of decoder-only models."""

    _told_of_cut = False

    def check_questions(self: Any, questions: list[str]) -> None:
        """Warn once of questions that max_txt_len cuts: as published, it is their end that is lost, "Short answer:" first."""
        longest = max((len(self.tokenizer(question).input_ids) for question in questions), default=0)
        if longest > self.max_txt_len and not self._told_of_cut:
            self._told_of_cut = True
            cut = f"a question has {longest} tokens and loses its end, model.max_txt_len being {self.max_txt_len}"
            logger.warning("%s, as published; a larger max_txt_len keeps it", cut)

    def _answer_ids(self: Any, question: str, answer: str) -> list[int]:
        """Tokens of an answer and its end, as they stand behind a question: with a space, unless there is no question."""
        text = answer + (self.end_text or "")
        if question and not question[-1].isspace():
            anchor, whole = (self.tokenizer(words).input_ids for words in (ANCHOR, f"{ANCHOR} {text}"))
            if whole[: len(anchor)] == anchor and whole[-1] in self.end_ids:  # a tokenizer may close texts by itself
                return whole[len(anchor) :]
            text = f" {text}"
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _choice_ids(self: Any, question: str, answers: list[str]) -> list[list[int]]:
        """`_answer_ids` of a whole list, which for all questions that end alike is the same: the last list is kept."""
        ends = "" if not question else " " if question[-1].isspace() else "?"
        held = self._known_choices.get(ends)
        if held is None or held[0] != answers:
            held = self._known_choices[ends] = (list(answers), [self._answer_ids(question, answer) for answer in answers])
        return held[1]

    def answer_loss(self: Any, prefix: Tensor, *, questions: list[str], answers: list[str]) -> TokenLoss:
        """Cross entropy of the answers behind prefix [B, P, H] and questions, which are cut as in generation."""
        starts, seen = self.tokenize(questions, side="right")
        starts = [row[:length].tolist() for row, length in zip(starts, seen.sum(dim=1).tolist(), strict=True)]
        ends = [self._answer_ids(*pair) for pair in zip(questions, answers, strict=True)]
        both = [start + end for start, end in zip(starts, ends, strict=True)]
        labels = [[IGNORE] * len(start) + end for start, end in zip(starts, ends, strict=True)]
        ids = pad_right(both, self.pad_id, prefix.device)
        mask = pad_right([[1] * len(row) for row in both], 0, prefix.device)
        logits = self.read(prefix, ids, mask)
        return token_cross_entropy(logits, pad_right(labels, IGNORE, prefix.device))

    @torch.no_grad()
    def rank_answers(self: Any, prefix: Tensor, *, questions: list[str], answers: list[str], candidates: int) -> list[str]:
        """The likeliest of the answers for each row of prefix [B, P, H]. A question is read once, its candidates together."""
        best = []
        for row, question in zip(prefix, questions, strict=True):
            choices = self._choice_ids(question, answers)
            ids, _ = self.tokenize([question], side="right")
            embeds = torch.cat([row[None].to(self.dtype), self.embed(ids)], dim=1)
            cache: Any = DynamicCache()
            out = self.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
            start = out.logits[:, -1]
            first = torch.tensor([choice[0] for choice in choices], device=prefix.device)
            kept = likeliest_starts(start[0].float(), first, candidates).tolist()
            chosen = pad_right([choices[place] for place in kept], self.pad_id, prefix.device)
            mask = pad_right([[1] * len(choices[place]) for place in kept], 0, prefix.device)
            cache.batch_repeat_interleave(len(kept))
            seen = torch.cat([mask.new_ones(len(kept), embeds.shape[1]), mask[:, :-1]], dim=1)
            rest = self.model(input_ids=chosen[:, :-1], attention_mask=seen, past_key_values=cache, use_cache=True).logits
            logits = torch.cat([start.expand(len(kept), -1)[:, None], rest], dim=1)
            best.append(answers[kept[int(sequence_scores(logits, chosen, mask).argmax())]])
        return best


class Seq2SeqAnswers:
    """Answers of T5 models."""

    def check_questions(self: Any, questions: list[str]) -> None:
        """Nothing to say: the encoder reads questions whole."""

    def answer_loss(self: Any, prefix: Tensor, *, questions: list[str], answers: list[str]) -> TokenLoss:
        """Cross entropy of the answers behind prefix [B, P, H] and questions, which as in generation are never cut."""
        return self.loss(prefix, prompts=questions, targets=answers, truncate=False)

    @torch.no_grad()
    def rank_answers(self: Any, prefix: Tensor, *, questions: list[str], answers: list[str], candidates: int) -> list[str]:
        """The likeliest of the answers for each row of prefix [B, P, H]. The encoder reads a row once."""
        embeds, seen = self._encoder_input(prefix, questions, truncate=False)
        hidden = self.model.get_encoder()(inputs_embeds=embeds, attention_mask=seen).last_hidden_state
        ids, mask = self.tokenize(answers, truncate=False)
        start = self.model.config.decoder_start_token_id

        def decoder_logits(place: int, decoder_ids: Tensor) -> Tensor:
            rows = len(decoder_ids)
            return self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden[place : place + 1].expand(rows, -1, -1)),
                attention_mask=seen[place : place + 1].expand(rows, -1),
                decoder_input_ids=decoder_ids,
                use_cache=False,
            ).logits

        best = []
        for place in range(len(prefix)):
            first = decoder_logits(place, torch.full_like(ids[:1, :1], start))[0, -1].float()
            kept = likeliest_starts(first, ids[:, 0], candidates)
            longest = int(mask[kept].sum(dim=1).max())
            chosen = ids[kept, :longest]
            shifted = torch.cat([torch.full_like(chosen[:, :1], start), chosen[:, :-1]], dim=1)
            scores = sequence_scores(decoder_logits(place, shifted), chosen, mask[kept, :longest])
            best.append(answers[int(kept[scores.argmax()])])
        return best
