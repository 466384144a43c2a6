"""`<modality>/<space>/published`: the newest complete collection against the alias that readers search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedding_platform.media.cutting import Cutting
from embedding_platform.milvus.alias import alias_target, point_alias
from embedding_platform.milvus.schema import alias_name, collection_name
from embedding_platform.milvus.sync import drop_other_partitions
from embedding_platform.reconcile.collection import LiveRows, collection_increment, measure_recall
from embedding_platform.settings import QualitySettings
from embedding_platform.spaces import Space

if TYPE_CHECKING:
    from pymilvus import MilvusClient


@dataclass(frozen=True)
class PublicationReport:
    """Whether readers search the present model's collection, and what stands in the way if not.

    `waiting` maps each source that is not ready to the reason; it is empty once published.
    `dropped` is the number of partitions removed whose sources are gone.
    """

    alias: str
    collection: str
    previous: str | None
    moved: bool
    waiting: dict[str, str]
    dropped: int

    @property
    def published(self) -> bool:
        """Whether the alias points to the collection."""
        return not self.waiting


def publish(
    client: "MilvusClient",
    store: str,
    space: Space,
    fingerprint: str,
    cutting: Cutting,
    sources: Sequence[str],
    quality: QualitySettings,
    known: Sequence[str] = (),
) -> PublicationReport:
    """Point the space's alias to the collection of this fingerprint, once every source is in it and sound.

    The gate asks of each source: every item is cut or rejected, every live segment has a vector
    or a recorded rejection, the Milvus partition holds exactly the desired rows, and recall@10
    reaches the floor. An alias that already points there is left alone. Partitions of sources
    that are neither in `sources` nor in `known` go first: one that was deleted while another
    collection was published is otherwise still in this one.
    """
    alias, name = alias_name(space.key), collection_name(space.key, fingerprint)
    previous = alias_target(client, alias)
    if previous == name:
        dropped = drop_other_partitions(client, name, [*sources, *known])
        return PublicationReport(alias, name, previous, moved=False, waiting={}, dropped=dropped)
    waiting = {}
    for source in sources:
        reason = _what_is_missing(client, name, LiveRows(store, space, source, fingerprint, cutting), quality)
        if reason:
            waiting[source] = reason
    if not waiting and not client.has_collection(name):
        waiting["every source"] = f"there is no collection {name} yet; materialize {space.key}/collection first"
    if waiting:
        return PublicationReport(alias, name, previous, moved=False, waiting=waiting, dropped=0)
    dropped = drop_other_partitions(client, name, [*sources, *known])
    moved = point_alias(client, alias, name)
    return PublicationReport(alias, name, previous, moved=moved, waiting={}, dropped=dropped)


def _what_is_missing(client: "MilvusClient", collection: str, live: LiveRows, quality: QualitySettings) -> str | None:
    if uncut := live.uncut():
        return f"{uncut} items are not cut yet"
    desired, multiplicity, missing = live.versions()
    if missing:
        return f"{missing} segments have no vector yet"
    increment = collection_increment(client, live)
    if not increment.is_empty:
        counts = increment.counts()
        return f"Milvus differs: {counts['new']} missing, {counts['stale']} stale, {counts['orphaned']} orphaned rows"
    if desired.empty:
        return None
    recall, _ = measure_recall(client, collection, live, multiplicity, quality.recall_sample)
    if recall is not None and recall < quality.min_recall:
        return f"recall@10 is {recall:.3f}, below quality.min_recall {quality.min_recall}"
    return None
