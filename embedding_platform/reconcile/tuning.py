"""Which search parameters reach the floor of recall at the least cost."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.index import ann_search
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.schema import has_collection
from embedding_platform.reconcile.recall import DEPTHS, Questions, Recall, lowest, questions, recall_against
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.target import Target
from embedding_platform.settings import QualitySettings
from embedding_platform.spaces import Index

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
    recall: Recall
    milliseconds: float


def sweep(
    client: "MilvusClient",
    target: Target,
    sources: Iterable[LiveRows],
    sample: int,
    held_out: np.ndarray | None = None,
) -> Iterator[Trial]:
    """Try one value of the index's search parameter after the other, the cheapest first.

    Ends when everything is found. Exact neighbours are computed once, in the first partitions
    that hold rows.

    Raises:
        PlatformError: if the index has no search parameter, or the collection no rows.
    """
    index, metric = target.space.index, target.space.metric
    if not index.search:
        raise PlatformError(
            f"{target.space.key} has an index of type {index.type}, which has no search parameter; "
            "there is nothing to tune"
        )
    asked: dict[Partition, Questions] = {}
    for live in islice((live for live in sources if len(live.versions)), MOST_PARTITIONS):
        asked[target.partition(live.source)] = questions(live, sample, held_out)
    if not asked or not has_collection(client, target.collection):
        raise PlatformError(f"{target.space.key} holds no rows yet; run `embedding-platform run` first")
    timed = np.concatenate([one.queries for one in asked.values()])[:TIMED_QUERIES]
    (name,) = index.search
    for value in _values(index):
        tried = replace(index, search={name: value})
        found = [recall_against(client, partition, one, tried, metric) for partition, one in asked.items()]
        trial = Trial(dict(tried.search), lowest(found), _milliseconds(client, target, timed, tried))
        yield trial
        if not trial.recall.shortfall(QualitySettings(min_recall=1, min_recall_at_100=1)):
            return


def cheapest(trials: Sequence[Trial], quality: QualitySettings) -> Trial | None:
    """The first of the trials, which come cheapest first, whose recall reaches the floors of the settings."""
    return next((trial for trial in trials if not trial.recall.shortfall(quality)), None)


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
