"""Answers: the loss that teaches them, ranking, lemmas, and the decoding settings of predict_answers and generate."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common.config import ConfigError
from lavis.models import load_model_from_config
from lavis.models.inference import lemmatizer
from lavis.models.inference.answers import formatted
from lavis.models.language import Behind, CausalLM, Seq2SeqLM
from lavis.models.language.scoring import sequence_scores
from lavis.models.losses import IGNORE
from lavis.runners.checks import check_model
from tests import tiny
from tests.models.test_language import encoder_input, prefix_of

KINDS = ["opt", "llama", "t5"]
ARCHS = ["blip2_opt", "blip2_t5"]
QUESTIONS = ["question: what color is the square? short answer:", "a photo of", ""]
ANSWERS = ["red", "a blue circle", "green triangles on the table", "lamp", "a white cube"]


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("lms")
    settings = {"max_txt_len": 48, "dtype": torch.float32}
    return {
        "opt": CausalLM(tiny.opt_folder(folder / "opt"), **settings).eval(),
        "llama": CausalLM(tiny.llama_folder(folder / "llama"), **settings).eval(),
        "t5": Seq2SeqLM(tiny.t5_folder(folder / "t5"), **settings).eval(),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.manual_seed(0)
    built = {arch: load_model_from_config(tiny.model_config(tmp_path_factory.mktemp(arch), arch)).eval() for arch in ARCHS}
    for model in built.values():
        torch.nn.init.normal_(model.branch("image").llm_proj.weight, std=1.0)  # so that the picture matters
    return built


def separate_loss(lm: Any, prefix: torch.Tensor, question: str, answer: str) -> tuple[float, int]:
    """Sum of the cross entropies of an answer's tokens, and their number, token by token without any batching."""
    if isinstance(lm, Seq2SeqLM):
        embeds, seen = encoder_input(lm, prefix, [question])
        ids = lm.tokenizer([answer], return_tensors="pt").input_ids
        out = lm.model(inputs_embeds=embeds, attention_mask=seen, labels=ids)
        return float(out.loss) * ids.shape[1], ids.shape[1]
    before = lm.tokenizer(question).input_ids
    after = lm.tokenizer(f" {answer}" if question else answer, add_special_tokens=False).input_ids + list(lm.dialect.ends)
    ids = torch.tensor([before + after])
    embeds = torch.cat([prefix, lm.embed(ids)], dim=1)
    labels = torch.tensor([[IGNORE] * (prefix.shape[1] + len(before)) + after])
    return float(lm.model(inputs_embeds=embeds, labels=labels).loss) * len(after), len(after)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_counts_the_answer_alone(lms: dict[str, Any], kind: str) -> None:
    lm = lms[kind]
    prefix = prefix_of(lm)
    with torch.no_grad():
        loss = lm.loss(Behind(prefix, QUESTIONS), ANSWERS[:3])
        each = [separate_loss(lm, prefix[i : i + 1], QUESTIONS[i], ANSWERS[i]) for i in range(3)]
    assert int(loss.count) == sum(count for _, count in each)
    assert float(loss.total) == pytest.approx(sum(total for total, _ in each), rel=1e-4)
    assert loss.rows.tolist() == pytest.approx([total for total, _ in each], rel=1e-4)
    assert loss.row_counts.tolist() == [count for _, count in each]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("candidates", [5, 128])
def test_ranking_finds_the_likeliest_answer(lms: dict[str, Any], kind: str, candidates: int) -> None:
    """Every candidate read by itself: the chosen one has the smallest loss."""
    lm = lms[kind]
    prefix = prefix_of(lm)
    chosen = lm.rank(Behind(prefix, QUESTIONS), ANSWERS, candidates)
    with torch.no_grad():
        for i, question in enumerate(QUESTIONS):
            losses = {answer: separate_loss(lm, prefix[i : i + 1], question, answer)[0] for answer in ANSWERS}
            assert chosen[i] == min(losses, key=lambda answer: losses[answer]), question


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_a_list_of_answers_is_tokenised_once(lms: dict[str, Any], kind: str) -> None:
    lm = lms[kind]
    for question in ("what is it? short answer:", "and this?", "answer: ", "", "who? "):
        for answers in (ANSWERS, ANSWERS[:2], ANSWERS[::-1]):
            assert lm.dialect.choices(question, answers) == [lm.dialect.answer(question, answer) for answer in answers]
            kept = lm.dialect.choices(question, answers)
            assert lm.dialect.choices(question, list(answers)) is kept


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_texts_are_tokenised_as_one_by_one(lms: dict[str, Any], kind: str) -> None:
    lm = lms[kind]
    texts = [*QUESTIONS, QUESTIONS[0], "", ANSWERS[0]]
    assert lm.dialect.encode_all(texts) == [lm.dialect.encode(text) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_one_candidate_is_the_one_with_the_likeliest_first_token(lms: dict[str, Any], kind: str) -> None:
    lm = lms[kind]
    prefix = prefix_of(lm, rows=1)
    chosen = lm.rank(Behind(prefix, QUESTIONS[:1]), ANSWERS, 1)[0]
    lone = [lm.rank(Behind(prefix, QUESTIONS[:1]), [answer], 1)[0] for answer in ANSWERS]
    assert chosen in ANSWERS and lone == ANSWERS
    with torch.no_grad():
        if kind == "t5":
            embeds, seen = encoder_input(lm, prefix, QUESTIONS[:1])
            first = lm.tokenizer(ANSWERS).input_ids
            start = torch.tensor([[lm.model.config.decoder_start_token_id]])
            logits = lm.model(inputs_embeds=embeds, attention_mask=seen, decoder_input_ids=start).logits[0, -1]
        else:
            first = [lm.tokenizer(f" {answer}", add_special_tokens=False).input_ids for answer in ANSWERS]
            ids = torch.tensor([lm.tokenizer(QUESTIONS[0]).input_ids])
            logits = lm.model(inputs_embeds=torch.cat([prefix, lm.embed(ids)], dim=1)).logits[0, -1]
    likeliest = [float(logits[ids[0]]) for ids in first]
    assert likeliest[ANSWERS.index(chosen)] == max(likeliest)


def test_scores_leave_padding_out() -> None:
    logits = torch.tensor([[[0.0, 1.0], [3.0, 0.0]]])
    ids, mask = torch.tensor([[1, 0]]), torch.tensor([[1, 0]])
    torch.testing.assert_close(sequence_scores(logits, ids, mask), torch.log_softmax(logits[0, 0], -1)[1:2])


@pytest.mark.parametrize("arch", ARCHS)
def test_models_answer_and_rank(models: dict[str, Any], arch: str) -> None:
    model = models[arch]
    batch = {**tiny.image_batch(), "text_input": ["what?", "which?", "who?", "how many?"]}
    asked = model.predict_answers(batch, prompt="question: {} short answer:", num_beams=2, max_len=4)
    assert len(asked) == 4 and all(isinstance(answer, str) for answer in asked)
    spelled = {**batch, "text_input": [f"question: {text} short answer:" for text in batch["text_input"]]}
    assert model.predict_answers(spelled, num_beams=2, max_len=4) == asked
    ranked = model.predict_answers(batch, inference_method="rank", answer_list=ANSWERS, num_ans_candidates=3)
    assert len(ranked) == 4 and set(ranked) <= set(ANSWERS)
    shared = {**batch, "image": batch["image"][:2], "image_index": torch.tensor([0, 1, 0, 1])}
    copied = {**batch, "image": batch["image"][[0, 1, 0, 1]]}
    assert model.predict_answers(shared, num_beams=2) == model.predict_answers(copied, num_beams=2)
    for options, message in (
        ({"inference_method": "guess"}, "'guess' is unknown; accepted: generate, rank"),
        ({"inference_method": "rank"}, "needs answer_list"),
        ({"inference_method": "rank", "answer_list": ANSWERS, "num_ans_candidates": 0}, "num_ans_candidates is 0"),
        ({"prompt": "Question:"}, "has no place for the question"),
    ):
        with pytest.raises(ValueError, match=message):
            model.predict_answers(batch, **options)


def test_cut_questions_are_told_once(lms: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    long = "question: what color is the square? short answer: " * 9
    lms["opt"].check_questions(QUESTIONS)
    lms["t5"].check_questions([long])
    assert not caplog.records
    for _ in range(2):
        lms["opt"].check_questions([long])
    assert [record.message.split(",")[1] for record in caplog.records] == [" model.max_txt_len being 48"]


def test_format_of_a_question() -> None:
    assert formatted("", ["a?"]) == ["a?"]
    assert formatted("Is it {}? Say.", ["{red}"]) == ["Is it {red}? Say."]
    for prompt in ("Q:", "{} or {}", "{name}", "{"):
        with pytest.raises(ValueError, match="has no place for the question"):
            formatted(prompt, ["a?"])


@pytest.mark.parametrize("arch", ARCHS)
def test_answers_are_learned(tmp_path: Path, arch: str) -> None:
    """A few steps on two questions about one picture: each gets its own answer."""
    torch.manual_seed(0)
    model = load_model_from_config(tiny.model_config(tmp_path, arch)).eval()
    for parameter in model.llm.parameters():
        parameter.requires_grad_(True)  # a random frozen language model has little to say
    picture = tiny.image_batch(rows=1)
    batch = {
        "modality": "image",
        "image": picture["image"],
        "image_index": torch.tensor([0, 0]),
        "text_input": ["question: what color is the square? short answer:", "question: what is on the table? short answer:"],
        "text_output": ["red", "lamp"],
    }
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    first = None
    for _ in range(40):
        losses = model(batch)
        first = float(losses.loss.detach()) if first is None else first
        assert {name for name, value in losses.items() if float(value.detach())} == {"loss", "loss_llm"}
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
    assert float(losses.loss.detach()) < 0.2 * first
    assert [answer.strip() for answer in model.predict_answers(batch, num_beams=2)] == ["red", "lamp"]
    assert model.predict_answers(batch, inference_method="rank", answer_list=ANSWERS) == ["red", "lamp"]


def test_answers_without_a_language_model(tmp_path: Path) -> None:
    model = load_model_from_config(tiny.model_config(tmp_path, "blip2"))
    with pytest.raises(ValueError, match="needs a language model"):
        model({**tiny.image_batch(), "text_output": ["red"] * 4})
    with pytest.raises(ValueError, match="answers need a language model"):
        model.predict_answers(tiny.image_batch())


# Lemmas


class Token:
    def __init__(self, text: str, pos: str, lemma: str) -> None:
        self.text, self.pos_, self.lemma_ = text, pos, lemma


KNOWN = {
    "dogs": ("NOUN", "dog"),
    "ran": ("VERB", "run"),
    "better": ("ADJ", "good"),
    "is": ("AUX", "be"),
    "Londons": ("PROPN", "London"),
}


@pytest.fixture
def spacy(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module that stands in for spaCy and knows five words."""
    module = types.ModuleType("spacy")

    def load(name: str) -> Any:
        assert name == "en_core_web_sm"
        return lambda text: [Token(word, *KNOWN.get(word, ("DET", "changed"))) for word in text.split()]

    module.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", module)
    lemmatizer.load_lemmatizer.cache_clear()
    yield module
    lemmatizer.load_lemmatizer.cache_clear()


def test_nouns_and_verbs_become_lemmas(spacy: types.ModuleType) -> None:
    answers = ["the dogs ran", "better is  Londons", ""]
    assert lemmatizer.lemmatize(answers) == ["the dog run", "better is Londons", ""]


def test_answers_are_lemmatised_where_asked(
    spacy: types.ModuleType, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["blip2_opt"]
    monkeypatch.setattr(model.llm, "generate", lambda *args, **kwargs: ["dogs ran"])
    batch = {**tiny.image_batch(rows=1), "text_input": ["what?"]}
    assert model.predict_answers(batch) == ["dogs ran"]
    assert model.predict_answers({**batch, "apply_lemmatizer": True}) == ["dog run"]
    monkeypatch.setattr(model.cfg, "apply_lemmatizer", True)
    assert model.predict_answers(batch) == ["dog run"]
    assert model.generate(batch) == ["dogs ran"], "captions stay as they are"


def test_missing_spacy_or_model_is_told_before_anything_is_built(
    tmp_path: Path, spacy: types.ModuleType, monkeypatch: Any
) -> None:
    config = tiny.model_config(tmp_path, "blip2_opt", apply_lemmatizer=True)
    merged = load_model_from_config(config).cfg

    def no_model(name: str) -> Any:
        raise OSError("[E050] Can't find model 'en_core_web_sm'.")

    spacy.load = no_model  # type: ignore[attr-defined]
    lemmatizer.load_lemmatizer.cache_clear()
    with pytest.raises(ConfigError, match=r"spaCy has no model en_core_web_sm .*E050.*python -m spacy download en_core_web_sm"):
        check_model(merged)
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ConfigError, match="apply_lemmatizer is true, but spaCy is not there .*pip install spacy"):
        load_model_from_config(config)
