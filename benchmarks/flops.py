"""The matrix products that a step has to do, in floating-point operations, from the sizes of a model.

A product of [m, k] and [k, n] is 2 m k n. Every part counts by what it owes: a frozen part in front of all that learns its
forward pass; a frozen part that gradients pass through twice that (the gradient of its input); a trained part three times (and
that of its weights); the scores of attention, which owe three times as well, are counted twice in a passed part (2 % too little).
What need not be done does not count: an input is encoded and projected once for all rows that read it, logits are taken where a
loss reads them, the half of a mini-PointNet that is the same for all points of a group is taken once, and of causal attention
half. Adapters (rank 8), position layers and heads of a few numbers are left out: together below 2 %.

Letters: T encoder tokens, C their width, Q queries, L text tokens, D Q-Former width, H width of the language model, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from benchmarks.sizes import Size

IMAGE_PATCH = 14


@dataclass
class Work:
    """GFLOP by what they are for: `frozen` forward only, `passed` frozen and passed by gradients, `trained`, and `saved`, which
    a cache or a shared encoder pass spares and which is in no total."""

    frozen: float = 0.0
    passed: float = 0.0
    trained: float = 0.0
    saved: float = 0.0

    @property
    def total(self) -> float:
        """GFLOP that are done."""
        return self.frozen + self.passed + self.trained

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> Work:
        return Work(*(getattr(self, f.name) * times for f in fields(self)))


def block(tokens: float, width: float, *, ratio: float = 4.0, seen: float | None = None) -> float:
    """A transformer block on `tokens` that look at `seen` (all, by default)."""
    return 2 * tokens * width**2 * (4 + 2 * ratio) + 4 * tokens * (tokens if seen is None else seen) * width


def vit(size: Size) -> float:
    """A picture through the ViT."""
    width, depth, _ = size.vit
    patches = (size.image // IMAGE_PATCH) ** 2
    return 2 * patches * 3 * IMAGE_PATCH**2 * width + depth * block(patches + 1, width, ratio=size.vit_ratio)


def points(size: Size) -> float:
    """A cloud through Point-BERT, its groups already made; the projection to the ViT's width is not in it."""
    width, depth, _ = size.points
    groups, members = size.groups
    each = 3 * 128 + 128 * 256 + 256 * 512 + 512 * size.encoder_dims
    places = 3 * 128 + 128 * width
    net = 2 * groups * members * each + 2 * groups * (256 * 512 + size.encoder_dims * width + places)
    return net + depth * block(groups + 1, width)


def tokens_of(size: Size, encoder: str) -> int:
    """Encoder tokens T."""
    return 1 + (size.groups[0] if encoder == "pointcloud" else (size.image // IMAGE_PATCH) ** 2)


def cross_layers(size: Size) -> int:
    """Q-Former layers that look at the encoder: every second."""
    return (size.qformer[1] + 1) // 2


def projections(size: Size, encoder: str) -> float:
    """Keys and values of the encoder tokens of one input, for all layers that read them."""
    return cross_layers(size) * 2 * tokens_of(size, encoder) * 2 * size.vit[0] * size.qformer[0]


def queries(size: Size, encoder: str, text: int = 0) -> float:
    """Queries, and text tokens that they see, through the Q-Former; keys and values of the encoder are there."""
    width, depth, _ = size.qformer
    cross = 2 * size.queries * 2 * width**2 + 4 * size.queries * tokens_of(size, encoder) * width
    return depth * block(size.queries + text, width) + cross_layers(size) * cross


def texts(size: Size, text: int) -> tuple[float, float]:
    """The text pass, and the language pass with its logits."""
    width, depth, _ = size.qformer
    head = 2 * text * (width**2 + width * size.vocabulary)
    return depth * block(text, width), depth * block(text, width, seen=size.queries + text / 2) + head


def seq2seq(size: Size, text: int, prompt: int = 4) -> float:
    """A T5 with gated feed-forwards: queries and a prompt through the encoder, a text and its logits through the decoder."""
    assert size.t5 is not None
    width, depth, heads, wide = size.t5
    inner, read = 64 * heads, size.queries + prompt
    weights = 4 * width * inner + 3 * width * wide
    encoder = 2 * read * weights + 4 * read**2 * inner
    cross = 4 * text * width * inner + 4 * read * width * inner + 4 * text * read * inner
    decoder = 2 * text * weights + 2 * text**2 * inner + cross
    return depth * (encoder + decoder) + 2 * text * width * (size.llm_vocabulary or size.vocabulary)


def llm(size: Size, length: float, *, logits: float, before: float = 0) -> float:
    """`length` new positions of a causal model behind `before` others, logits at some."""
    width, depth, _ = size.llm
    return depth * block(length, width, seen=before + length / 2) + 2 * logits * width * (size.llm_vocabulary or size.vocabulary)


def train(size: Size, modality: str, *, text: int, rows: int = 1, inputs: int | None = None, cached: bool = False) -> Work:
    """A training step of `rows` rows over `inputs` pictures or clouds (a row each, by default), by the published freeze flags;
    `cached`: the ViT's tokens come from a cache."""
    encoder = modality.removesuffix("_region")
    count = rows if inputs is None else inputs
    encoding = vit(size) if encoder == "image" else points(size)
    done = 0 if cached else count
    adapter = 2 * tokens_of(size, encoder) * size.points[0] * size.vit[0] if encoder == "pointcloud" else 0.0
    kv, look = projections(size, encoder), queries(size, encoder)
    alone, behind = texts(size, text)
    language = seq2seq(size, text) if size.t5 else llm(size, size.queries + 1 + text, logits=text)
    found = Work(frozen=encoding * done, saved=encoding * (rows - done) + kv * (rows - count))
    if modality == "image":  # nothing learns but heads
        return found + Work(frozen=kv * count + rows * (look + alone + behind + language + 3 * queries(size, encoder, text)))
    if encoder == "image":
        return found + Work(frozen=kv * count, passed=2 * rows * (look + alone + behind + language))
    return found + Work(
        trained=2 * adapter * count + 3 * (kv * count + rows * (look + alone + behind)), passed=2 * rows * language
    )


def caption(
    size: Size, modality: str, *, rows: int = 1, inputs: int | None = None, beams: int = 5, steps: int = 28, cached: bool = False
) -> Work:
    """Beam search of `steps` steps behind queries and a start token; a prompt is read once for all its beams."""
    encoder = modality.removesuffix("_region")
    count = rows if inputs is None else inputs
    encoding = vit(size) if encoder == "image" else points(size)
    adapter = 2 * tokens_of(size, encoder) * size.points[0] * size.vit[0] if encoder == "pointcloud" else 0.0
    done = 0 if cached else count
    prompt = size.queries + 1
    decode = beams * llm(size, steps, logits=steps, before=prompt)
    kv = projections(size, encoder)
    found = Work(frozen=encoding * done, saved=encoding * (rows - done) + kv * (rows - count))
    return found + Work(frozen=count * (adapter + kv) + rows * (queries(size, encoder) + llm(size, prompt, logits=1) + decode))


def giga(work: Work) -> Work:
    """In GFLOP."""
    return work * 1e-9
