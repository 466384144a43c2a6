"""Small samples of a space, to be shown: vectors of several sources, and what search finds near some rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_platform import layout, storage
from embedding_platform.milvus.index import ann_search
from embedding_platform.milvus.query import get_rows
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.target import Target
from embedding_platform.records import Segment, vectors_schema
from embedding_platform.spaces import Index
from embedding_platform.vectors.sampled import Sample
from embedding_platform.vectors.store import vectors_of

if TYPE_CHECKING:
    from pymilvus import MilvusClient

OWN_VECTORS = 240
OTHER_VECTORS = 60
OTHER_SOURCES = 5
"""Vectors of the source at hand, of each other one, and the most others that are looked at."""

NEIGHBOURS = 3
"""Rows whose nearest are shown, and how many of the nearest."""


@dataclass(frozen=True)
class Near:
    """A row that search found: its source, its segment, and the score as Milvus gives it."""

    source: str
    segment: Segment
    score: float


def sample_of_source(live: LiveRows) -> Sample:
    """At most OWN_VECTORS of the source."""
    sample = live.sample()
    return Sample(sample.contents[:OWN_VECTORS], sample.vectors[:OWN_VECTORS])


def samples_of_others(live: LiveRows) -> dict[str, np.ndarray]:
    """Stored vectors, float32 [n, d], of at most OTHER_SOURCES other sources of the space, by source.

    They lie evenly among those at the beginning of one shard each, live or not.
    """
    folder = layout.space_folder(live.store, live.space.key, live.fingerprint)
    own_name = live.folder.rsplit("/", 1)[-1]
    others = [name for name in storage.subfolders(folder) if name != own_name]
    step = max(1, len(others) // OTHER_SOURCES)
    found = {}
    for name in others[::step][:OTHER_SOURCES]:
        vectors = _some_vectors(storage.join(folder, name), live.space.model.dimension)
        if len(vectors):
            found[layout.source_name(name)] = vectors
    return found


def neighbours(
    client: "MilvusClient", target: Target, live: LiveRows, sample: Sample, index: Index
) -> list[tuple[Near, list[Near]]]:
    """NEIGHBOURS rows of the source, evenly among a sample, each with the rows that search finds nearest to it.

    All sources of the collection are searched. A row itself is not among its nearest.

    Raises:
        PlatformError: if Milvus fails.
    """
    count = len(sample.contents)
    places = _evenly(count, NEIGHBOURS)
    contents = {sample.contents[place]: sample.vectors[place] for place in places}
    segment_of = {segment.content_hash: segment for segment in live.segments_of(list(contents))}
    chosen = [(segment_of[content], vector) for content, vector in contents.items() if content in segment_of]
    if not chosen:
        return []
    queries = np.stack([vector for _, vector in chosen])
    hits = ann_search(client, target.collection, None, queries, NEIGHBOURS + 1, index, target.space.metric)
    ids = list(dict.fromkeys(found for row in hits for found, _ in row))
    rows = {row["id"]: row for row in get_rows(client, target.collection, ids)}
    return [
        (Near(live.source, segment, 1.0), _others(segment, found, rows))
        for (segment, _), found in zip(chosen, hits, strict=True)
    ]


def _evenly(count: int, most: int) -> np.ndarray:
    """At most so many of `count` places, ascending."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))


def _some_vectors(folder: str, dimension: int) -> np.ndarray:
    first = storage.table_names(folder)[:1]
    near = {shard: min(storage.row_count(storage.join(folder, shard)), storage.ROWS_PER_GROUP) for shard in first}
    # A shard that goes away meanwhile is left out.
    answers = iter([{shard: _evenly(rows, OTHER_VECTORS) for shard, rows in near.items() if rows}])
    tables = storage.iterate_rows(folder, vectors_schema(dimension), ["vector"], lambda: next(answers, {}))
    parts = [vectors_of(table, dimension) for table in tables]
    vectors = np.concatenate([np.empty((0, dimension), np.float32), *parts])
    # What is wrong with another source is for its own run to tell.
    return vectors[np.isfinite(vectors).all(axis=1)]


def _others(own: Segment, hits: Sequence[tuple[str, float]], rows: dict[str, dict[str, Any]]) -> list[Near]:
    found = [(rows[row_id], score) for row_id, score in hits if row_id != own.segment_id and row_id in rows]
    return [Near(row["source"], _segment(row), score) for row, score in found[:NEIGHBOURS]]


def _segment(row: dict[str, Any]) -> Segment:
    attributes = row["attributes"]
    return Segment(
        segment_id=row["id"],
        path=row["path"],
        uri=row["uri"],
        item_version=row["item_version"],
        role=row["role"],
        position=row["position"],
        start=row["start"],
        end=row["end"],
        text=row["text"] or None,
        content_hash=row["content_hash"],
        attributes=json.loads(attributes) if isinstance(attributes, str) else attributes,
    )
