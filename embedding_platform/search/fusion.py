"""Two lists of rows made one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embedding_platform.milvus.index import VECTOR_FIELD, likeness
from embedding_platform.spaces import Metric

CANDIDATES = 100
"""Rows of each list, and of that of the nearest more where more are asked for: one that both lists have further
down may beat the first of one."""

RANK_CONSTANT = 60
"""What keeps the first places from deciding alone; the value that its authors found good (Cormack et al. 2009)."""


def fused(
    near: Sequence[Mapping[str, Any]],
    worded: Sequence[Mapping[str, Any]],
    vector: np.ndarray,
    metric: Metric,
    limit: int,
) -> list[dict[str, Any]]:
    """The `limit` best of the rows nearest to `vector`, float32 [d], and those found by words, both best first.

    A row's `score` is the sum of 1 / (RANK_CONSTANT + its place) over the lists that have it,
    places counted from 1 (reciprocal rank fusion, Cormack et al. 2009); `vector_score` is what
    Milvus says of its vector, whichever list brought it.
    """
    rows: dict[str, dict[str, Any]] = {}
    for place, row in enumerate(near, 1):
        rows[row["id"]] = {**row, "vector_score": row["score"], "score": 1 / (RANK_CONSTANT + place)}
    for place, row in enumerate(worded, 1):
        share = 1 / (RANK_CONSTANT + place)
        if row["id"] in rows:
            rows[row["id"]]["score"] += share
        else:
            (near_by,) = likeness(np.asarray([row[VECTOR_FIELD]], np.float32), vector, metric)
            rows[row["id"]] = {**row, "vector_score": float(near_by), "score": share}
    return sorted(rows.values(), key=lambda row: -row["score"])[:limit]
