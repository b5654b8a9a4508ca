"""The Q-Former of BLIP-2 (arXiv 2301.12597): a post-LN BERT whose queries cross-attend to an encoder's tokens.

Parameter names are the published ones (`bert.encoder.layer.N.crossattention.self.query`, `intermediate_query`, `cls.predictions`)
so that released files load key by key. Queries and text share self-attention; each has its own feed-forward.

Four passes:  query (queries with cross-attention) - text (text alone) - lm (text, causal, on the cached keys and values of the
query pass) - joint (queries and text see each other; ITM and multimodal features).

Shapes: B rows, Q queries, L text tokens, T encoder tokens, D width, N heads, V vocabulary; I encoded inputs (several rows may
share one: `Tokens.index`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig

from lavis.common.precision import lowered
from lavis.models.qformer.attention import attend
from lavis.models.qformer.tokens import QFormerInput, Tokens


class KeyValue(NamedTuple):
    """Keys and values [B, N, S, D/N] of one self-attention layer."""

    key: Tensor
    value: Tensor


class Embeddings(nn.Module):
    """Word plus position embeddings for text; queries get neither; LayerNorm and dropout are shared."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, queries: Tensor | None, texts: Sequence[Tensor]) -> Tensor:
        """queries [B, Q, D] and the ids [B, L] of texts, each from position 0 on -> [B, Q + L + ..., D]"""
        parts = [] if queries is None else [queries]
        for input_ids in texts:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            parts.append(self.word_embeddings(input_ids) + self.position_embeddings(positions))
        return self.dropout(self.LayerNorm(torch.cat(parts, dim=1)))


class KeyLinear(nn.Linear):
    """The layer that makes keys. Its bias adds the same number to all scores of a query, which a softmax takes no notice of: the
    gradient is zero, and is kept from being a rounding error that AdamW would make full steps of, others on every machine."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.bias is not None
        return F.linear(input, self.weight, self.bias.detach() + 0.0 * self.bias)


class AttentionHeads(nn.Module):
    """Multi-head attention without its output projection; `source_width` is the width of what keys and values are made from."""

    def __init__(self, config: BertConfig, source_width: int) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = KeyLinear(source_width, config.hidden_size)
        self.value = nn.Linear(source_width, config.hidden_size)
        self.dropout_p = config.attention_probs_dropout_prob

    def split(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, N, S, D/N]"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def project(self, source: Tensor) -> KeyValue:
        return KeyValue(self.split(self.key(source)), self.split(self.value(source)))

    def forward(self, x: Tensor, kv: KeyValue, mask: Tensor | None) -> Tensor:
        """x [B, S, D], mask bool broadcastable to [B, N, S, S'] (True: may look) -> [B, S, D]"""
        dropout = self.dropout_p if self.training else 0.0
        out = attend(self.split(self.query(x)), *kv, mask, dropout=dropout)
        return out.transpose(1, 2).flatten(2)


class AddNorm(nn.Module):
    """Dense, dropout, residual, LayerNorm (BERT's output block)."""

    def __init__(self, config: BertConfig, source_width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(source_width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module):
    """Attention with its output block, for self- and cross-attention."""

    def __init__(self, config: BertConfig, source_width: int) -> None:
        super().__init__()
        self.self = AttentionHeads(config, source_width)
        self.output = AddNorm(config, config.hidden_size)

    def forward(self, x: Tensor, kv: KeyValue, mask: Tensor | None) -> Tensor:
        return self.output(self.self(lowered(x), kv, mask), x)


class Intermediate(nn.Module):
    """The widening half of a feed-forward, exact GELU."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Self-attention over queries and text, cross-attention for the queries, a feed-forward for each of the two."""

    def __init__(self, config: BertConfig, encoder_width: int | None) -> None:
        super().__init__()
        self.attention = Attention(config, config.hidden_size)
        self.crossattention = Attention(config, encoder_width) if encoder_width else None
        self.intermediate = Intermediate(config)
        self.output = AddNorm(config, config.intermediate_size)
        self.intermediate_query = Intermediate(config)
        self.output_query = AddNorm(config, config.intermediate_size)

    def forward(
        self,
        x: Tensor,
        num_query: int,
        tokens: Tokens | None,
        mask: Tensor | None,
        past: KeyValue | None,
    ) -> tuple[Tensor, KeyValue]:
        """x [B, Q + L, D] (queries first) -> the same shape, and this layer's self-attention keys and values."""
        kv = self.attention.self.project(lowered(x))
        if past is not None:
            kv = KeyValue(torch.cat([past.key, kv.key], dim=2), torch.cat([past.value, kv.value], dim=2))
        x = self.attention(x, kv, mask)
        parts = []
        if num_query:
            q = x[:, :num_query]
            if self.crossattention is not None:
                if tokens is None:
                    raise ValueError("queries need encoder tokens to attend to")
                source = self.crossattention.self.project(tokens.embeds)
                seen = None if tokens.visible is None else tokens.visible[:, None, None, :]
                q = self.crossattention(q, KeyValue(*(tokens.per_row(t) for t in source)), seen)
            parts.append(self.output_query(self.intermediate_query(q), q))
        if x.shape[1] > num_query:
            text = x[:, num_query:]
            parts.append(self.output(self.intermediate(text), text))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], kv


class Transform(nn.Module):
    """Dense, GELU and LayerNorm in front of the language head's decoder."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x)))


class Predictions(nn.Module):
    """BERT's masked-LM head; the decoder is tied to the word embeddings."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor, word_embeddings: Tensor) -> Tensor:
        """x [..., D] -> logits [..., V]"""
        return F.linear(self.transform(x), word_embeddings, self.bias)


class LanguageHead(nn.Module):
    """Holds `predictions` under its published name."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)


class Encoder(nn.Module):
    """The layers; every `cross_attention_freq`-th of them cross-attends, from the first on."""

    def __init__(self, config: BertConfig, encoder_width: int, cross_attention_freq: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            Layer(config, encoder_width if i % cross_attention_freq == 0 else None) for i in range(config.num_hidden_layers)
        )


class Bert(nn.Module):
    """Embeddings and layers, under the published names."""

    def __init__(self, config: BertConfig, encoder_width: int, cross_attention_freq: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config, encoder_width, cross_attention_freq)


class QFormer(nn.Module):
    """The whole Q-Former. `config.vocab_size` must already count the added `[DEC]` token."""

    def __init__(self, config: BertConfig, *, encoder_width: int, cross_attention_freq: int = 2) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config, encoder_width, cross_attention_freq)
        self.cls = LanguageHead(config)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            module.bias.data.zero_()

    @property
    def width(self) -> int:
        return self.config.hidden_size

    def _run(
        self,
        queries: Tensor | None,
        texts: Sequence[Tensor],
        tokens: Tokens | None,
        mask: Tensor | None,
        past: list[KeyValue] | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        x = self.bert.embeddings(queries, texts)
        num_query = 0 if queries is None else queries.shape[1]
        cache = []
        for i, layer in enumerate(self.bert.encoder.layer):
            x, kv = layer(x, num_query, tokens, mask, None if past is None else past[i])
            cache.append(kv)
        return x, cache

    def query_pass(self, given: QFormerInput) -> tuple[Tensor, list[KeyValue]]:
        """Queries look at the encoder tokens, beside a text where one is given -> outputs [B, kept, D] of the queries that count,
        and the cache for `lm_pass` (of all)."""
        if given.ids is None:
            hidden, cache = self._run(given.queries, (), given.tokens, None)
            return hidden[:, : given.kept], cache
        assert given.mask is not None
        hidden, cache = self._run(given.queries, (given.ids,), given.tokens, _joint_mask(given.queries, given.mask))
        return hidden[:, : given.kept], cache

    def text_pass(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Text alone, bidirectional: ids and mask [B, L] -> [B, L, D]."""
        return self._run(None, (input_ids,), None, attention_mask.bool()[:, None, None, :])[0]

    def joint_pass(self, queries: Tensor, input_ids: Tensor, attention_mask: Tensor, tokens: Tokens) -> Tensor:
        """Queries and text see each other -> [B, Q + L, D]."""
        return self._run(queries, (input_ids,), tokens, _joint_mask(queries, attention_mask))[0]

    def lm_pass(self, input_ids: Tensor, attention_mask: Tensor, past: list[KeyValue]) -> Tensor:
        """Text behind the cached queries, causal over the text: ids and mask [B, L] -> hidden [B, L, D]."""
        rows, length = input_ids.shape
        num_query = past[0].key.shape[2]
        causal = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
        text = causal & attention_mask.bool()[:, None, :]
        prefix = torch.ones(rows, length, num_query, dtype=torch.bool, device=input_ids.device)
        return self._run(None, (input_ids,), None, torch.cat([prefix, text], dim=2)[:, None], past)[0]

    def passes_at_once(
        self, queries: Tensor, tokens: Tokens, attention_mask: Tensor, *, text: Tensor, decoder: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What `query_pass`, `text_pass` of the ids `text` and `lm_pass` of the ids `decoder` give, in a pass over one sequence.

        The three read the same weights and differ in what may look at what, which a mask says: queries see queries, the text sees
        itself, the decoder's text sees queries and what is before it. attention_mask [B, L] is of both texts; a decoder of None
        is left out. Fewer and larger operations, the same numbers up to rounding.
        """
        texts = [text] if decoder is None else [text, decoder]
        (rows, length), start = attention_mask.shape, queries.shape[1]
        size, end = start + length * len(texts), start + length
        own = attention_mask.bool()[:, None, :]
        mask = torch.zeros(rows, size, size, dtype=torch.bool, device=queries.device)
        mask[:, :start, :start] = True
        mask[:, start:end, start:end] = own
        if decoder is not None:
            mask[:, end:, :start] = True
            mask[:, end:, end:] = own & torch.ones(length, length, dtype=torch.bool, device=queries.device).tril()
        x = self._run(queries, texts, tokens, mask[:, None])[0]
        return x[:, :start], x[:, start:end], None if decoder is None else x[:, end:]

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> vocabulary logits [..., V]."""
        return self.cls.predictions(hidden, self.bert.embeddings.word_embeddings.weight)

    def queries_from_text_ffn(self) -> None:
        """Start every layer's query feed-forward from the text feed-forward, as BLIP-2 does when it starts from BERT."""
        for layer in self.bert.encoder.layer:
            assert isinstance(layer, Layer)
            layer.intermediate_query.load_state_dict(layer.intermediate.state_dict())
            layer.output_query.load_state_dict(layer.output.state_dict())


def _joint_mask(queries: Tensor, attention_mask: Tensor) -> Tensor:
    """queries [B, Q, D] and the mask [B, L] of a text that all see each other -> bool [B, 1, 1, Q + L]."""
    seen = torch.ones(queries.shape[:2], dtype=torch.bool, device=queries.device)
    return torch.cat([seen, attention_mask.bool()], dim=1)[:, None, None, :]
