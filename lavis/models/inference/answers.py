"""Questions and answers: what a model says, and which of given answers it would say.

A question is the text that the language model reads behind the queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lavis.common.dist_utils import is_sharded
from lavis.models.batch import as_list
from lavis.models.inference.lemmatizer import lemmatize
from lavis.models.language import Behind, Decoding, LanguageModel, Prompt

if TYPE_CHECKING:
    from lavis.models.encoders.base import Samples
    from lavis.models.query_model import QueryModel

INFERENCE_METHODS = ("generate", "rank")


@torch.no_grad()
def predict_answers(
    model: QueryModel,
    samples: Samples,
    num_beams: int = 5,
    inference_method: str = "generate",
    max_len: int = 10,
    min_len: int = 1,
    num_ans_candidates: int = 128,
    answer_list: Sequence[str] | None = None,
    prompt: str = "",
    length_penalty: float | None = None,
    **kwargs: object,
) -> list[str]:
    """Answers to samples["text_input"], one per row; `prompt` is a format for the question ("Question: {} Short answer:").

    `inference_method` "generate" decodes at most max_len tokens; length_penalty defaults to the published 0 for causal
    models and -1 for T5. "rank" takes the likeliest of `answer_list`: the num_ans_candidates whose first token is likeliest
    are read whole, as LAVIS' BLIP does. Generated answers are lemmatised where the config, or samples["apply_lemmatizer"],
    says so.
    """
    if inference_method not in INFERENCE_METHODS:
        raise ValueError(f"inference_method {inference_method!r} is unknown; accepted: {', '.join(INFERENCE_METHODS)}")
    if model.llm is None:
        raise ValueError("answers need a language model; this arch has none")
    questions = formatted(prompt, as_list(samples["text_input"]))
    model.llm.check_questions(questions)
    batch = model.read(samples, roles=())
    if len(questions) != batch.size:
        raise ValueError(f"{len(questions)} questions for {batch.size} rows")
    with model.router.route(batch.spec.name):
        prompts = Behind(model.branch(batch.spec.name).to_llm(model.look(batch).hidden), questions)
        if inference_method == "rank":
            return _rank(model.llm, prompts, answer_list, num_ans_candidates)
        decoding = Decoding(
            num_beams=num_beams, max_new_tokens=max_len, min_length=min_len,
            length_penalty=model.llm.answer_length_penalty if length_penalty is None else length_penalty,
        )  # fmt: skip
        answers = model.llm.generate(prompts, decoding)
    return lemmatize(answers) if model.cfg.apply_lemmatizer or batch.lemmatize else answers


def _rank(llm: LanguageModel, prompts: Sequence[Prompt], answers: Sequence[str] | None, candidates: int) -> list[str]:
    if not answers:
        raise ValueError("inference_method 'rank' needs answer_list, the answers to choose from")
    if candidates < 1:
        raise ValueError(f"num_ans_candidates is {candidates}; accepted: 1 or more")
    if is_sharded(llm):
        raise ValueError("inference_method 'rank' cannot work with sharded parameters; accepted: generate")
    return llm.rank(prompts, list(answers), candidates)


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
