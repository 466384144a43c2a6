"""`<modality>/<space>/collection`: live segments and their vectors against the rows of one Milvus partition."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from embedding_platform.errors import PlatformError
from embedding_platform.increments import Increment, diff
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.bulk_import import import_rows, settle_imports
from embedding_platform.milvus.deployment import deployment_of
from embedding_platform.milvus.index import await_searchable, ensure_index, tuned
from embedding_platform.milvus.partitions import Partition, drop_partition, has_partition
from embedding_platform.milvus.schema import Row, ensure_collection, has_collection, read_provenance
from embedding_platform.milvus.sync import (
    MOST_PROBES,
    Comparison,
    SyncReport,
    compare_partition,
    read_rows,
    sync_partition,
)
from embedding_platform.reconcile.drift import Drift, WriteAhead
from embedding_platform.reconcile.files import listing_age
from embedding_platform.reconcile.recall import Recall, recall_of
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.target import Target
from embedding_platform.settings import MilvusSettings, QualitySettings

if TYPE_CHECKING:
    from pymilvus import MilvusClient


@dataclass(frozen=True)
class CollectionReport:
    """What syncing a source did. `recall` is None for a source without rows.

    `imported` rows went to Milvus through files, apart from those that `sync` upserted.
    `seconds` tells of each step how long it took: written, indexed, searchable, verified,
    recall.
    """

    collection: str
    sync: SyncReport
    imported: int
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
    still_listed = refuse_another_listing(live)
    refuse_incomplete(live)
    space, partition = target.space, target.partition(live.source)
    ensure_collection(client, target.provenance, space.index)
    ahead = WriteAhead(live.store, partition)

    if milvus.import_root and deployment_of(client).imports_files:
        settle_imports(client, partition, milvus.import_root)
    sample = live.some(quality.audit_rows, run_id) if has_partition(client, partition) else ()
    met = compare_partition(client, partition, live.versions, sample)
    drift = ahead.drift(met)
    if not met.increment.is_empty:
        ahead.intend(met.increment, live.versions)
    total = len(live.versions)
    started = perf_counter()
    imported, found = _import_new(client, partition, live, met, milvus, still_listed, progress)
    importing = perf_counter() - started
    sync = sync_partition(
        client, partition, live.versions, live.rows, lambda done: progress(imported + done, total), found, still_listed
    )
    still_listed()
    if live.versions.empty:
        drop_partition(client, partition)

    started = perf_counter()
    index_built = ensure_index(client, partition.collection, space.index, space.metric)
    indexed = perf_counter()
    index = tuned(client, partition.collection, space.index)
    probes = [*sync.probes, *(itertools.chain.from_iterable(live.some(MOST_PROBES, run_id)) if imported else ())]
    await_searchable(client, partition, probes, index, space.metric, milvus.searchable_seconds)
    searchable = perf_counter()
    if sync.batches or imported or not ahead.is_verified:
        ahead.verify(live.versions)
    recall = recall_of(
        client,
        partition,
        live,
        index,
        quality.recall_sample,
        held_out() if total else None,
        changed=imported + sync.upserted + sync.deleted,
        rebuilt=index_built,
    )
    return CollectionReport(
        collection=partition.collection,
        sync=replace(sync, counts=met.increment.counts()),
        imported=imported,
        drift=drift,
        rows=total,
        index_built=index_built,
        recall=recall,
        seconds={
            "written": importing + sync.write_seconds,
            "indexed": indexed - started,
            "searchable": searchable - indexed,
            "verified": sync.verify_seconds,
            "recall": perf_counter() - searchable,
        },
        data_version=live.data_version,
    )


def _import_new(
    client: "MilvusClient",
    partition: Partition,
    live: LiveRows,
    found: Comparison,
    milvus: MilvusSettings,
    still_listed: Callable[[], None],
    progress: Callable[[int, int], None],
) -> tuple[int, Comparison]:
    """Import the new rows where there are many and Milvus reads files; their number, and what is left to do."""
    new = found.increment.new
    if not milvus.import_root or len(new) < milvus.import_rows or not deployment_of(client).imports_files:
        return 0, found

    def batches() -> Iterator[list[Row]]:
        for rows in live.rows(new):
            still_listed()
            yield rows

    total = len(live.versions)
    report = import_rows(client, partition, batches(), milvus.import_root, progress=lambda done: progress(done, total))
    return report.rows, compare_partition(client, partition, live.versions)


def refuse_another_listing(live: LiveRows) -> Callable[[], None]:
    """A function that refuses to go on once the source is listed anew.

    A run that was held up would otherwise undo what a later one did, and call it done.

    Raises:
        PlatformError: when the function is called and finds another listing.
    """
    place = (live.store, live.space.modality, live.source)
    listing = listing_age(*place)

    def refuse() -> None:
        if listing_age(*place) != listing:
            raise PlatformError(
                f"another run listed source {live.source} anew while this one wrote its rows; "
                "run again: the next run writes what is there now"
            )

    return refuse


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
        has_collection(client, partition.collection) and has_partition(client, partition) for partition in partitions
    )


def collection_increment(client: "MilvusClient", target: Target, live: LiveRows) -> Increment:
    """Which rows are to be written to or deleted from Milvus; nothing is done."""
    if not has_collection(client, target.collection):
        return diff(live.versions, pd.Series(dtype="str"))
    return diff(live.versions, read_rows(client, target.partition(live.source), expected=len(live.versions)))
