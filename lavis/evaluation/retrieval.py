"""Retrieval: at which place does a query find what belongs to it? Recalls as LAVIS reports them.

Shapes: I inputs (pictures or clouds), T texts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

AT = (1, 5, 10)


def best_ranks(scores: ArrayLike, truths: Mapping[int, Sequence[int]]) -> NDArray[np.int64]:
    """For every query of `truths`, {row of scores: columns that belong to it}, how many others stand before its best column.

    `scores` [rows, columns], larger is better. Equal scores count against the query, so that columns nobody scored are no
    finds. A query without columns is not asked. ValueError for NaN or infinity and for a row or column that is not there.
    """
    table = np.asarray(scores)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError(f"scores of shape {table.shape}; accepted: a matrix of finite numbers")
    ranks = []
    for row, columns in truths.items():
        outside = [column for column in columns if not 0 <= column < table.shape[1]]
        if not 0 <= row < table.shape[0] or outside:
            raise ValueError(f"query {row} with columns {list(columns)[:10]} is outside of scores of shape {table.shape}")
        if columns:
            own = list(set(columns))
            best = table[row, own].max()
            ranks.append(int((table[row] >= best).sum() - (table[row, own] >= best).sum()))
    return np.asarray(ranks, dtype=np.int64)


def retrieval_metrics(
    scores_i2t: ArrayLike,
    scores_t2i: ArrayLike,
    *,
    txt2img: Mapping[int, int],
    img2txt: Mapping[int, Sequence[int]],
    lost: Collection[int] = (),
) -> dict[str, float]:
    """Percent found among the first 1, 5 and 10: txt_r* of texts by an input, img_r* of inputs by a text, and their means.

    scores_i2t [I, T], scores_t2i [T, I]. Inputs in `lost`, which could not be read, are never found and find nothing.
    agg_metrics is the mean of the text recalls, as in LAVIS. ValueError where there is nothing to look for.
    """
    text_queries = {image: texts for image, texts in img2txt.items() if texts}
    if not text_queries or not txt2img:
        raise ValueError(f"{len(text_queries)} inputs with a text and {len(txt2img)} texts; accepted: at least one of each")
    found = {
        "txt": best_ranks(scores_i2t, {image: texts for image, texts in text_queries.items() if image not in lost}),
        "img": best_ranks(scores_t2i, {text: [image] for text, image in txt2img.items() if image not in lost}),
    }
    asked = {"txt": len(text_queries), "img": len(txt2img)}
    metrics: dict[str, float] = {}
    for side, ranks in found.items():
        recalls = [100.0 * int((ranks < k).sum()) / asked[side] for k in AT]
        metrics |= {f"{side}_r{k}": recall for k, recall in zip(AT, recalls, strict=True)}
        metrics[f"{side}_r_mean"] = sum(recalls) / len(recalls)
    mean = (metrics["txt_r_mean"] + metrics["img_r_mean"]) / 2
    return {**metrics, "r_mean": mean, "agg_metrics": metrics["txt_r_mean"]}
