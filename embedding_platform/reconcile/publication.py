"""`<modality>/<space>/published`: the newest complete collection against the alias that readers search."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.alias import (
    alias_target,
    is_withdrawn,
    note_published,
    point_alias,
    publications,
    withdraw,
)
from embedding_platform.milvus.index import VECTOR_FIELD, ann_search, present_index, tuned
from embedding_platform.milvus.partitions import Removed, drop_other_partitions
from embedding_platform.milvus.query import get_rows
from embedding_platform.milvus.schema import alias_name, has_collection, read_provenance
from embedding_platform.reconcile.collection import collection_increment
from embedding_platform.reconcile.placed import unplaced
from embedding_platform.reconcile.recall import Recall, lowest, recall_of
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.target import Target
from embedding_platform.settings import QualitySettings

if TYPE_CHECKING:
    from pymilvus import MilvusClient

OVERLAP_ROWS = 50
"""Rows whose neighbours are compared between the former collection and its successor."""

OVERLAP_AT = 10

MOST_UNSOUND = 20
"""Sources that are not sound; beyond them, no more are read."""


NOTHING = Removed(0, 0)


@dataclass(frozen=True)
class Gate:
    """What was measured of a collection before readers got it.

    `rows` are those of all sources; `recall_at_10` and `recall_at_100` the lowest of any
    partition. `golden` is the worst cosine between golden vectors then and now. `overlap` is
    the mean share of the OVERLAP_AT nearest rows that the collection before finds too: how
    different answers will be, not how good. None where there was nothing to measure.
    """

    rows: int
    recall_at_10: float | None
    recall_at_100: float | None
    golden: float | None
    overlap: float | None


@dataclass(frozen=True)
class PublicationReport:
    """Whether readers search the present model's collection, and what stands in the way if not.

    `waiting` maps each source that is not ready to the reason; it is empty once published. Beyond
    MOST_UNSOUND that are in the collection and not sound in it, `unread` sources were not looked at.
    `behind` maps sources that changed since the published collection held all of them.
    `removed` are partitions and rows that no source accounts for. `gate` is None where the
    alias had not to move.
    """

    alias: str
    collection: str
    previous: str | None
    moved: bool
    waiting: dict[str, str] = field(default_factory=dict)
    unread: int = 0
    behind: dict[str, str] = field(default_factory=dict)
    removed: Removed = NOTHING
    gate: Gate | None = None

    @property
    def published(self) -> bool:
        """Whether the alias points to the collection."""
        return not self.waiting


def publish(
    client: "MilvusClient",
    target: Target,
    sources: Sequence[str],
    live: Callable[[str], LiveRows],
    quality: QualitySettings,
    known: Callable[[], Sequence[str]],
    golden: Callable[[], float | None] = lambda: None,
    held_out: Callable[[], np.ndarray | None] = lambda: None,
) -> PublicationReport:
    """Point the space's alias to the target, once every source is in it and sound.

    `live` gives the rows that a source should have. The gate asks of each source: every item is
    cut or rejected, every live segment has a vector or a recorded rejection, the Milvus
    partition holds exactly the desired rows, and recall reaches the floors; and of the model,
    that it still gives its golden vectors. An alias that already points there is left alone,
    and so is one whose target was rolled back from. Partitions of sources that are not `known`
    by then go first, and rows outside of all partitions: one that was deleted while another
    collection was published is otherwise still in this one.

    Raises:
        PlatformError: if the alias leads to a collection that is not ours, golden vectors differ,
            the alias was moved meanwhile, or Milvus fails.
    """
    alias, name = target.alias, target.collection
    previous = alias_target(client, alias)
    if previous == name:
        removed = drop_other_partitions(client, name, target.layout, known)
        # It may have been rolled back from in between.
        if alias_target(client, alias) == name:
            note_published(client, name)
        behind = _not_placed(target, sources, live)
        return PublicationReport(alias, name, previous, moved=False, behind=behind, removed=removed)
    if previous:
        read_provenance(client, previous)
    found: dict[str, _Found] = {}
    waiting = _not_there(client, target, sources, live)
    for source in sources if not waiting else ():
        # The rows are not kept: memory holds the ids of one source at a time.
        found[source] = _look(client, target, live(source), quality, held_out)
        if found[source].reason:
            waiting[source] = found[source].reason
        if len(waiting) >= MOST_UNSOUND:
            break
    if waiting:
        unread = len(sources) - len(found) if found else 0
        return PublicationReport(alias, name, previous, moved=False, waiting=waiting, unread=unread)
    recalls = [one.recall for one in found.values() if one.recall is not None]
    least = lowest(recalls) if recalls else None
    gate = Gate(
        rows=sum(one.rows for one in found.values()),
        recall_at_10=least.at_10 if least else None,
        recall_at_100=least.at_100 if least else None,
        golden=golden(),
        overlap=overlap(client, target, _some_ids(sources, live), previous) if previous else None,
    )
    removed = drop_other_partitions(client, name, target.layout, known)
    if alias_target(client, alias) != previous:
        raise PlatformError(
            f"somebody else moved the alias {alias} while {name} was looked at; "
            "run again: the next run publishes what the settings name then"
        )
    moved = point_alias(client, alias, name)
    note_published(client, name)
    return PublicationReport(alias, name, previous, moved, removed=removed, gate=gate)


def roll_back(client: "MilvusClient", space_key: str) -> tuple[str, str]:
    """Point the space's alias to the collection that was published before; returns the former and the new target.

    The collection that it leaves is not published by itself again: see `reinstate`.

    Raises:
        PlatformError: if the space is not published, or no collection was before.
    """
    alias = alias_name(space_key)
    current = alias_target(client, alias)
    if current is None:
        raise PlatformError(f"{space_key} is not published, so that there is nothing to go back from")
    earlier = [
        publication.collection
        for publication in publications(client, space_key)
        if publication.number and not publication.withdrawn and publication.collection != current
    ]
    if not earlier:
        raise PlatformError(
            f"{space_key} has no collection left that was published before {current}; "
            "name the former model in the settings and run again, which embeds nothing that is still stored"
        )
    # Marked first: a run that comes in between must not move the alias forward again.
    withdraw(client, current)
    point_alias(client, alias, earlier[-1])
    # And again: a run that met the alias where it was has noted it as published once more.
    withdraw(client, current)
    return current, earlier[-1]


def reinstate(client: "MilvusClient", target: Target) -> None:
    """Allow a collection that was rolled back from to be published again.

    Raises:
        PlatformError: if there is no such collection.
    """
    if not has_collection(client, target.collection):
        raise PlatformError(f"there is no collection {target.collection} yet; run `embedding-platform run` first")
    if is_withdrawn(client, target.collection):
        withdraw(client, target.collection, withdrawn=False)


def overlap(client: "MilvusClient", target: Target, ids: Sequence[str], previous: str) -> float | None:
    """Mean share of a row's OVERLAP_AT nearest rows that target and previous collection have in common.

    Each collection is searched with its own vector of the row. None where no row is in both.
    """
    index = {
        target.collection: tuned(client, target.collection, target.space.index),
        previous: present_index(client, previous),
    }
    rows = {name: {row["id"]: row for row in get_rows(client, name, ids)} for name in index}
    shared = [row_id for row_id in ids if all(row_id in held for held in rows.values())]
    if not shared:
        return None
    nearest = []
    for name, held in rows.items():
        vectors = np.array([held[row_id][VECTOR_FIELD] for row_id in shared], np.float32)
        # Each row finds itself, and one hit more than are compared.
        hits = ann_search(client, name, None, vectors, OVERLAP_AT + 1, index[name], target.space.metric)
        nearest.append([_others(own, found) for own, found in zip(shared, hits, strict=True)])
    shares = [len(new & old) / max(len(new), 1) for new, old in zip(*nearest, strict=True)]
    return float(np.mean(shares))


def _others(own: str, hits: Sequence[tuple[str, float]]) -> set[str]:
    return {found for found, _ in [hit for hit in hits if hit[0] != own][:OVERLAP_AT]}


def _some_ids(sources: Sequence[str], live: Callable[[str], LiveRows]) -> list[str]:
    """At most OVERLAP_ROWS ids, as many of each of the first sources."""
    asked = sources[:OVERLAP_ROWS]
    each = -(-OVERLAP_ROWS // max(len(asked), 1))
    return [row_id for source in asked for row_id in live(source).versions.index[:each]][:OVERLAP_ROWS]


def _not_there(
    client: "MilvusClient", target: Target, sources: Sequence[str], live: Callable[[str], LiveRows]
) -> dict[str, str]:
    """What can be told without reading a source: so that a migration of many does not read all for each."""
    if not has_collection(client, target.collection):
        reason = f"there is no collection {target.collection} yet; materialize {target.space.key}/collection first"
        return {"every source": reason}
    if is_withdrawn(client, target.collection):
        reason = f"it was rolled back from; `embedding-platform publish {target.space.key}` takes that back"
        return {"every source": reason}
    return _not_placed(target, sources, live)


def _not_placed(target: Target, sources: Sequence[str], live: Callable[[str], LiveRows]) -> dict[str, str]:
    """Sources that the collection does not hold as they are listed now."""
    reason = f"not in {target.collection} as it is now; materialize {target.space.key}/collection for it"
    return dict.fromkeys(unplaced(target, sources, live), reason)


@dataclass(frozen=True)
class _Found:
    """What the gate found of one source: what is missing, its rows, and the recall of its partition."""

    reason: str
    rows: int = 0
    recall: Recall | None = None


def _look(
    client: "MilvusClient",
    target: Target,
    live: LiveRows,
    quality: QualitySettings,
    held_out: Callable[[], np.ndarray | None],
) -> _Found:
    if uncut := live.uncut():
        return _Found(f"{uncut} items are not cut yet")
    if live.missing:
        return _Found(f"{live.missing} segments have no vector yet")
    increment = collection_increment(client, target, live)
    if not increment.is_empty:
        counts = increment.counts()
        return _Found(
            f"Milvus differs: {counts['new']} missing, {counts['stale']} stale, {counts['orphaned']} orphaned rows"
        )
    if live.versions.empty:
        return _Found("")
    index = tuned(client, target.collection, target.space.index)
    partition = target.partition(live.source)
    recall = recall_of(client, partition, live, index, quality.recall_sample, held_out())
    return _Found(recall.shortfall(quality) if recall else "", len(live.versions), recall)
