"""Losses, captions and training steps of RegionBLIP, the published way, over the weights of a model of ours.

Shapes: B rows, Q queries, D Q-Former width, E similarity width, L text tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.published import beam, points, vit
from benchmarks.published.bert import Bert, KeyValue
from benchmarks.published.opt import Opt
from benchmarks.published.weights import Weights

SMOOTHING = 0.1
FLOOR = 1e-4  # of the weights of hard negatives


class Published:
    """A model of ours, whose weights are read and whose modules are not called. It must be a RegionBLIP with an OPT.

    `samples` are those of the published loaders: a picture or a cloud for every row (`image_index` is not known).
    """

    def __init__(self, model: Any) -> None:
        self.model, self.cfg = model, model.cfg
        self.w = Weights({**dict(model.named_parameters()), **dict(model.named_buffers())})
        self.bert_heads = model.Qformer.config.num_attention_heads
        self.llm = model.llm.model.config

    @property
    def training(self) -> bool:
        """Whether dropout is live and sampling starts anywhere."""
        return bool(self.model.training)

    def bert(self, modality: str) -> Bert:
        """The modality's Q-Former: the shared one is frozen and without dropout, that of clouds is trained."""
        of_clouds = modality.startswith("pointcloud")
        part = "Qformer_pc" if of_clouds else "Qformer"
        return Bert(self.w.below(part), self.bert_heads, modality, self.training and of_clouds)

    def opt(self, modality: str) -> Opt:
        return Opt(self.w.below("llm.model.model.decoder"), self.llm.num_attention_heads, modality, self.training)

    def encode(self, samples: Mapping[str, Any], modality: str) -> Tensor:
        """Encoder tokens of every row [B, T, C]."""
        if modality.startswith("image"):
            tokens = vit.eva(self.w.below("visual_encoder"), samples["image"], self.cfg.vit.num_heads)
            return self.w.norm(tokens, "ln_vision", 1e-5)
        cloud, cfg = samples["pointcloud"], self.cfg.pointbert
        start = torch.zeros(len(cloud), dtype=torch.long)
        if self.training:
            start = torch.randint(cloud.shape[1], (len(cloud),))
        encoder = self.w.below("point_encoder")
        tokens = points.point_bert(encoder, cloud, cfg.num_group, cfg.group_size, cfg.num_heads, start)
        return self.w.linear(tokens, "pc_adapter")

    def look(self, samples: Mapping[str, Any], modality: str) -> tuple[Tensor, Tensor, list[KeyValue]]:
        """Query outputs [B, Q, D], encoder tokens, keys and values."""
        tokens = self.encode(samples, modality)
        queries = self.w[f"branches.{modality}.query_tokens"].expand(len(tokens), -1, -1)
        if modality.endswith("_region"):
            region = self.w.below(f"branches.{modality}.region")
            place = region.linear(F.gelu(region.linear(self.position(samples, modality), "posembed.0")), "posembed.2")
            queries = queries + place.unsqueeze(1)
        hidden, cache = self.bert(modality).run(queries, None, torch.ones(queries.shape[:2]), tokens)
        return hidden, tokens, cache

    def position(self, samples: Mapping[str, Any], modality: str) -> Tensor:
        return samples["box"] if modality == "image_region" else samples["box_corners"].flatten(1)

    def forward(self, samples: Mapping[str, Any]) -> dict[str, Tensor]:
        """The losses of a batch, and their sum."""
        modality, texts = samples["modality"], samples["text_input"]
        branch, bert = self.w.below(f"branches.{modality}"), self.bert(modality)
        hidden, tokens, cache = self.look(samples, modality)
        out = self.model.tokenizer(
            texts, padding="longest", truncation=True, max_length=self.cfg.max_txt_len, return_tensors="pt"
        )
        ids, mask = out.input_ids, out.attention_mask
        visual = F.normalize(branch.linear(hidden, "itc_proj"), dim=-1)
        text = F.normalize(self.w.linear(bert.run(None, ids, mask)[0][:, 0], "text_proj"), dim=-1)
        sim_i2t, sim_t2i = similarities(visual, text, self.w["temp"])
        own = torch.arange(len(texts))
        losses = {
            "loss_itc": (
                F.cross_entropy(sim_i2t, own, label_smoothing=SMOOTHING)
                + F.cross_entropy(sim_t2i, own, label_smoothing=SMOOTHING)
            ) / 2
        }  # fmt: skip
        if modality == "image":
            losses["loss_itm"] = self.matching(bert, tokens, ids, mask, sim_i2t.detach(), sim_t2i.detach())
        losses["loss_lm"] = self.language(bert, ids, mask, cache)
        losses["loss_llm"] = self.captioning(branch.linear(hidden, "llm_proj"), modality, texts)
        if modality.endswith("_region"):
            read = branch.linear(hidden.mean(dim=1), "region.reg")
            losses["loss_reg"] = F.l1_loss(read, self.position(samples, modality)) * self.cfg.aux_regloss_weight
        return {"loss": sum(losses.values(), torch.zeros(())), **losses}

    __call__ = forward

    def matching(self, bert: Bert, tokens: Tensor, ids: Tensor, mask: Tensor, sim_i2t: Tensor, sim_t2i: Tensor) -> Tensor:
        """ITM on (text, image), (text, negative image), (negative text, image): tokens and texts are copied to 3 B rows."""
        rows = len(ids)
        image_weights, text_weights = F.softmax(sim_t2i, dim=1) + FLOOR, F.softmax(sim_i2t, dim=1) + FLOOR
        image_weights.fill_diagonal_(0)
        text_weights.fill_diagonal_(0)
        images = torch.stack([tokens[int(torch.multinomial(image_weights[row], 1).item())] for row in range(rows)])
        others = [int(torch.multinomial(text_weights[row], 1).item()) for row in range(rows)]
        negative_ids, negative_mask = torch.stack([ids[row] for row in others]), torch.stack([mask[row] for row in others])
        queries = self.w["branches.image.query_tokens"].expand(3 * rows, -1, -1)
        seen = torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), torch.cat([mask, mask, negative_mask])], dim=1)
        pictures = torch.cat([tokens, images, tokens])
        hidden = bert.run(queries, torch.cat([ids, ids, negative_ids]), seen, pictures)[0][:, : queries.shape[1]]
        logits = self.w.linear(hidden, "itm_head").mean(dim=1)
        labels = torch.cat([torch.ones(rows, dtype=torch.long), torch.zeros(2 * rows, dtype=torch.long)])
        return F.cross_entropy(logits, labels)

    def language(self, bert: Bert, ids: Tensor, mask: Tensor, cache: list[KeyValue]) -> Tensor:
        """The text behind the cached queries; logits at all positions, labels smoothed."""
        ids = ids.clone()
        ids[:, 0] = self.model.tokenizer.bos_token_id
        labels = ids.masked_fill(mask == 0, -100)
        rows, length = ids.shape
        causal = torch.tril(torch.ones(length, length, dtype=torch.long)) * mask[:, None, :]
        seen = torch.cat([torch.ones(rows, length, cache[0][0].shape[2], dtype=torch.long), causal], dim=2)
        logits = bert.words(bert.run(None, ids, seen, None, cache)[0])
        shifted = logits[:, :-1, :].contiguous()
        return F.cross_entropy(shifted.view(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), label_smoothing=SMOOTHING)

    def captioning(self, prefix: Tensor, modality: str, texts: list[str]) -> Tensor:
        """The loss of OPT; logits at all positions, those of the queries masked."""
        opt, tokenizer = self.opt(modality), self.model.llm.tokenizer
        encoded = tokenizer([text + "\n" for text in texts], truncation=True, max_length=self.cfg.max_txt_len).input_ids
        longest = max(len(row) for row in encoded)
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in encoded])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in encoded])
        seen = torch.cat([torch.ones(prefix.shape[:2], dtype=torch.long), mask], dim=1)
        labels = torch.cat([torch.full(prefix.shape[:2], -100), ids.masked_fill(mask == 0, -100)], dim=1)
        logits = opt.run(torch.cat([prefix, opt.embed(ids)], dim=1), seen)[0]
        shifted = logits[..., :-1, :].contiguous()
        return F.cross_entropy(shifted.view(-1, logits.shape[-1]), labels[..., 1:].reshape(-1))

    @torch.no_grad()
    def generate(self, samples: Mapping[str, Any], *, num_beams: int = 5, max_length: int = 30, min_length: int = 1) -> list[str]:
        """Captions of a batch, with an empty prompt."""
        modality, tokenizer = samples["modality"], self.model.llm.tokenizer
        opt = self.opt(modality)
        prefix = self.w.linear(self.look(samples, modality)[0], f"branches.{modality}.llm_proj")
        prompt = torch.tensor([tokenizer("").input_ids] * len(prefix))
        eos = tokenizer("\n", add_special_tokens=False).input_ids[-1]
        rows = beam.search(
            opt, torch.cat([prefix, opt.embed(prompt)], dim=1), start=tokenizer.bos_token_id, eos=eos,
            pad=tokenizer.pad_token_id, beams=num_beams, max_length=max_length, min_length=min_length,
        )  # fmt: skip
        texts = [list(itertools.takewhile(lambda token: token != eos, row)) for row in rows]
        return [text.strip() for text in tokenizer.batch_decode(texts, skip_special_tokens=True)]


def similarities(visual: Tensor, text: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled similarities of pictures [B, Q, E] and texts [B, E] in both directions; the other side gets no gradient."""
    text_all, visual_all = text.detach(), visual.detach()
    i2t = torch.matmul(visual.unsqueeze(1), text_all.unsqueeze(-1)).squeeze(-1).max(-1)[0] / temperature
    t2i = torch.matmul(text.unsqueeze(1).unsqueeze(1), visual_all.permute(0, 2, 1)).squeeze(2).max(-1)[0] / temperature
    return i2t, t2i


class PublishedStep:
    """A training step: forward, backward, an AdamW that loops over parameters, gradients set to none."""

    def __init__(self, published: Published, *, lr: float = 1e-4, weight_decay: float = 0.05) -> None:
        self.published = published
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, parameter in published.model.named_parameters():
            if parameter.requires_grad:
                plain = parameter.ndim < 2 or any(part in name for part in ("bias", "ln", "bn"))
                groups[plain].append(parameter)
        decays = [{"params": params, "weight_decay": 0.0 if plain else weight_decay} for plain, params in groups.items()]
        self.optimizer = torch.optim.AdamW(decays, lr=lr, betas=(0.9, 0.999), foreach=False, fused=False)

    def __call__(self, samples: Mapping[str, Any]) -> dict[str, Tensor]:
        losses = self.published(samples)
        losses["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {name: value.detach() for name, value in losses.items()}
