"""Questions and answers: what a model says, which of given answers it would say, and the loss that teaches it.

Mixed into `Captioner`. A question is the text that the language model reads behind the queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lavis.common.dist_utils import is_sharded
from lavis.models.inference.lemmatizer import lemmatize
from lavis.models.language import Behind, Decoding
from lavis.models.losses import TokenLoss

if TYPE_CHECKING:
    from lavis.models.modality import Modality

INFERENCE_METHODS = ("generate", "rank")


def as_list(texts: str | Sequence[str]) -> list[str]:
    """One text, or several, as a list."""
    return [texts] if isinstance(texts, str) else list(texts)


class Answering:
    """Question half of `Captioner`."""

    @torch.no_grad()
    def predict_answers(
        self: Any,
        samples: Mapping[str, Any],
        num_beams: int = 5,
        inference_method: str = "generate",
        max_len: int = 10,
        min_len: int = 1,
        num_ans_candidates: int = 128,
        answer_list: Sequence[str] | None = None,
        prompt: str = "",
        length_penalty: float | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Answers to samples["text_input"], one per row; `prompt` is a format for the question ("Question: {} Short answer:").

        `inference_method` "generate" decodes at most max_len tokens; length_penalty defaults to the published 0 for causal
        models and -1 for T5. "rank" takes the likeliest of `answer_list`: the num_ans_candidates whose first token is likeliest
        are read whole, as LAVIS' BLIP does. Generated answers are lemmatised where the config, or samples["apply_lemmatizer"],
        says so.
        """
        if inference_method not in INFERENCE_METHODS:
            raise ValueError(f"inference_method {inference_method!r} is unknown; accepted: {', '.join(INFERENCE_METHODS)}")
        if self.llm is None:
            raise ValueError("answers need a language model; this arch has none")
        questions = formatted(prompt, as_list(samples["text_input"]))
        self.llm.check_questions(questions)
        row = self.row_of(samples)
        with self.router.route(row.name):
            hidden = self.look(samples, row).hidden
            if len(questions) != len(hidden):
                raise ValueError(f"{len(questions)} questions for {len(hidden)} rows")
            prefix = self.branch(row.name).llm_proj(hidden)
            if inference_method == "rank":
                return self._rank(prefix, questions, answer_list, num_ans_candidates)
            decoding = Decoding(
                num_beams=num_beams, max_new_tokens=max_len, min_length=min_len,
                length_penalty=self.llm.answer_length_penalty if length_penalty is None else length_penalty,
            )  # fmt: skip
            answers: list[str] = self.llm.generate(Behind(prefix, questions), decoding)
        wanted = self.cfg.apply_lemmatizer or samples.get("apply_lemmatizer")
        return lemmatize(answers) if wanted else answers

    def _rank(self: Any, prefix: Tensor, questions: list[str], answers: Sequence[str] | None, candidates: int) -> list[str]:
        if not answers:
            raise ValueError("inference_method 'rank' needs answer_list, the answers to choose from")
        if candidates < 1:
            raise ValueError(f"num_ans_candidates is {candidates}; accepted: 1 or more")
        if is_sharded(self.llm):
            raise ValueError("inference_method 'rank' cannot work with sharded parameters; accepted: generate")
        return self.llm.rank(Behind(prefix, questions), list(answers), candidates)

    def answer_loss(self: Any, samples: Mapping[str, Any], row: Modality, hidden: Tensor) -> TokenLoss:
        """Cross entropy of samples["text_output"] behind the queries' outputs [B, Q, D] and samples["text_input"]."""
        questions, answers = as_list(samples["text_input"]), as_list(samples["text_output"])
        if self.llm is None or not row.weight("llm"):
            raise ValueError(f"samples['text_output'] needs a language model and modalities.{row.name}.losses.llm above 0")
        if not len(questions) == len(answers) == len(hidden):
            raise ValueError(f"{len(questions)} questions and {len(answers)} answers for {len(hidden)} rows")
        return self.llm.loss(Behind(self.branch(row.name).llm_proj(hidden), questions), answers)


def formatted(prompt: str, questions: Sequence[str]) -> list[str]:
    """Each question in the format `prompt`; as it is where that is empty. ValueError for a format without a place for it."""
    if not prompt:
        return list(questions)
    try:
        kept = "?" in prompt.replace("?", "").format("?")
    except (IndexError, KeyError, ValueError):
        kept = False
    if not kept:
        raise ValueError(f"prompt {prompt!r} has no place for the question; accepted: a text with {{}}, or an empty one")
    return [prompt.format(question) for question in questions]
