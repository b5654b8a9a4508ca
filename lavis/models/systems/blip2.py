"""BLIP-2 (arXiv 2301.12597) and the base that RegionBLIP shares: encoder -> Q-Former -> losses and soft prompts for an LLM.

One path serves every modality: a `Modality` row says what differs, its `Branch` owns what differs. The archs of this file are the
two pre-training stages: `blip2` (ITC, ITM, ITG) and `blip2_opt`, `blip2_t5` (captions through a frozen LLM).

Losses are those of the global batch: features are gathered, token losses are divided by the global token count, hard negatives
are drawn for the global batch from a generator that is the same on all processes. Averaging gradients over processes
then gives the gradient of one process that holds the whole batch. Dropout and drop path alone draw per process.

Several batches per update (`run.accum_grad_iters`) give the mean of the batches' gradients. That is the gradient of the larger
batch for the region loss where batches have equal rows, and for the token losses (lm, llm) where they have equal tokens; dividing
by the tokens of all of them would ask for batches that have not come yet. Not for ITC and ITM: a row is compared with the rows of
its own batch only.

Shapes: B rows, I encoded inputs (several rows may share one), T encoder tokens, C encoder width, Q queries, D Q-Former width,
E similarity width, L text tokens, H LLM width; *_all are over all processes.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lavis.common import dist_utils
from lavis.common.config import ConfigError
from lavis.common.modalities import modality_of
from lavis.common.precision import hold_frozen_linear
from lavis.common.registry import registry
from lavis.common.seeding import shared_rng
from lavis.models import losses, parts
from lavis.models.base_model import BaseModel, Losses
from lavis.models.encoding import Encoding
from lavis.models.inference.answers import as_list
from lavis.models.inference.generate import Captioner
from lavis.models.inference.retrieval import Retrieval
from lavis.models.language import LanguageModel
from lavis.models.means import Mean, global_mean, global_row_mean
from lavis.models.modality import LOSS_NAMES, Branch, Modality
from lavis.models.outputs import Looked, Read
from lavis.models.qformer.lora import ModalityRouter
from lavis.models.qformer.qformer import EncoderTokens, QFormer
from lavis.models.weights.loading import Weights

logger = logging.getLogger(__name__)


class Blip2Base(Encoding, Captioner, Retrieval, Weights, BaseModel):
    """Encoder, Q-Former, one branch per modality, and an LLM when some row has an `llm` loss."""

    llm_kind: str | None = None  # "opt", "t5" or None: which config keys name the LLM, and its published prefix

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__()
        self.cfg = copy.deepcopy(cfg)
        parts.expand_paths(self.cfg)
        parts.check_files(self.cfg)
        cfg = self.cfg
        self.bases: dict[str, str] = {}  # part -> file that its frozen weights came from
        self.rows = {name: Modality.from_config(name, row) for name, row in self.modality_rows(cfg).items()}
        self.router = ModalityRouter(self.rows)
        self.tokenizer = parts.bert_tokenizer(cfg.bert_path)
        self.setup_encoders()
        self.setup_qformers()
        self.llm: LanguageModel | None = parts.build_llm(cfg, self.llm_kind) if self.llm_kind else None
        self.setup_branches()
        self.load_parts()
        self.setup_training()

    @classmethod
    def from_config(cls, cfg: DictConfig) -> Blip2Base:
        model = cls(cfg)
        model.load_checkpoint_from_config(model.cfg)
        hold_frozen_linear(*model.autocast_parts())
        return model

    def autocast_parts(self) -> list[nn.Module]:
        """The parts whose linear layers are called under autocast alone, where there is any."""
        found: list[nn.Module] = [part for part in self.children() if isinstance(part, QFormer)]
        if hasattr(self, "point_encoder") and self.cfg.freeze_point_encoder and self.cfg.pointbert.autocast:
            found.append(self.point_encoder.blocks)
        return found

    @classmethod
    def modality_rows(cls, cfg: DictConfig) -> dict[str, Any]:
        """The modality table of a config as plain mappings; a row set to null is left out."""
        rows = cast(dict[str, Any], OmegaConf.to_container(cfg.modalities, resolve=True))
        return {name: row for name, row in rows.items() if row is not None}

    # -- building -----------------------------------------------------------------------------------------------------------
    def setup_qformers(self) -> None:
        """The Q-Former that the rows share."""
        self.Qformer: QFormer = parts.build_qformer(self.cfg, self.tokenizer)

    def setup_branches(self) -> None:
        """One branch per modality, and the heads that all share."""
        cfg, width = self.cfg, self.Qformer.width
        for row in self.rows.values():
            if row.weight("llm") and self.llm is None:
                raise ConfigError(f"modalities.{row.name}.losses.llm is {row.weight('llm')}, but arch {cfg.arch} has no LLM")
        self.branches = nn.ModuleDict(
            {
                name: Branch(
                    row,
                    num_query=cfg.qformer.num_query_token,
                    width=width,
                    embed_dim=cfg.embed_dim,
                    llm_width=self.llm.width if self.llm is not None else None,
                    init_std=self.Qformer.config.initializer_range,
                )
                for name, row in self.rows.items()
            }
        )
        self.text_proj = nn.Linear(width, cfg.embed_dim)
        self.itm_head = nn.Linear(width, 2)
        self.temp = nn.Parameter(torch.tensor(0.07))

    def load_parts(self) -> None:
        """Weights of the parts that files of their own give: encoders, BERT under the Q-Former, the LLM."""
        self.load_encoders()
        self.load_bert("Qformer")
        if self.llm is not None and not self.llm.is_random:
            self.bases["llm"] = parts.llm_source(self.cfg, self.llm_kind)
            self._loaded |= {f"llm.{name}" for name, _ in self.llm.named_parameters()}

    def load_bert(self, part: str) -> None:
        """Start a Q-Former from BERT, where bert_path has weights."""
        loaded = parts.load_bert(getattr(self, part), self.cfg.bert_path)
        self._loaded |= {f"{part}.{name}" for name in loaded}
        if loaded:
            self.bases["bert"] = self.cfg.bert_path

    def setup_training(self) -> None:
        """Freeze as published: the encoders when asked, the LLM always."""
        self.freeze_encoders()
        if self.llm is not None:
            self.llm.requires_grad_(False)
            if not self.cfg.llm_dropout:
                self.lock_eval(self.llm)
            if self.cfg.llm_grad_checkpoint:
                self.llm.enable_checkpointing(self.router.checkpoint_contexts)

    def freeze(self, module: nn.Module) -> None:
        """No gradients, and eval mode for good."""
        module.requires_grad_(False)
        self.lock_eval(module)

    # -- the one path ---------------------------------------------------------------------------------------------------------
    def row_of(self, samples: Mapping[str, Any]) -> Modality:
        """The row of a batch: `modality`, or the published `task_name`; a model with one row needs neither."""
        name = samples.get("modality") or samples.get("task_name")
        if name is None and len(self.rows) == 1:
            return next(iter(self.rows.values()))
        if isinstance(name, list | tuple):
            if len(set(name)) != 1:
                raise ValueError(f"a batch holds one modality, got {sorted(set(name))}")
            name = name[0]
        if name is None or modality_of(name) not in self.rows:
            raise ValueError(f"samples['modality'] is {name!r}; this model knows {', '.join(self.rows)}")
        return self.rows[modality_of(name)]

    def queries(self, samples: Mapping[str, Any], row: Modality, tokens: EncoderTokens) -> Tensor:
        """Query embeddings of a batch [B, Q, D], with the region's position where the row has one."""
        position = self.position(samples, row, tokens.rows)
        return self.branch(row.name).queries(tokens.rows, position, use_position=not self.cfg.ablation_no_posembed)

    def position(self, samples: Mapping[str, Any], row: Modality, rows: int) -> Tensor | None:
        """The region positions of a batch of `rows`; None for a row without regions. ValueError when absent or bad."""
        region = self.branch(row.name).region
        if region is None:
            return None
        if samples.get(region.key) is None:
            raise ValueError(f"modality {row.name!r} needs samples[{region.key!r}]")
        if samples[region.key].is_cpu or not self.training:  # a training step on a GPU does not wait for a check
            region.check(samples[region.key])
        if len(samples[region.key]) != rows:
            raise ValueError(f"{len(samples[region.key])} regions for {rows} rows; give image_index when regions share images")
        return samples[region.key].to(self.device)

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Q-Former ids and mask [B, L], cut to max_txt_len and padded to the longest."""
        out = self.tokenizer(texts, padding="longest", truncation=True, max_length=self.cfg.max_txt_len, return_tensors="pt")
        return out.input_ids.to(self.device), out.attention_mask.to(self.device)

    def branch(self, name: str) -> Branch:
        """The branch of a modality."""
        return cast(Branch, self.branches[name])

    def qformer_of(self, row: Modality) -> QFormer:
        """The Q-Former that serves a row."""
        return getattr(self, row.qformer)

    def look(self, samples: Mapping[str, Any], row: Modality) -> Looked:
        """Encode a batch and let its queries look at it."""
        tokens = self.encode(samples, row)
        queries = self.queries(samples, row, tokens)
        hidden, cache = self.qformer_of(row).query_pass(queries, tokens)
        return Looked(hidden, tokens, queries, cache)

    def forward(self, samples: Mapping[str, Any]) -> Losses:
        """Losses of a batch; those that do not apply to its modality are zero. Weights of the row are included."""
        row = self.row_of(samples)
        if samples.get("text_input") is None:
            raise ValueError("training needs samples['text_input'], a list of texts")
        with self.router.route(row.name):
            found = self._losses(samples, row)
        zero = torch.zeros((), device=self.device)
        weighted = {name: found[name].value * row.weight(name) if name in found else zero for name in LOSS_NAMES}
        total = torch.stack([weighted[name] for name in found]).sum() if found else zero
        counts = {f"loss_{name}": mean.terms for name, mean in found.items()}
        return Losses(loss=total, counts=counts, **{f"loss_{name}": value for name, value in weighted.items()})

    def read(self, samples: Mapping[str, Any], row: Modality, texts: list[str]) -> Read:
        """Encode a batch; its queries look at it and the Q-Former reads its texts, in one pass where all are compared."""
        tokens = self.encode(samples, row)
        if len(texts) != tokens.rows:
            raise ValueError(f"{len(texts)} texts for {tokens.rows} rows")
        queries, qformer = self.queries(samples, row, tokens), self.qformer_of(row)
        wanted = any(map(row.weight, ("itc", "itm", "lm")))
        ids, mask = self.tokenize(texts) if wanted else (tokens.embeds.new_empty(0, dtype=torch.long),) * 2
        decoder = self.decoder_ids(ids) if row.weight("lm") else None
        if row.weight("itc"):  # so every part of the pass gets a gradient: a parameter that a loss does not reach must have none
            return Read(*qformer.passes_at_once(queries, tokens, mask, text=ids, decoder=decoder), tokens, ids, mask)
        hidden, cache = qformer.query_pass(queries, tokens)
        text = qformer.text_pass(ids, mask) if row.weight("itm") else None
        return Read(hidden, text, None if decoder is None else qformer.lm_pass(decoder, mask, cache), tokens, ids, mask)

    def _losses(self, samples: Mapping[str, Any], row: Modality) -> dict[str, Mean]:
        """Unweighted losses of the row. A batch with `text_output` has questions, and teaches the answers alone."""
        if samples.get("text_output") is not None:
            return {"llm": global_mean(self.answer_loss(samples, row, self.look(samples, row).hidden))}
        texts, branch = as_list(samples["text_input"]), self.branch(row.name)
        hidden, text, lm, tokens, ids, mask = self.read(samples, row, texts)
        found: dict[str, Mean] = {}
        sizes = dist_utils.gather_sizes(len(texts))
        if text is not None:
            sim_i2t, sim_t2i = self.similarities(row, hidden, self.sentence_features(text), sizes)
            same = self.same_image(samples)
            if row.weight("itc"):
                found["itc"] = Mean(self.itc_loss(sim_i2t, sim_t2i, same), sum(sizes))
            if row.weight("itm"):
                found["itm"] = self.itm_loss(row, sim_i2t.detach() / self.temp.detach(), tokens, ids, mask, sizes, same)
        if lm is not None:
            found["lm"] = self.lm_loss(row, ids, mask, lm)
        if row.weight("llm"):
            assert self.llm is not None and branch.llm_proj is not None, "setup_branches refuses an llm loss without an LLM"
            prompts = self.llm.caption_prompts(branch.llm_proj(hidden), self.default_prompt(row))
            found["llm"] = global_mean(self.llm.loss(prompts, texts))
        if row.weight("reg") and branch.region is not None:
            position = self.position(samples, row, len(texts))
            assert position is not None
            found["reg"] = global_row_mean(branch.region.loss(hidden, position), sizes)
        return found

    # -- the losses of stage 1 ---------------------------------------------------------------------------------------------
    def text_features(self, row: Modality, ids: Tensor, mask: Tensor) -> Tensor:
        """Normalised sentence features [B, E] by the text pass of the row's Q-Former."""
        return self.sentence_features(self.qformer_of(row).text_pass(ids, mask))

    def sentence_features(self, hidden: Tensor) -> Tensor:
        """Outputs [B, L, D] of a text pass -> normalised features [B, E]."""
        return F.normalize(self.text_proj(hidden[:, 0]), dim=-1)

    def similarities(self, row: Modality, hidden: Tensor, text: Tensor, sizes: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Cosines of all visual rows with all texts and of all texts with all visual rows, each [B_all, B_all], from query
        outputs [B, Q, D] and sentence features [B, E]. `sizes`: the rows of every process, where they are known.

        Published: what a row is compared with gets no gradient (`itc_gather_grad: false`), its own side does. Either way the
        update does not depend on the number of processes.
        """
        visual = F.normalize(self.branch(row.name).itc_proj(hidden), dim=-1)
        visual_all, text_all = (dist_utils.gather_with_grad(part, sizes=sizes) for part in (visual, text))
        if self.cfg.itc_gather_grad:
            sim = losses.query_text_similarity(visual_all, text_all)
            return sim, sim.t()
        return (
            losses.query_text_similarity(visual_all, text_all.detach()),
            losses.query_text_similarity(visual_all.detach(), text_all).t(),
        )

    def itc_loss(self, sim_i2t: Tensor, sim_t2i: Tensor, same: Tensor | None) -> Tensor:
        """ITC of similarities [B_all, B_all]. Rows that are the `same` are positives of each other under `soft_targets`,
        and left out of each other's negatives otherwise."""
        if same is None or self.cfg.soft_targets:
            return losses.contrastive(sim_i2t, sim_t2i, self.temp, None if same is None else losses.soft_targets(same))
        return losses.contrastive(
            sim_i2t, sim_t2i, self.temp, left_out=same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        )

    def same_image(self, samples: Mapping[str, Any]) -> Tensor | None:
        """Which rows of all are no negatives of each other [B_all, B_all]: those of one image, when the config asks for LAVIS'
        reading of image ids; else those of one `positive_key`, where samples have it (`run.group_by_image`)."""
        own = samples.get("image_id") if self.cfg.soft_targets else samples.get("positive_key")
        if own is None:
            return None
        ids = [key for part in dist_utils.all_gather_objects(list(map(str, own))) for key in part]
        number = {key: i for i, key in enumerate(dict.fromkeys(ids))}
        numbers = torch.tensor([number[key] for key in ids], device=self.device)
        return numbers[:, None] == numbers[None, :]

    def itm_loss(
        self,
        row: Modality,
        logits: Tensor,
        tokens: EncoderTokens,
        ids: Tensor,
        mask: Tensor,
        sizes: list[int],
        same: Tensor | None = None,
    ) -> Mean:
        """ITM on (text, image), (text, hard negative image), (hard negative text, image); logits [B_all, B_all] image x text.

        `sizes`: the rows of every process. `same` [B_all, B_all] marks rows of one image, which are no negatives. Zero for a
        batch that has none.
        """
        rows, device = len(ids), ids.device
        if len(logits) == 1 or (same is not None and bool(same.all())):
            return Mean(torch.zeros((), device=device), 0)
        with shared_rng(), torch.no_grad():
            image_for_text, text_for_image = (
                losses.draw_negatives(losses.negative_weights(scores, floor=self.cfg.itm_floor, positives=same))
                for scores in (logits.t(), logits)
            )
        first = sum(sizes[: dist_utils.get_rank()])
        own = torch.arange(first, first + rows, device=device)
        longest = max(dist_utils.gather_sizes(ids.shape[1]))
        padded = (F.pad(t, (0, longest - ids.shape[1])) for t in (ids, mask))
        ids_all, mask_all = (dist_utils.gather_with_grad(t, sizes=sizes) for t in padded)
        tokens_all = self._gather_tokens(tokens, sizes)
        other_text = text_for_image[own]
        pairs = tokens_all.select(torch.cat([own, image_for_text[own], own]))
        joint_ids = torch.cat([ids_all[own], ids_all[own], ids_all[other_text]])
        joint_mask = torch.cat([mask_all[own], mask_all[own], mask_all[other_text]])
        queries = self.branch(row.name).query_tokens.expand(3 * rows, -1, -1)
        hidden = self.qformer_of(row).joint_pass(queries, joint_ids, joint_mask, pairs)
        return global_row_mean(losses.matching(self.itm_head(hidden[:, : queries.shape[1]]).mean(dim=1), rows), sizes)

    def _gather_tokens(self, tokens: EncoderTokens, sizes: list[int]) -> EncoderTokens:
        if dist_utils.get_world_size() == 1:
            return tokens
        seen = None if tokens.seen is None else dist_utils.gather_with_grad(tokens.seen, sizes=sizes)
        return EncoderTokens(dist_utils.gather_with_grad(tokens.per_row(tokens.embeds), sizes=sizes), seen=seen)

    def decoder_ids(self, ids: Tensor) -> Tensor:
        """Text ids [B, L] as the language pass reads them: `[DEC]` in place of `[CLS]`."""
        ids = ids.clone()
        ids[:, 0] = self.tokenizer.bos_token_id
        return ids

    def lm_loss(self, row: Modality, ids: Tensor, mask: Tensor, hidden: Tensor) -> Mean:
        """ITG: each token from those before it, labels smoothed by 0.1; hidden [B, L, D] of the language pass."""
        labels = self.decoder_ids(ids).masked_fill(mask == 0, losses.IGNORE)
        logits = self.qformer_of(row).lm_logits(hidden[:, :-1])
        return global_mean(losses.token_cross_entropy(logits, labels[:, 1:], label_smoothing=losses.LABEL_SMOOTHING))


@registry.register_model("blip2")
class Blip2Qformer(Blip2Base):
    """BLIP-2 stage 1: the Q-Former learns from ITC, ITM and ITG."""

    PRETRAINED_MODEL_CONFIG_DICT = dict.fromkeys(("pretrain", "pretrain_vitL", "coco"), "configs/models/blip2.yaml")


@registry.register_model("blip2_opt")
class Blip2OPT(Blip2Base):
    """BLIP-2 stage 2 with a frozen causal LLM."""

    PRETRAINED_MODEL_CONFIG_DICT = dict.fromkeys(
        ("pretrain_opt2.7b", "pretrain_opt6.7b", "caption_coco_opt2.7b", "caption_coco_opt6.7b"), "configs/models/blip2_opt.yaml"
    )
    llm_kind = "opt"


@registry.register_model("blip2_t5")
class Blip2T5(Blip2Base):
    """BLIP-2 stage 2 with a frozen T5."""

    PRETRAINED_MODEL_CONFIG_DICT = dict.fromkeys(
        ("pretrain_flant5xl", "pretrain_flant5xl_vitL", "pretrain_flant5xxl", "caption_coco_flant5xl"),
        "configs/models/blip2_t5.yaml",
    )
    llm_kind = "t5"
