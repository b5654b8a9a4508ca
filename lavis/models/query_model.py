"""The model that all systems share: encoder -> region prompt -> Q-Former -> losses, and prompts for a language model.

One path serves every modality: an entry (`Modality`) says what differs, its `Branch` owns what differs. A system (`systems/`) is
a subclass that states which entries there are (`read_specs`), what it adapts (`adapt`), what it freezes (`freeze_parts`) and
which files it loads (`load_checkpoint_from_config`).

Shapes: B rows, I encoded inputs (several rows may share one), T encoder tokens, C encoder width, Q queries, D Q-Former width,
E similarity width, L text tokens, H LLM width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lavis.common.config import ConfigError
from lavis.common.precision import hold_frozen_linear
from lavis.common.registry import registry
from lavis.models import objectives, parts
from lavis.models.base_model import BaseModel, Losses
from lavis.models.batch import Batch
from lavis.models.encoders.base import Encoder, Samples
from lavis.models.inference import answers, features, retrieval
from lavis.models.inference import describe as describing
from lavis.models.inference import generate as generating
from lavis.models.language import Behind, LanguageModel
from lavis.models.losses import TokenLoss
from lavis.models.modality import LOSS_NAMES, TEXT_ROLES, Branch, Modality
from lavis.models.outputs import Looked
from lavis.models.qformer.lora import ModalityRouter
from lavis.models.qformer.qformer import QFormer
from lavis.models.qformer.tokens import QFormerInput
from lavis.models.weights import loading
from lavis.models.weights.layouts_all import KeyMap


class QueryModel(BaseModel):
    """Encoders, Q-Formers, one branch per modality, and a language model when some entry has an `llm` loss.

    encoders: by the name that entries use. qformers: likewise. Both are views of children under their published names.
    """

    llm_kind: ClassVar[str | None] = None  # "opt", "t5" or None: which config keys name the LLM, and its published prefix
    ignores_prompts: ClassVar[bool] = False  # True: samples["prompt"] has no effect
    extra_keys: ClassVar[tuple[str, ...]] = ()  # further keys of samples that a system reads (`Batch.extra`)

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__()
        self.cfg = copy.deepcopy(cfg)
        parts.expand_paths(self.cfg)
        parts.check_files(self.cfg)
        self.bases: dict[str, str] = {}  # part -> file that its frozen weights came from
        self.specs = self.read_specs(self.cfg)
        self.router = ModalityRouter(self.specs)
        self.tokenizer = parts.bert_tokenizer(self.cfg.bert_path)
        self.encoders: dict[str, Encoder] = self._build_encoders()
        self._build_qformers()
        self.llm: LanguageModel | None = parts.build_llm(self.cfg, self.llm_kind) if self.llm_kind else None
        self._build_branches()
        self._load_parts()
        self.freeze_parts()
        self.adapt()

    @classmethod
    def from_config(cls, cfg: DictConfig) -> QueryModel:
        model = cls(cfg)
        model.load_checkpoint_from_config(model.cfg)
        hold_frozen_linear(*model.autocast_parts())
        return model

    # -- hooks of a system ----------------------------------------------------------------------------------------------------
    @classmethod
    def read_specs(cls, cfg: DictConfig) -> dict[str, Modality]:
        """The entries of `modalities`; one that is null is skipped."""
        rows = cast(dict[str, Any], OmegaConf.to_container(cfg.modalities, resolve=True))
        return {name: Modality.from_config(name, row) for name, row in rows.items() if row is not None}

    def freeze_parts(self) -> None:
        """As published: the encoders when asked, the language model always."""
        for encoder in self.encoders.values():
            if encoder.frozen:
                self.freeze(encoder.get_submodule(encoder.tower))
        if self.llm is not None:
            self.llm.requires_grad_(False)
            if not self.cfg.llm_dropout:
                self.lock_eval(self.llm)
            if self.cfg.llm_grad_checkpoint:
                self.llm.enable_checkpointing(self.router.checkpoint_contexts)

    def adapt(self) -> None:
        """Put adapters on, and freeze what is the system's to freeze."""

    def load_checkpoint_from_config(self, cfg: DictConfig) -> None:
        """`finetuned` when load_finetuned, else `pretrained` when load_pretrained."""
        for kind in ("finetuned", "pretrained"):
            if cfg[f"load_{kind}"]:
                self.load_checkpoint(cfg[kind])
                return

    # -- building -------------------------------------------------------------------------------------------------------------
    def _build_encoders(self) -> dict[str, Encoder]:
        """The encoders that entries read, in the order of their names; their children are the model's."""
        read = sorted({spec.encoder for spec in self.specs.values()})
        encoders: dict[str, Encoder] = {}
        for name in read:
            encoders[name] = registry.get_class("encoder", name).from_config(self.cfg)
            for child_name, child in encoders[name].named_children():
                self.add_module(child_name, child)
        return encoders

    def _build_qformers(self) -> None:
        """The shared Q-Former, and those that entries have of their own."""
        own = {spec.qformer for spec in self.specs.values()} - {"Qformer"}
        self.qformer_names = ("Qformer", *sorted(own))
        for name in self.qformer_names:
            self.add_module(name, parts.build_qformer(self.cfg, self.tokenizer))

    @property
    def qformers(self) -> dict[str, QFormer]:
        """The Q-Formers by name."""
        return {name: cast(QFormer, self.get_submodule(name)) for name in self.qformer_names}

    def _build_branches(self) -> None:
        """One branch per modality, and the heads that all share."""
        qformer = self.qformers["Qformer"]
        for spec in self.specs.values():
            if spec.weight("llm") and self.llm is None:
                weight = spec.weight("llm")
                raise ConfigError(f"modalities.{spec.name}.losses.llm is {weight}, but arch {self.cfg.arch} has no LLM")
        llm_width = None if self.llm is None else self.llm.width
        std = qformer.config.initializer_range
        self.branches = nn.ModuleDict(
            {
                name: Branch(spec, self.cfg, width=qformer.width, llm_width=llm_width, init_std=std)
                for name, spec in self.specs.items()
            }
        )
        self.text_proj = nn.Linear(qformer.width, self.cfg.embed_dim)
        self.itm_head = nn.Linear(qformer.width, 2)
        self.temp = nn.Parameter(torch.tensor(0.07))

    def _load_parts(self) -> None:
        """Weights of the parts that files of their own give: encoders, BERT under the Q-Formers, the LLM."""
        for encoder in self.encoders.values():
            path = self.cfg[encoder.block].get("pretrained")
            if path is not None:
                self._loaded |= {f"{encoder.tower}.{name}" for name in encoder.load(path)}
                self.bases[encoder.tower] = path
        for name in self.qformer_names:
            if loaded := parts.load_bert(self.qformers[name], self.cfg.bert_path):
                self._loaded |= {f"{name}.{key}" for key in loaded}
                self.bases["bert"] = self.cfg.bert_path
        if self.llm is not None and not self.llm.is_random:
            self.bases["llm"] = parts.llm_source(self.cfg, self.llm_kind)
            self._loaded |= {f"llm.{name}" for name, _ in self.llm.named_parameters()}

    def freeze(self, module: nn.Module) -> None:
        """No gradients, and eval mode for good."""
        module.requires_grad_(False)
        self.lock_eval(module)

    def autocast_parts(self) -> list[nn.Module]:
        """The parts whose linear layers are called under autocast alone, where there is any."""
        return [*self.qformers.values(), *(part for encoder in self.encoders.values() for part in encoder.autocast_parts())]

    def branch(self, name: str) -> Branch:
        """The branch of a modality."""
        return cast(Branch, self.branches[name])

    # -- the one path ---------------------------------------------------------------------------------------------------------
    def read(self, samples: Samples, *, roles: Sequence[str] = ("qformer",)) -> Batch:
        """A samples dict, read and checked (see `Batch`); of its texts those of the `roles`."""
        return Batch.read(
            samples, specs=self.specs, encoders=self.encoders, branches=cast("Mapping[str, Branch]", self.branches),
            device=self.device, training=self.training, roles=roles, extra=self.extra_keys,
        )  # fmt: skip

    def query_input(self, batch: Batch) -> QFormerInput:
        """Encode a batch, and what its queries [B, Q, D] are, its regions in them."""
        branch, tokens = self.branch(batch.spec.name), self.encoders[batch.spec.encoder].encode(batch.inputs)
        queries = branch.query_tokens.expand(batch.size, -1, -1)
        ids, mask = self.tokenize(batch.texts["qformer"]) if "qformer" in batch.texts else (None, None)
        given = QFormerInput(queries, queries.shape[1], tokens, ids, mask)
        return given if branch.region is None else branch.region.into(given, batch.regions)

    def look(self, batch: Batch) -> Looked:
        """Encode a batch and let its queries look at it."""
        given = self.query_input(batch)
        hidden, cache = self.qformers[batch.spec.qformer].query_pass(given)
        return Looked(hidden, given.tokens, given.queries, cache)

    def forward(self, samples: Samples) -> Losses:
        """Losses of a batch; those that do not apply to its modality are zero. Weights of the entry are included."""
        if samples.get("text_input") is None:
            raise ValueError("training needs samples['text_input'], a list of texts")
        batch = self.read(samples, roles=TEXT_ROLES)
        with self.router.route(batch.spec.name):
            found = objectives.find_losses(self, batch)
        zero = torch.zeros((), device=self.device)
        weighted = {name: found[name].value * batch.spec.weight(name) if name in found else zero for name in LOSS_NAMES}
        total = torch.stack([weighted[name] for name in found]).sum() if found else zero
        counts = {f"loss_{name}": mean.terms for name, mean in found.items()}
        return Losses(loss=total, counts=counts, **{f"loss_{name}": value for name, value in weighted.items()})

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Q-Former ids and mask [B, L], cut to max_txt_len and padded to the longest."""
        out = self.tokenizer(texts, padding="longest", truncation=True, max_length=self.cfg.max_txt_len, return_tensors="pt")
        return out.input_ids.to(self.device), out.attention_mask.to(self.device)

    def decoder_ids(self, ids: Tensor) -> Tensor:
        """Text ids [B, L] as the language pass reads them: `[DEC]` in place of `[CLS]`."""
        ids = ids.clone()
        ids[:, 0] = self.tokenizer.bos_token_id
        return ids

    def visual_features(self, spec: Modality, hidden: Tensor) -> Tensor:
        """Query outputs [B, Q, D] -> normalised features [B, Q, E]."""
        return F.normalize(self.branch(spec.name).itc_proj(hidden), dim=-1)

    def sentence_features(self, hidden: Tensor) -> Tensor:
        """Outputs [B, L, D] of a text pass -> normalised features [B, E]."""
        return F.normalize(self.text_proj(hidden[:, 0]), dim=-1)

    def caption_loss(self, batch: Batch, hidden: Tensor) -> TokenLoss:
        """The targets behind query outputs [B, Q, D] and the entry's own prompt."""
        assert self.llm is not None, "an llm loss without a language model is refused when the model is built"
        prompts = self.llm.caption_prompts(self.branch(batch.spec.name).to_llm(hidden), self.default_prompt(batch.spec))
        return self.llm.loss(prompts, batch.text("target"))

    def answer_loss(self, batch: Batch, hidden: Tensor) -> TokenLoss:
        """The targets behind query outputs [B, Q, D] and the prompts of the samples."""
        assert self.llm is not None, "checked by the caller"
        vectors = self.branch(batch.spec.name).to_llm(hidden)
        return self.llm.loss(Behind(vectors, batch.text("prompt")), batch.text("target"))

    def default_prompt(self, spec: Modality) -> str:
        """What the language model is told when nobody says otherwise, in training as in evaluation (for T5)."""
        return spec.prompt if self.ignores_prompts else (self.cfg.prompt or spec.prompt)

    # -- what a trained model is asked for (LAVIS' methods) -------------------------------------------------------------------
    generate = generating.generate
    predict_answers = answers.predict_answers
    extract_features = features.extract_features
    class_features = features.class_features
    classify = features.classify
    describe = describing.describe
    picture = describing.picture
    picture_samples = describing.picture_samples
    modality_with_region = describing.modality_with_region
    compute_sim_matrix = retrieval.compute_sim_matrix
    add_to_gallery = retrieval.add_to_gallery
    gather_gallery = retrieval.gather_gallery
    gallery_scores = retrieval.gallery_scores

    # -- weights --------------------------------------------------------------------------------------------------------------
    @property
    def key_map(self) -> KeyMap:
        """How the names of published layouts map to this model's."""
        return KeyMap(self.specs.values(), llm=self.llm_kind or "opt")

    check_config = staticmethod(parts.check_files)
    load_checkpoint = loading.load_checkpoint
    random_parts = loading.random_parts
    frozen_bases = loading.frozen_bases
