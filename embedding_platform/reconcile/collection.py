"""`<modality>/<space>/collection`: live segments and their vectors against the rows of one Milvus partition."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import layout, records
from embedding_platform.errors import PlatformError
from embedding_platform.increments import Increment, diff
from embedding_platform.media.cutting import Cutting
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.index import ann_search, ensure_index, recall_at_k
from embedding_platform.milvus.schema import (
    Provenance,
    Row,
    alias_name,
    collection_name,
    ensure_collection,
    make_rows,
    partition_name,
    row_versions,
)
from embedding_platform.milvus.sync import SyncReport, drop_partition, read_rows, sync_partition
from embedding_platform.reconcile.embeddings import rejected_contents
from embedding_platform.reconcile.segments import live_segments, rejected_items, segments_increment
from embedding_platform.spaces import Space
from embedding_platform.vectors import store as vector_store
from embedding_platform.vectors.judgement import exact_neighbours

if TYPE_CHECKING:
    from pymilvus import MilvusClient


@dataclass(frozen=True)
class CollectionReport:
    """What syncing a source did. `recall` is None for a source without rows."""

    collection: str
    sync: SyncReport
    rows: int
    index_built: bool
    recall: float | None
    recall_queries: int
    seconds: dict[str, float]
    data_version: str


def provenance(space: Space, fingerprint: str) -> Provenance:
    """What a collection of this space and fingerprint says of itself."""
    return Provenance(
        space=space.key,
        fingerprint=fingerprint,
        model=space.model.location,
        revision=space.model.revision or "",
        dimension=space.model.dimension,
        metric=space.metric,
        normalised=space.normalised,
    )


@dataclass(frozen=True)
class LiveRows:
    """The rows that a source should have in Milvus."""

    store: str
    space: Space
    source: str
    fingerprint: str
    cutting: Cutting

    @property
    def folder(self) -> str:
        """Where the source's vectors lie."""
        return layout.vectors_folder(self.store, self.space.key, self.fingerprint, self.source)

    def versions(self) -> tuple[pd.Series, pd.Series, int]:
        """Row version by segment id, number of rows by content hash, and live segments still without a vector."""
        table = self._segments()
        contents = pd.Series(table["content_hash"].to_pylist(), dtype=object)
        held = contents.isin(vector_store.stored_hashes(self.folder, self.fingerprint))
        rejected = rejected_contents(self.store, self.space, self.source, self.fingerprint)
        missing = ~held & ~contents.isin([content for _, _, content, _ in rejected])
        versions = row_versions(table.filter(pa.array(held, pa.bool_())), self.source)
        return versions, contents[held].value_counts(), int(missing.sum())

    def uncut(self) -> int:
        """Items that the present cutter has neither cut nor rejected, whose segments are therefore unknown."""
        place = (self.store, self.space.modality, self.source, self.cutting)
        increment = segments_increment(*place)
        rejected = [path for path, *_ in rejected_items(*place)]
        return len(increment.new.append(increment.stale).difference(rejected))

    def rows(self, ids: pd.Index) -> Iterator[list[Row]]:
        """Complete rows for segment ids, one vector shard at a time."""
        table = self._segments()
        table = table.filter(pc.is_in(table["segment_id"], value_set=pa.array(ids, pa.string())))
        places = pd.Series(range(table.num_rows), index=table["content_hash"].to_pylist(), dtype="int64")
        for part in self.vectors(places.index.unique()):
            members = places.loc[places.index.isin(part.hashes)]
            order = pd.Index(part.hashes).get_indexer(members.index)
            yield make_rows(
                table.take(members.to_numpy()),
                self.source,
                part.vectors[order],
                self.space.model.location,
                [part.run_ids[place] for place in order],
                [part.embedded_at[place].isoformat() for place in order],
            )

    def vectors(self, contents: pd.Index) -> Iterator[vector_store.VectorBatch]:
        """Stored vectors of content hashes, one shard at a time."""
        return vector_store.iterate(self.folder, self.space.model.dimension, contents, self.fingerprint)

    def sample(self, most: int) -> tuple[np.ndarray, list[str]]:
        """A seeded sample of the source's vectors, float32 [n, d], and the path of one segment for each."""
        table = self._segments()
        path_of = dict(zip(table["content_hash"].to_pylist(), table["path"].to_pylist(), strict=True))
        contents = pd.Series(list(path_of), dtype=object)
        chosen = pd.Index(contents.sample(min(most, len(contents)), random_state=0), dtype=object)
        parts = list(self.vectors(chosen))
        vectors = np.concatenate([part.vectors for part in parts]) if parts else np.empty((0, 0), np.float32)
        return vectors, [path_of[content] for part in parts for content in part.hashes]

    def _segments(self) -> pa.Table:
        table = live_segments(self.store, self.space.modality, self.source, self.cutting)
        return table.filter(pc.is_in(table["role"], value_set=pa.array(self.space.roles)))


def reconcile_collection(
    client: "MilvusClient",
    store: str,
    space: Space,
    source: str,
    fingerprint: str,
    cutting: Cutting,
    recall_sample: int = 50,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CollectionReport:
    """Make the source's Milvus partition hold exactly the live segments that have a vector.

    Afterwards the index is as the space says, and recall@10 is measured on vectors of the
    source itself against exact search. `progress` hears of rows written and rows desired.

    Raises:
        PlatformError: if an item is not cut yet, if a live segment has neither vector nor
            rejection, or if Milvus does not hold the desired rows after the repairs.
    """
    live = LiveRows(store, space, source, fingerprint, cutting)
    if uncut := live.uncut():
        raise PlatformError(
            f"{uncut} items of source {source} are not cut yet, and their rows would be deleted; "
            f"materialize {space.modality}/segments for this source first"
        )
    desired, multiplicity, missing = live.versions()
    if missing:
        raise PlatformError(
            f"{missing} segments of {space.key}, source {source}, have no vector yet; "
            f"materialize {space.key}/embeddings for this source first"
        )
    name = ensure_collection(client, provenance(space, fingerprint), space.index)
    partition = partition_name(source)

    started = perf_counter()
    sync = sync_partition(client, name, partition, desired, live.rows, lambda done: progress(done, len(desired)))
    synced = perf_counter()
    if desired.empty:
        drop_partition(client, name, source)
    index_built = ensure_index(client, name, space.index, space.metric)
    indexed = perf_counter()
    recall, queries = measure_recall(client, name, live, multiplicity, recall_sample)
    return CollectionReport(
        collection=name,
        sync=sync,
        rows=len(desired),
        index_built=index_built,
        recall=recall,
        recall_queries=queries,
        seconds={"sync": synced - started, "index": indexed - synced, "recall": perf_counter() - indexed},
        data_version=records.digest(fingerprint, *desired.sort_index().to_list()),
    )


def holds_source(client: "MilvusClient", space: Space, fingerprint: str, source: str) -> bool:
    """Whether the source still has a Milvus partition, in the present collection or in the published one."""
    names = {collection_name(space.key, fingerprint), alias_target(client, alias_name(space.key))}
    return any(
        client.has_collection(name) and client.has_partition(name, partition_name(source)) for name in names if name
    )


def collection_increment(client: "MilvusClient", live: LiveRows) -> Increment:
    """Which rows are to be written to or deleted from Milvus; nothing is done."""
    desired, _, _ = live.versions()
    name = collection_name(live.space.key, live.fingerprint)
    if not client.has_collection(name):
        return diff(desired, pd.Series(dtype=object))
    return diff(desired, read_rows(client, name, partition_name(live.source)))


def measure_recall(
    client: "MilvusClient", collection: str, live: LiveRows, multiplicity: pd.Series, sample: int, k: int = 10
) -> tuple[float | None, int]:
    """Recall@k of the index against exact search in the source's partition, and the number of queries.

    Queries are a seeded sample of the partition's own vectors; `multiplicity` is the number of
    rows by content hash, since contents that several segments share count as often. None
    for a source without rows.
    """
    if multiplicity.empty:
        return None, 0
    space = live.space
    chosen = multiplicity.index.to_series().sample(min(sample, len(multiplicity)), random_state=0)
    queries = np.concatenate([part.vectors for part in live.vectors(pd.Index(chosen))])
    batches = (
        np.repeat(part.vectors, multiplicity.loc[part.hashes].to_numpy(), axis=0)
        for part in live.vectors(multiplicity.index)
    )
    exact = exact_neighbours(queries, batches, k, space.metric)
    hits = ann_search(client, collection, partition_name(live.source), queries, k, space.index, space.metric)
    found = [[score for _, score in row] for row in hits]
    return recall_at_k(found, exact.tolist(), k, space.metric), len(queries)
