"""Which search parameters reach the floor of recall at the least cost."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.index import ann_search, recall_at_k
from embedding_platform.milvus.schema import has_collection
from embedding_platform.reconcile.recall import DEPTHS, all_vectors, stored_queries
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.target import Target
from embedding_platform.settings import QualitySettings
from embedding_platform.spaces import Index
from embedding_platform.vectors.judgement import exact_neighbours

if TYPE_CHECKING:
    from pymilvus import MilvusClient

LADDER = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Values that are tried of ef and nprobe: steps of a half to a third."""

LEAST_EF = 8
"""Milvus looks at k candidates at least, so that a smaller ef is no cheaper for ten hits."""

MOST_PARTITIONS = 20
"""Partitions in which recall is measured: the first by name."""

TIMED_QUERIES = 50


@dataclass(frozen=True)
class Trial:
    """Search parameters, the lowest recall of any partition under them, and how long a search takes.

    `milliseconds` is the median of TIMED_QUERIES single searches for ten rows of the whole
    collection, through the client, one after the other.
    """

    search: dict[str, int]
    recall_at_10: float
    recall_at_100: float
    milliseconds: float

    def suffices(self, quality: QualitySettings) -> bool:
        """Whether recall reaches the floors of the settings."""
        return self.recall_at_10 >= quality.min_recall and self.recall_at_100 >= quality.min_recall_at_100


def sweep(client: "MilvusClient", target: Target, sources: Sequence[LiveRows], sample: int) -> Iterator[Trial]:
    """Try one value of the index's search parameter after the other, the cheapest first.

    Ends when everything is found. Exact neighbours are computed once, in the first partitions
    that hold rows.

    Raises:
        PlatformError: if the index has no search parameter, or the collection no rows.
    """
    index = target.space.index
    if not index.search:
        raise PlatformError(
            f"{target.space.key} has an index of type {index.type}, which has no search parameter; "
            "there is nothing to tune"
        )
    measured = [live for live in sources if len(live.versions)][:MOST_PARTITIONS]
    if not measured or not has_collection(client, target.collection):
        raise PlatformError(f"{target.space.key} holds no rows yet; run `embedding-platform run` first")
    queries = [stored_queries(live, sample) for live in measured]
    exact = [
        exact_neighbours(asked, all_vectors(live), max(DEPTHS), target.space.metric).tolist()
        for live, asked in zip(measured, queries, strict=True)
    ]
    (name,) = index.search
    for value in _values(index):
        tried = replace(index, search={name: value})
        recalls = dict.fromkeys(DEPTHS, 1.0)
        for live, asked, nearest in zip(measured, queries, exact, strict=True):
            partition = target.partition(live.source)
            for k in DEPTHS:
                hits = ann_search(client, target.collection, partition, asked, k, tried, target.space.metric)
                found = [[score for _, score in row] for row in hits]
                recalls[k] = min(recalls[k], recall_at_k(found, nearest, k, target.space.metric))
        timed = np.concatenate(queries)[:TIMED_QUERIES]
        trial = Trial(dict(tried.search), recalls[10], recalls[100], _milliseconds(client, target, timed, tried))
        yield trial
        if trial.recall_at_10 == trial.recall_at_100 == 1.0:
            return


def cheapest(trials: Sequence[Trial], quality: QualitySettings) -> Trial | None:
    """The first of the trials, which come cheapest first, that suffices."""
    return next((trial for trial in trials if trial.suffices(quality)), None)


def _values(index: Index) -> list[int]:
    if "nprobe" in index.search:
        most = index.build["nlist"]
        return [*(value for value in LADDER if value < most), most]
    return [value for value in LADDER if value >= LEAST_EF]


def _milliseconds(client: "MilvusClient", target: Target, queries: np.ndarray, index: Index) -> float:
    seconds = []
    for query in queries:
        started = time.perf_counter()
        ann_search(client, target.collection, None, query[None], min(DEPTHS), index, target.space.metric)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds))
