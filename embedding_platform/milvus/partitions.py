"""Where the rows of one source lie: in a Milvus partition of their own, or among others by a partition key."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import CALL_SECONDS, explaining
from embedding_platform.milvus.deployment import deployment_of
from embedding_platform.milvus.expressions import EVERYTHING, Expression, all_of, none_of
from embedding_platform.milvus.index import ensure_loaded
from embedding_platform.milvus.query import rows_where
from embedding_platform.milvus.schema import (
    KEY_FIELD,
    Layout,
    collection_name,
    has_collection,
    partition_name,
    source_filter,
)

if TYPE_CHECKING:
    from pymilvus import MilvusClient

DELETED_AT_ONCE = 1000

_DEFAULT_PARTITION = "_default"
"""Every collection has it, and none can drop it."""


class Removed(NamedTuple):
    """Whole partitions that were dropped, and single rows that were deleted."""

    partitions: int
    rows: int


@dataclass(frozen=True)
class Partition:
    """The rows of one source in one collection."""

    collection: str
    source: str
    layout: Layout = "named"

    @property
    def name(self) -> str:
        """What Milvus calls the partition; "" where a partition key places the rows."""
        return partition_name(self.source) if self.layout == "named" else ""

    @property
    def names(self) -> list[str] | None:
        """The `partition_names` of a query or search."""
        return [self.name] if self.name else None

    def where(self, condition: Expression = EVERYTHING) -> Expression:
        """The filter of a query or search for rows of this partition that meet `condition`."""
        return condition if self.name else all_of(source_filter([self.source]), condition)

    def __str__(self) -> str:
        return f"source {self.source} in {self.collection}"


def plan_layout(
    client: "MilvusClient", space_key: str, fingerprint: str, sources: int, most_named: int, words: bool = False
) -> Layout:
    """Named partitions up to `most_named` sources, a partition key beyond.

    A collection that has a key keeps it until sources are down to half of the limit, so that
    one source more or less does not make a migration each time.
    """
    if sources > most_named:
        return "keyed"
    keyed = collection_name(space_key, fingerprint, "keyed", words)
    if sources > most_named // 2 and has_collection(client, keyed):
        return "keyed"
    return "named"


def ensure_partition(client: "MilvusClient", partition: Partition) -> None:
    """Create the partition where it is not; one by key needs none."""
    if not partition.name:
        return

    def is_there() -> bool:
        return bool(client.has_partition(partition.collection, partition.name, timeout=CALL_SECONDS))

    # Another writer may create it in between.
    with explaining(f"create the partition of {partition}", is_there):
        if not is_there():
            client.create_partition(partition.collection, partition.name, timeout=CALL_SECONDS)


def has_partition(client: "MilvusClient", partition: Partition) -> bool:
    """Whether the partition is there; one by key is where it has a row."""
    with explaining(f"look for {partition}"):
        if partition.name:
            return bool(client.has_partition(partition.collection, partition.name, timeout=CALL_SECONDS))
    ensure_loaded(client, partition.collection)
    return bool(_rows(client, partition.collection, partition.where(), most=1))


def drop_partition(client: "MilvusClient", partition: Partition) -> None:
    """Remove a source's partition with all its rows; an absent one is no error."""
    if partition.name:
        _drop(client, partition.collection, partition.name)
    else:
        _delete_all(client, partition.collection, lambda: _rows(client, partition.collection, partition.where()))


def drop_other_partitions(
    client: "MilvusClient", collection: str, layout: Layout, known: Callable[[], Sequence[str]]
) -> Removed:
    """Remove the rows of all sources but those `known`, and those that somebody put outside our partitions.

    `known` is asked after Milvus: a source that comes while this runs is known before it has rows.

    Raises:
        PlatformError: if Milvus fails, or rows are still there after they were deleted.
    """
    ensure_loaded(client, collection)
    if layout == "keyed":
        return Removed(0, _delete_strays(client, collection, known))
    with explaining(f"list the partitions of {collection}"):
        present = client.list_partitions(collection, timeout=CALL_SECONDS)
    kept = {_DEFAULT_PARTITION, *map(partition_name, known())}
    others = [name for name in present if name not in kept]
    for name in others:
        _drop(client, collection, name)
    return Removed(len(others), _delete_strays(client, collection, lambda: (), _DEFAULT_PARTITION))


def _drop(client: "MilvusClient", collection: str, name: str) -> None:
    with explaining(f"drop partition {name} of {collection}"):
        if not client.has_partition(collection, name, timeout=CALL_SECONDS):
            return
        if deployment_of(client).releases_partitions:
            client.release_partitions(collection, [name], timeout=CALL_SECONDS)
    with explaining(
        f"drop partition {name} of {collection}",
        lambda: not client.has_partition(collection, name, timeout=CALL_SECONDS),
    ):
        client.drop_partition(collection, name, timeout=CALL_SECONDS)


def _delete_strays(
    client: "MilvusClient", collection: str, known: Callable[[], Sequence[str]], partition: str | None = None
) -> int:
    """Delete the rows of a collection, or of one of its partitions, whose source is none of those known."""
    sources = known()
    condition = none_of(KEY_FIELD, sources) if sources else EVERYTHING

    def strays() -> list[Mapping[str, Any]]:
        rows = _rows(client, collection, condition, partition=partition)
        now = known() if rows else ()
        return [row for row in rows if row["source"] not in now]

    return _delete_all(client, collection, strays, partition)


def _delete_all(
    client: "MilvusClient",
    collection: str,
    page: Callable[[], Sequence[Mapping[str, Any]]],
    partition: str | None = None,
) -> int:
    """Delete rows by their keys, a page at a time: a filter would reach into other partitions on Milvus Lite."""
    deleted = 0
    last: list[str] = []
    while ids := sorted(row["id"] for row in page()):
        if ids == last:
            raise PlatformError(
                f"{len(ids)} rows of {collection} are still there after they were deleted, such as {ids[0]}; "
                "see that nobody else writes to it, then run again"
            )
        with explaining(f"delete {len(ids)} rows from {collection}"):
            client.delete(collection, ids=ids, partition_name=partition, timeout=CALL_SECONDS)
        deleted, last = deleted + len(ids), ids
    return deleted


def _rows(
    client: "MilvusClient",
    collection: str,
    condition: Expression,
    most: int = DELETED_AT_ONCE,
    partition: str | None = None,
) -> list[dict[str, Any]]:
    """Id and source of rows that meet a condition."""
    return rows_where(client, collection, condition, ("id", "source"), most, [partition] if partition else None)
