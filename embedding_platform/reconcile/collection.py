"""`<modality>/<space>/collection`: live segments and their vectors against the rows of one Milvus partition."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from embedding_platform.errors import PlatformError
from embedding_platform.increments import Increment, diff
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.index import await_searchable, ensure_index, tuned
from embedding_platform.milvus.partitions import Partition, drop_partition, has_partition
from embedding_platform.milvus.schema import ensure_collection, read_provenance
from embedding_platform.milvus.sync import SyncReport, compare_partition, read_rows, sync_partition
from embedding_platform.reconcile.drift import Drift, WriteAhead
from embedding_platform.reconcile.recall import Recall, recall_of
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.target import Target
from embedding_platform.settings import MilvusSettings, QualitySettings

if TYPE_CHECKING:
    from pymilvus import MilvusClient


@dataclass(frozen=True)
class CollectionReport:
    """What syncing a source did. `recall` is None for a source without rows.

    `seconds` tells of each step how long it took: written, indexed, searchable, verified,
    recall.
    """

    collection: str
    sync: SyncReport
    drift: Drift
    rows: int
    index_built: bool
    recall: Recall | None
    seconds: dict[str, float]
    data_version: str


def reconcile_collection(
    client: "MilvusClient",
    target: Target,
    live: LiveRows,
    milvus: MilvusSettings,
    quality: QualitySettings,
    run_id: str = "",
    held_out: Callable[[], np.ndarray | None] = lambda: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CollectionReport:
    """Make the source's Milvus partition hold exactly the live segments that have a vector.

    Afterwards the index is as the space says, rows just written are found by search, and
    recall is measured against exact search, where given with `held_out` queries too.
    `progress` hears of rows written and rows desired; `run_id` decides which rows are
    compared in whole this time.

    Raises:
        PlatformError: if an item is not cut yet, if a live segment has neither vector nor
            rejection, if Milvus does not hold the desired rows after the repairs, or does not
            find them in time.
    """
    refuse_incomplete(live)
    space, partition = target.space, target.partition(live.source)
    ensure_collection(client, target.provenance, space.index)
    ahead = WriteAhead(live.store, partition)

    sample = live.some(quality.audit_rows, run_id) if has_partition(client, partition) else ()
    found = compare_partition(client, partition, live.versions, sample)
    drift = ahead.drift(found)
    if not found.increment.is_empty:
        ahead.intend(found.increment, live.versions)
    total = len(live.versions)
    sync = sync_partition(client, partition, live.versions, live.rows, lambda done: progress(done, total), found)
    if live.versions.empty:
        drop_partition(client, partition)

    started = perf_counter()
    index_built = ensure_index(client, partition.collection, space.index, space.metric)
    indexed = perf_counter()
    index = tuned(client, partition.collection, space.index)
    await_searchable(client, partition, sync.probes, index, space.metric, milvus.searchable_seconds)
    searchable = perf_counter()
    if sync.batches or not ahead.is_verified:
        ahead.verify(live.versions)
    recall = recall_of(
        client,
        partition,
        live,
        index,
        quality.recall_sample,
        held_out() if total else None,
        changed=sync.upserted + sync.deleted,
        rebuilt=index_built,
    )
    return CollectionReport(
        collection=partition.collection,
        sync=sync,
        drift=drift,
        rows=total,
        index_built=index_built,
        recall=recall,
        seconds={
            "written": sync.write_seconds,
            "indexed": indexed - started,
            "searchable": searchable - indexed,
            "verified": sync.verify_seconds,
            "recall": perf_counter() - searchable,
        },
        data_version=live.data_version,
    )


def refuse_incomplete(live: LiveRows) -> None:
    """Refuse to sync a source of which not everything is cut and embedded.

    Raises:
        PlatformError: naming the asset to materialize first.
    """
    if uncut := live.uncut():
        raise PlatformError(
            f"{uncut} items of source {live.source} are not cut yet, and their rows would be deleted; "
            f"materialize {live.space.modality}/segments for this source first"
        )
    if live.missing:
        raise PlatformError(
            f"{live.missing} segments of {live.space.key}, source {live.source}, have no vector yet; "
            f"materialize {live.space.key}/embeddings for this source first"
        )


def holds_source(client: "MilvusClient", target: Target, source: str) -> bool:
    """Whether the source still has rows or a partition, in the present collection or in the published one."""
    partitions = {target.partition(source)}
    if published := alias_target(client, target.alias):
        partitions.add(Partition(published, source, read_provenance(client, published).layout))
    return any(
        client.has_collection(partition.collection) and has_partition(client, partition) for partition in partitions
    )


def collection_increment(client: "MilvusClient", target: Target, live: LiveRows) -> Increment:
    """Which rows are to be written to or deleted from Milvus; nothing is done."""
    if not client.has_collection(target.collection):
        return diff(live.versions, pd.Series(dtype="str"))
    return diff(live.versions, read_rows(client, target.partition(live.source), expected=len(live.versions)))
