"""What a trained model is asked for: captions, features, and the captions of boxes on one picture (answers: `answering.py`).

Mixed into `Blip2Base`; everything here runs the same encode and query pass as training.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis.common.dist_utils import is_sharded
from lavis.datasets.geometry import pixel_boxes_to_normalised
from lavis.models.inference.answers import Answering, as_list
from lavis.models.language import Behind, Decoding
from lavis.models.language.beam import decode
from lavis.models.losses import query_text_similarity
from lavis.models.outputs import BlipOutputFeatures
from lavis.processors import load_processor

if TYPE_CHECKING:
    from PIL.Image import Image

    from lavis.models.modality import Modality

logger = logging.getLogger(__name__)

FEATURE_MODES = ("multimodal", "image", "text")


class Captioner(Answering):
    """Inference half of `Blip2Base`."""

    ignores_prompts = False  # True: samples["prompt"] has no effect (published RegionBLIP with T5)

    @torch.no_grad()
    def generate(
        self: Any,
        samples: Mapping[str, Any],
        use_nucleus_sampling: bool = False,
        num_beams: int = 5,
        max_length: int = 30,
        min_length: int = 1,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        num_captions: int = 1,
        temperature: float = 1.0,
    ) -> list[str]:
        """Captions of a batch: B * num_captions texts.

        samples: what the modality needs (image and, for regions, box; `image_index` when regions share images), optionally
        `prompt`, one string or one per row. Lengths have the published meaning: the start token counts, so 30 is 29 new tokens
        of a causal LLM (and 30 of T5).
        """
        decoding = Decoding(
            num_beams=num_beams, max_length=max_length, min_length=min_length, length_penalty=length_penalty,
            repetition_penalty=repetition_penalty, use_nucleus_sampling=use_nucleus_sampling, top_p=top_p,
            temperature=temperature, num_captions=num_captions,
        )  # fmt: skip
        row = self.row_of(samples)
        with self.router.route(row.name):
            if self.llm is None:
                return self._generate_by_qformer(samples, row, decoding)
            prefix, prompts = self.prefix_and_prompts(samples, row)
            return self.llm.generate(Behind(prefix, prompts), decoding)

    def prefix_and_prompts(self: Any, samples: Mapping[str, Any], row: Modality) -> tuple[Tensor, list[str]]:
        """What the language model is given of a batch: soft prompts [B, Q, H] and the texts behind them. Inside a route only."""
        prefix = self.branch(row.name).llm_proj(self.look(samples, row).hidden)
        return prefix, self._prompts(samples, row, len(prefix))

    def default_prompt(self: Any, row: Modality) -> str:
        """What the language model is told of a row when nobody says otherwise, in training as in evaluation (for T5)."""
        return row.prompt if self.ignores_prompts else (self.cfg.prompt or row.prompt)

    def _prompts(self: Any, samples: Mapping[str, Any], row: Modality, rows: int) -> list[str]:
        """The prompt of every row: from the samples, else from the config, else the row's own."""
        prompt = samples.get("prompt")
        if prompt is None or self.ignores_prompts:
            prompt = self.default_prompt(row)
        prompts = [prompt] * rows if isinstance(prompt, str) else list(prompt)
        if len(prompts) != rows:
            raise ValueError(f"{len(prompts)} prompts for {rows} rows")
        return prompts

    def _generate_by_qformer(self: Any, samples: Mapping[str, Any], row: Modality, decoding: Decoding) -> list[str]:
        """Stage 1 has no LLM: the Q-Former writes the caption itself, from `[DEC]` to `[SEP]`."""
        qformer, tokenizer = self.qformer_of(row), self.tokenizer
        looked = self.look(samples, row)
        copies = decoding.num_captions if decoding.use_nucleus_sampling else decoding.num_beams
        past = [type(kv)(*(t.repeat_interleave(copies, dim=0) for t in kv)) for kv in looked.cache]

        def step(ids: Tensor, origin: Tensor | None) -> Tensor:
            nonlocal past
            if origin is not None and len(origin) < len(past[0].key):
                past = [type(kv)(*(t[origin] for t in kv)) for kv in past]
            return qformer.lm_logits(qformer.lm_pass(ids, torch.ones_like(ids), past)[:, -1])

        decoded = decode(
            step, rows=len(looked.hidden), start=tokenizer.bos_token_id, eos=[tokenizer.sep_token_id], pad=tokenizer.pad_token_id,
            max_length=decoding.max_length, decoding=decoding, device=self.device,
            sharded=is_sharded(qformer),
        )  # fmt: skip
        return tokenizer.batch_decode(decoded.sequences, skip_special_tokens=True)

    @torch.no_grad()
    def extract_features(self: Any, samples: Mapping[str, Any], mode: str = "multimodal") -> BlipOutputFeatures:
        """Features of a batch; see `BlipOutputFeatures` for shapes. mode: "multimodal", "image" (the visual side), "text"."""
        if mode not in FEATURE_MODES:
            raise ValueError(f"mode {mode!r} is unknown; accepted: {', '.join(FEATURE_MODES)}")
        row = self.row_of(samples)
        qformer = self.qformer_of(row)
        out = BlipOutputFeatures()
        with self.router.route(row.name):
            if mode != "image":
                if samples.get("text_input") is None:
                    raise ValueError(f"mode {mode!r} needs samples['text_input']")
                ids, mask = self.tokenize(as_list(samples["text_input"]))
            if mode == "text":
                out.text_embeds = qformer.text_pass(ids, mask)
                out.text_embeds_proj = F.normalize(self.text_proj(out.text_embeds), dim=-1)
                return out
            hidden, tokens, queries, _ = self.look(samples, row)
            if mode == "image":
                out.image_embeds = hidden
                out.image_embeds_proj = F.normalize(self.branch(row.name).itc_proj(hidden), dim=-1)
                return out
            out.multimodal_embeds = qformer.joint_pass(queries, ids, mask, tokens)[:, : queries.shape[1]]
            return out

    def describe(
        self: Any,
        image: Image,
        boxes: Sequence[Sequence[float]] | None = None,
        *,
        modality: str | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Captions of pixel boxes [[x1, y1, x2, y2], ...] on a PIL image, with one encoder pass; of the whole image without.

        `kwargs` are those of `generate`. ValueError for a box with no area inside the image. The model is left in its mode.
        """
        if boxes is not None and len(boxes) == 0:
            return []
        samples = {"image": self.picture(image), **self.picture_samples(image.size, boxes, modality=modality)}
        was_training = self.training
        self.eval()
        try:
            return self.generate(samples, **kwargs)
        finally:
            self.train(was_training)

    def picture(self: Any, image: Image) -> Tensor:
        """A PIL image as the encoder of images reads it [1, 3, S, S]."""
        processor = load_processor("blip_image_eval", {"image_size": self.cfg.vit.img_size})
        return processor(image.convert("RGB")).unsqueeze(0)

    def picture_samples(
        self: Any, size: tuple[int, int], boxes: Sequence[Sequence[float]] | None = None, *, modality: str | None = None
    ) -> dict[str, Any]:
        """The samples of one picture of `size`, width and height in pixels, but for the picture itself: a row per pixel box, or
        one for the whole picture. ValueError for a box with no area inside it."""
        if boxes is None:
            return {"modality": modality or self.modality_with_region(None)}
        normalised = pixel_boxes_to_normalised(boxes, *size)
        return {
            "modality": modality or self.modality_with_region("box"),
            "box": torch.as_tensor(normalised, dtype=torch.float32),
            "image_index": torch.zeros(len(boxes), dtype=torch.long),
        }

    def modality_with_region(self: Any, kind: str | None) -> str:
        """The first modality on images whose region kind is `kind`; ValueError when the model has none."""
        for row in self.rows.values():
            if row.encoder == "image" and row.region == kind:
                return row.name
        raise ValueError(f"this model has no image modality with region kind {kind!r}; it knows {', '.join(self.rows)}")

    @torch.no_grad()
    def class_features(
        self: Any, samples: Mapping[str, Any], classnames: Sequence[str], *, templates: Sequence[str] | None = None
    ) -> Tensor:
        """Features [C, E] of classes, for samples of the modality that `samples` has: the normalised mean of a class's sentences,
        one per template; by default the row's published template alone."""
        if not classnames:
            raise ValueError("classnames is empty")
        row = self.row_of(samples)
        templates = list(templates or [row.class_template])
        with self.router.route(row.name):
            sentences = [template.format(name) for name in classnames for template in templates]
            features = self.text_features(row, *self.tokenize(sentences)).view(len(classnames), len(templates), -1)
            return F.normalize(features.mean(dim=1), dim=-1)

    @torch.no_grad()
    def classify(
        self: Any,
        samples: Mapping[str, Any],
        classnames: Sequence[str],
        *,
        templates: Sequence[str] | None = None,
        classes: Tensor | None = None,
    ) -> Tensor:
        """Zero-shot logits [B, C]: the cosine of a row's best query with each class, no temperature. `classes` [C, E]: what
        `class_features` gave for these names, so that it is not computed again."""
        if classes is None:
            classes = self.class_features(samples, classnames, templates=templates)
        row = self.row_of(samples)
        with self.router.route(row.name):
            hidden = self.look(samples, row).hidden
            visual = F.normalize(self.branch(row.name).itc_proj(hidden), dim=-1)
        return query_text_similarity(visual, classes)
