"""`<modality>/<space>/collection`: live segments and their vectors against the rows of one Milvus partition."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from embedding_platform.errors import PlatformError
from embedding_platform.increments import Increment, diff
from embedding_platform.milvus.bulk_import import import_rows, settle_imports
from embedding_platform.milvus.deployment import deployment_of
from embedding_platform.milvus.index import await_searchable, ensure_index, flush_rows, tuned
from embedding_platform.milvus.partitions import Partition, drop_partition, has_partition
from embedding_platform.milvus.schema import Row, ensure_collection, has_collection
from embedding_platform.milvus.sync import (
    MOST_PROBES,
    SyncReport,
    compare_partition,
    sync_partition,
)
from embedding_platform.reconcile.drift import Drift, WriteAhead
from embedding_platform.reconcile.recall import Recall, recall_of
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.target import Target
from embedding_platform.settings import MilvusSettings, QualitySettings
from embedding_platform.spaces import Index

if TYPE_CHECKING:
    from pymilvus import MilvusClient


@dataclass(frozen=True)
class CollectionReport:
    """What syncing a source did. `recall` is None for a source without rows.

    `imported` rows went to Milvus through files, apart from those that `sync` upserted.
    `index` is the index that the collection has now, with the parameters that it is searched
    with. `seconds` tells how long all took (total), and each step: written, indexed, searchable,
    verified, recall.
    """

    collection: str
    sync: SyncReport
    imported: int
    drift: Drift
    rows: int
    index: Index
    index_built: bool
    recall: Recall | None
    seconds: dict[str, float]
    data_version: str

    @property
    def written(self) -> int:
        """Rows that this run put into Milvus."""
        return self.imported + self.sync.upserted

    @property
    def is_changed(self) -> bool:
        """Whether rows or index are others than before."""
        return bool(self.written or self.sync.deleted or self.index_built)


def reconcile_collection(
    client: "MilvusClient",
    target: Target,
    live: LiveRows,
    milvus: MilvusSettings,
    quality: QualitySettings,
    held_out: Callable[[], np.ndarray | None] = lambda: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CollectionReport:
    """Make the source's Milvus partition hold exactly the live segments that have a vector.

    Afterwards the index is as the space says, rows just written are found by search, and
    recall is measured against exact search, where given with `held_out` queries too.
    `progress` hears of rows written and rows desired. Rows that follow those which the last run
    compared in whole are compared so this time.

    Raises:
        PlatformError: if an item is not cut yet, if a live segment has neither vector nor
            rejection, if Milvus does not hold the desired rows after the repairs, or does not
            find them in time, or if another run of the source wrote rows meanwhile.
    """
    began = perf_counter()
    state = live.state()
    refuse_incomplete(live)
    space, partition, total = target.space, target.partition(live.source), len(live.versions)
    ensure_collection(client, target.provenance, space.index)
    ahead = WriteAhead(live.store, partition)
    resumed, placed = ahead.is_under_way, ahead.placed()
    audited, until = live.stretch(quality.audit_rows, ahead.audited())
    turn = _Turn(live, ahead, state)
    written = _write(client, partition, live, ahead, live.rows(audited), milvus, turn.refuse_another, progress)

    started = perf_counter()
    if partition.name:
        # Where a key places the rows, its index would have to find the few of one source, and loses them.
        flush_rows(client, partition.collection, written.rows)
    index_built = ensure_index(client, partition.collection, space.index, space.metric)
    indexed = perf_counter()
    index = tuned(client, partition.collection, space.index)
    probes = written.probes or (live.rows(live.stretch(MOST_PROBES, until)[0]) if resumed else ())
    rows = list(itertools.chain.from_iterable(probes))
    await_searchable(client, partition, rows, index, space.metric, milvus.searchable_seconds)
    searchable = perf_counter()
    recall = recall_of(
        client,
        partition,
        live,
        index,
        quality.recall_sample,
        held_out() if total else None,
        changed=written.rows,
        # What a killed sync had written is in no count.
        rebuilt=index_built or resumed,
    )
    measured = perf_counter()
    if not total:
        ahead.forget()
    elif written.rows or resumed or not ahead.is_verified:
        ahead.verify(live.versions)
    ahead.audit(until)
    ahead.place(state, placed)
    return CollectionReport(
        collection=partition.collection,
        sync=written.sync,
        imported=written.imported,
        drift=written.drift,
        rows=total,
        index=index,
        index_built=index_built,
        recall=recall,
        seconds={
            "total": perf_counter() - began,
            "written": written.sync.write_seconds,
            "indexed": indexed - started,
            "searchable": searchable - indexed,
            "verified": written.sync.verify_seconds,
            "recall": measured - searchable,
        },
        data_version=live.data_version,
    )


@dataclass(frozen=True)
class _Written:
    """What was met and done in one partition, and lists of rows to search for."""

    sync: SyncReport
    imported: int
    drift: Drift
    probes: Sequence[Iterable[Mapping[str, Any]]]

    @property
    def rows(self) -> int:
        """Rows that were written or deleted."""
        return self.imported + self.sync.upserted + self.sync.deleted


def _write(
    client: "MilvusClient",
    partition: Partition,
    live: LiveRows,
    ahead: WriteAhead,
    sample: Iterable[list[Row]],
    milvus: MilvusSettings,
    refuse_another: Callable[[], None],
    progress: Callable[[int, int], None],
) -> _Written:
    """Make the rows of the partition the desired ones, and write down beforehand what is meant to be done."""
    total = len(live.versions)
    root = milvus.import_root if deployment_of(client).imports_files else None
    if root:
        settle_imports(client, partition, root)
    met = compare_partition(client, partition, live.versions, sample)
    drift = ahead.drift(met)
    if not met.increment.is_empty:
        ahead.intend(met.increment, live.versions)
    new = met.increment.new
    started, found, imported = perf_counter(), met, 0
    if root and len(new) >= milvus.import_rows:
        batches = _each_after(refuse_another, live.rows(new))
        imported = import_rows(client, partition, batches, root, progress=lambda done: progress(done, total)).rows
        # Those that others altered are compared again, since their versions do not tell.
        found = compare_partition(client, partition, live.versions, live.rows(met.altered))
    importing = perf_counter() - started
    sync = sync_partition(
        client,
        partition,
        live.versions,
        live.rows,
        lambda done: progress(imported + done, total),
        found,
        refuse_another,
    )
    refuse_another()
    if live.versions.empty:
        drop_partition(client, partition)
    sync = replace(sync, counts=met.increment.counts(), write_seconds=sync.write_seconds + importing)
    probes = [*([sync.probes] if sync.probes else []), *(live.rows(new[:MOST_PROBES]) if imported else ())]
    return _Written(sync, imported, drift, probes)


def _each_after(refuse_another: Callable[[], None], batches: Iterable[list[Row]]) -> Iterator[list[Row]]:
    for rows in batches:
        refuse_another()
        yield rows


class _Turn:
    """One run's turn with a partition, which is over once the source is listed anew."""

    def __init__(self, live: LiveRows, ahead: WriteAhead, state: str) -> None:
        self._live, self._ahead, self._state = live, ahead, state
        self._has_written = False

    def refuse_another(self) -> None:
        """Refuse to go on once the turn is over: a run that was held up would undo what a later one did.

        It is asked before each write. What this run had written by then may stand over rows of the later
        one, which therefore counts as not placed.

        Raises:
            PlatformError: if what the source is listed as is no longer `state`.
        """
        if self._live.state() != self._state:
            if self._has_written:
                self._ahead.doubt()
            raise PlatformError(
                f"another run listed source {self._live.source} anew while this one wrote its rows; "
                "run again: the next run writes what is there now"
            )
        self._has_written = True


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


def holds_all(target: Target, live: LiveRows) -> bool:
    """Whether the collection has held all of the source since it was listed, and cut, as it is now."""
    return WriteAhead(live.store, target.partition(live.source)).is_placed(live.state())


def holds_source(client: "MilvusClient", target: Target, source: str) -> bool:
    """Whether the source still has rows or a partition in the collection that runs write to."""
    return has_collection(client, target.collection) and has_partition(client, target.partition(source))


def collection_increment(client: "MilvusClient", target: Target, live: LiveRows) -> Increment:
    """Which rows are to be written to or deleted from Milvus; nothing is done."""
    if not has_collection(client, target.collection):
        return diff(live.versions, pd.Series(dtype="str"))
    return compare_partition(client, target.partition(live.source), live.versions).increment
