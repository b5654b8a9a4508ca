"""Language models: one interface over unmodified Hugging Face models."""

from lavis.models.language.base import Decoding, LanguageModel
from lavis.models.language.causal import CausalLM
from lavis.models.language.prompt import Behind, Prompt, Segment
from lavis.models.language.seq2seq import Seq2SeqLM

__all__ = ["Behind", "CausalLM", "Decoding", "LanguageModel", "Prompt", "Segment", "Seq2SeqLM"]
