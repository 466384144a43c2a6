"""Recall of a live index against exact search, measured anew when it may have changed."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from embedding_platform import layout, records, storage
from embedding_platform.milvus.index import ann_search, recall_at_k
from embedding_platform.milvus.partitions import Partition
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.settings import QualitySettings
from embedding_platform.spaces import Index
from embedding_platform.vectors.judgement import exact_neighbours

if TYPE_CHECKING:
    from pymilvus import MilvusClient

DEPTHS = (10, 100)
"""The k of recall@k: what a person looks at, and what a reranker reads."""

LASTING_SHARE = 0.05
"""Share of rows that may change before the recall of a large partition is measured again: exact
search reads every vector, and a graph or a clustering does not turn bad by one row in twenty."""

SMALL = 10_000
"""Rows of a partition that is measured after every change."""


@dataclass(frozen=True)
class Recall:
    """Recall@10 and recall@100 of one partition, over stored vectors and over held-out queries.

    `queries` and `held_out` are the numbers of queries; without held-out ones, their figures
    are None. `measured` is False where figures of an earlier run still stand.
    """

    at_10: float
    at_100: float
    queries: int
    held_out_at_10: float | None = None
    held_out_at_100: float | None = None
    held_out: int = 0
    measured: bool = True

    def shortfall(self, quality: QualitySettings) -> str:
        """What is below the floors of the settings, in words; "" if nothing is."""
        figures = {
            "recall@10": (self.at_10, "min_recall", quality.min_recall),
            "recall@100": (self.at_100, "min_recall_at_100", quality.min_recall_at_100),
            "recall@10 of held-out queries": (self.held_out_at_10, "min_recall", quality.min_recall),
            "recall@100 of held-out queries": (self.held_out_at_100, "min_recall_at_100", quality.min_recall_at_100),
        }
        return ", ".join(
            f"{name} is {value:.3f}, below quality.{setting} {floor}"
            for name, (value, setting, floor) in figures.items()
            if value is not None and value < floor
        )


def recall_of(
    client: "MilvusClient",
    partition: Partition,
    live: LiveRows,
    index: Index,
    sample: int,
    held_out: np.ndarray | None = None,
    changed: int = 0,
    rebuilt: bool = False,
) -> Recall | None:
    """Recall of the index over the partition; None for a partition without rows.

    Measured where there is no figure for this index and these queries yet, the index was
    `rebuilt`, or more than LASTING_SHARE of the rows changed since it was measured; `changed`
    is how many just did.
    """
    rows = len(live.versions)
    if not rows:
        return None
    url = layout.recall_url(live.store, partition.collection, partition.source)
    asked = json.dumps([index.type, dict(index.build), dict(index.search), sample], sort_keys=True)
    if held_out is not None:
        asked = records.digest(asked, held_out.tobytes().hex())
    kept = json.loads(storage.read_bytes(url) or b"{}")
    since = kept.get("changed", 0) + changed
    lasts = since <= LASTING_SHARE * rows and rows > SMALL if changed else kept.get("rows") == live.data_version
    if kept.get("asked") == asked and lasts and not rebuilt:
        recall = replace(Recall(**kept["recall"]), measured=False)
    else:
        recall, since = measure_recall(client, partition, live, index, sample, held_out), 0
    if recall.measured or changed:
        kept = {"asked": asked, "rows": live.data_version, "changed": since, "recall": asdict(recall)}
        storage.write_bytes(url, json.dumps(kept).encode())
    return recall


def measure_recall(
    client: "MilvusClient",
    partition: Partition,
    live: LiveRows,
    index: Index,
    sample: int,
    held_out: np.ndarray | None = None,
) -> Recall:
    """Search the partition with a seeded sample of its own vectors, and with held-out queries, float32 [q, d]."""
    stored = stored_queries(live, sample)
    queries = stored if held_out is None else np.concatenate([stored, held_out])
    exact = exact_neighbours(queries, all_vectors(live), max(DEPTHS), live.space.metric).tolist()
    figures = []
    for k in DEPTHS:
        hits = ann_search(client, partition.collection, partition, queries, k, index, live.space.metric)
        found = [[score for _, score in row] for row in hits]
        for part in (slice(len(stored)), slice(len(stored), None)):
            figures.append(recall_at_k(found[part], exact[part], k, live.space.metric))
    at_10, held_out_at_10, at_100, held_out_at_100 = figures
    if held_out is None:
        return Recall(at_10, at_100, len(stored))
    return Recall(at_10, at_100, len(stored), held_out_at_10, held_out_at_100, len(held_out))


def stored_queries(live: LiveRows, sample: int) -> np.ndarray:
    """A seeded sample of the source's vectors, float32 [q, d]."""
    contents = live.multiplicity.index.to_series()
    chosen = contents.sample(min(sample, len(contents)), random_state=0)
    return np.concatenate([part.vectors for part in live.vectors(pd.Index(chosen))])


def all_vectors(live: LiveRows) -> Iterator[np.ndarray]:
    """Vectors of all rows, float32 [n, d], a shard at a time; a content that several segments share comes as often."""
    for part in live.vectors(live.multiplicity.index):
        yield np.repeat(part.vectors, live.multiplicity.loc[part.hashes].to_numpy(), axis=0)
