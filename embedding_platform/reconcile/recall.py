"""Recall of a live index against exact search, measured anew when it may have changed."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from embedding_platform import layout, records, storage
from embedding_platform.errors import PlatformError
from embedding_platform.milvus.index import VECTOR_FIELD, ann_search, recall_at_k
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.query import get_rows
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.settings import QualitySettings
from embedding_platform.spaces import Index, Metric
from embedding_platform.vectors.judgement import exact_neighbours

if TYPE_CHECKING:
    from pymilvus import MilvusClient

DEPTHS = (10, 100)
"""The k of recall@k: what a person looks at, and what a reranker reads."""

LASTING_SHARE = 0.05
"""Share of rows that may change before the recall of a large partition is measured again: exact
search reads every vector, and a graph or a clustering does not turn bad by one row in twenty."""

QUANTISED = ("IVF_SQ8",)
"""Index types whose scores are those of shortened vectors."""

MOST_WORST = 5

SMALL = 10_000
"""Rows of a partition that is measured after every change."""


@dataclass(frozen=True)
class Recall:
    """Recall@10 and recall@100 of one partition, over stored vectors and over held-out queries.

    `queries` and `held_out` are the numbers of queries; without held-out ones, their figures
    are None. `measured` is False where figures of an earlier run still stand. `worst` are the
    contents of the stored vectors that fared worst as queries, at most MOST_WORST, and the recall
    of each at the first depth at which any of them missed a row.
    """

    at_10: float
    at_100: float
    queries: int
    held_out_at_10: float | None = None
    held_out_at_100: float | None = None
    held_out: int = 0
    measured: bool = True
    worst: tuple[tuple[str, float], ...] = ()

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


def lowest(recalls: Sequence[Recall]) -> Recall:
    """The lowest of each figure, and all queries together."""

    def least(values: Iterable[float | None]) -> float | None:
        return min((value for value in values if value is not None), default=None)

    return Recall(
        at_10=min(recall.at_10 for recall in recalls),
        at_100=min(recall.at_100 for recall in recalls),
        queries=sum(recall.queries for recall in recalls),
        held_out_at_10=least(recall.held_out_at_10 for recall in recalls),
        held_out_at_100=least(recall.held_out_at_100 for recall in recalls),
        held_out=max(recall.held_out for recall in recalls),
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

    Raises:
        PlatformError: if Milvus fails, or the figure that is kept cannot be read.
    """
    rows = len(live.versions)
    if not rows:
        return None
    url = layout.recall_url(live.store, partition.collection, partition.source)
    asked = json.dumps([index.type, dict(index.build), dict(index.search), sample], sort_keys=True)
    if held_out is not None:
        asked = records.digest(asked, held_out.tobytes().hex())
    kept, figures = _kept(url)
    since = kept.get("changed", 0) + changed
    lasts = since <= LASTING_SHARE * rows and rows > SMALL if changed else kept.get("rows") == live.data_version
    if figures is not None and kept["asked"] == asked and lasts and not rebuilt:
        recall = replace(figures, measured=False)
    else:
        recall, since = measure_recall(client, partition, live, index, sample, held_out), 0
    if recall.measured or changed:
        kept = {"asked": asked, "rows": live.data_version, "changed": since, "recall": asdict(recall)}
        storage.write_bytes(url, json.dumps(kept).encode())
    return recall


def _kept(url: str) -> tuple[dict[str, Any], Recall | None]:
    """What is kept of the last measurement, and its figures; nothing before the first."""
    payload = storage.read_bytes(url)
    if payload is None:
        return {}, None
    try:
        kept = json.loads(payload)
        worst = tuple((content, share) for content, share in kept["recall"].get("worst", ()))
        kept = {name: kept[name] for name in ("asked", "rows", "changed", "recall")}
        return kept, replace(Recall(**kept["recall"]), worst=worst)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PlatformError(
            f"cannot read {url}: {error}; remove this file and run again: it is measured anew"
        ) from error


def measure_recall(
    client: "MilvusClient",
    partition: Partition,
    live: LiveRows,
    index: Index,
    sample: int,
    held_out: np.ndarray | None = None,
) -> Recall:
    """Search the partition with a seeded sample of its own vectors, and with held-out queries, float32 [q, d]."""
    return recall_against(client, partition, questions(live, sample, held_out), index, live.space.metric)


@dataclass(frozen=True)
class Questions:
    """Queries, float32 [q, d], and exact scores of each, best first; the first are the vectors of `contents`."""

    queries: np.ndarray
    contents: list[str]
    exact: list[list[float]]

    @property
    def stored(self) -> int:
        """How many of the queries are stored vectors."""
        return len(self.contents)


def questions(live: LiveRows, sample: int, held_out: np.ndarray | None) -> Questions:
    """What to ask a source's partition, and the right answers, by exhaustive search over its stored vectors."""
    contents, stored = stored_queries(live, sample)
    queries = stored if held_out is None else np.concatenate([stored, held_out])
    exact = exact_neighbours(queries, all_vectors(live), max(DEPTHS), live.space.metric)
    return Questions(queries, contents, exact.tolist())


def recall_against(
    client: "MilvusClient", partition: Partition, asked: Questions, index: Index, metric: Metric
) -> Recall:
    """Recall at both depths when the partition is searched through the index with its parameters."""
    figures = []
    worst: tuple[tuple[str, float], ...] = ()
    for k in DEPTHS:
        hits = ann_search(client, partition.collection, partition, asked.queries, k, index, metric)
        found = [[score for _, score in row] for row in hits]
        if index.type in QUANTISED:
            found = _exact_scores(client, partition, asked.queries, hits, metric)
        for part in (slice(asked.stored), slice(asked.stored, None)):
            figures.append(recall_at_k(found[part], asked.exact[part], k, metric))
        worst = worst or _worst(asked, found, k, metric)
    at_10, held_out_at_10, at_100, held_out_at_100 = figures
    held_out = len(asked.queries) - asked.stored
    if not held_out:
        return Recall(at_10, at_100, asked.stored, worst=worst)
    return Recall(at_10, at_100, asked.stored, held_out_at_10, held_out_at_100, held_out, worst=worst)


def _worst(asked: Questions, found: Sequence[Sequence[float]], k: int, metric: Metric) -> tuple[tuple[str, float], ...]:
    shares = [
        (content, recall_at_k([row], [exact], k, metric))
        for content, row, exact in zip(asked.contents, found, asked.exact, strict=False)
    ]
    return tuple(sorted((one for one in shares if one[1] < 1.0), key=lambda one: one[1])[:MOST_WORST])


def _exact_scores(
    client: "MilvusClient",
    partition: Partition,
    queries: np.ndarray,
    hits: Sequence[Sequence[tuple[str, float]]],
    metric: Metric,
) -> list[list[float]]:
    """Scores of the hits by their whole vectors; an index of shortened ones scores by those."""
    ids = list(dict.fromkeys(found for row in hits for found, _ in row))
    vectors = {row["id"]: row[VECTOR_FIELD] for row in get_rows(client, partition.collection, ids)}
    scores = []
    for query, row in zip(queries, hits, strict=True):
        found_vectors = [np.array([vectors[found] for found, _ in row], np.float32)] if row else []
        scores.append(exact_neighbours(query[None], found_vectors, len(row), metric)[0].tolist())
    return scores


def stored_queries(live: LiveRows, sample: int) -> tuple[list[str], np.ndarray]:
    """A seeded sample of the source's contents, and their vectors, float32 [q, d]."""
    contents = live.multiplicity.index.to_series()
    chosen = contents.sample(min(sample, len(contents)), random_state=0)
    parts = list(live.vectors(pd.Index(chosen)))
    return [content for part in parts for content in part.hashes], np.concatenate([part.vectors for part in parts])


def all_vectors(live: LiveRows) -> Iterator[np.ndarray]:
    """Vectors of all rows, float32 [n, d], a shard at a time; a content that several segments share comes as often."""
    for part in live.vectors(live.multiplicity.index):
        # More copies than are looked for change no figure.
        copies = np.minimum(live.multiplicity.loc[part.hashes].to_numpy(), max(DEPTHS))
        yield np.repeat(part.vectors, copies, axis=0)
