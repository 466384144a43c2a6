"""Make one Milvus partition hold exactly the rows it should, and prove it by reading back."""

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from embedding_platform.errors import PlatformError
from embedding_platform.increments import Increment, diff
from embedding_platform.milvus.connection import CALL_SECONDS, explaining, is_lite
from embedding_platform.milvus.index import MAX_HITS, ensure_loaded
from embedding_platform.milvus.schema import partition_name

if TYPE_CHECKING:
    from pymilvus import MilvusClient

BATCH_ROWS = 1000
BATCH_BYTES = 32 * 2**20
"""Half of the 64 MB that a Milvus server takes in one message."""

REPAIRS = 2

_DEFAULT_PARTITION = "_default"
"""Every collection has it, and none can drop it."""

_LITE_PAGE = 262_144
_HEX = "0123456789abcdef"
_ID_DIGITS = 32


@dataclass(frozen=True)
class SyncReport:
    """What one sync found and did.

    `counts` is the increment met at the start (new, stale, orphaned, unchanged), `upserted`
    and `deleted` are rows sent, `repaired` those that only the read-back showed to be wrong,
    `batches` write calls.
    """

    counts: Mapping[str, int]
    upserted: int
    deleted: int
    repaired: int
    batches: int
    write_seconds: float
    verify_seconds: float


def sync_partition(
    client: "MilvusClient",
    collection: str,
    partition: str,
    desired: pd.Series,
    rows: Callable[[pd.Index], Iterable[Sequence[Mapping[str, Any]]]],
    progress: Callable[[int], None] | None = None,
) -> SyncReport:
    """Upsert the new and stale rows, delete the orphaned ones, read all back and repair.

    `desired` maps row id (index) to row version. `rows` is given ids and yields lists of
    complete rows (`schema.Row`) for them, in any order and batching. `progress` hears after
    each call how many rows are written or deleted so far. Every call is durable by itself and
    may be repeated, so a sync that was killed is finished by the next one; where nothing
    differs, nothing is written.

    Raises:
        PlatformError: Milvus fails, or still holds other rows after two repairs.
    """
    started = time.perf_counter()
    actual = read_rows(client, collection, partition, expected=len(desired))
    verify_seconds = time.perf_counter() - started
    increment = diff(desired, actual)
    counts = increment.counts()
    done = upserted = deleted = repaired = batches = 0
    write_seconds = 0.0

    for attempt in range(1 + REPAIRS):
        if increment.is_empty:
            break
        if attempt:
            repaired += len(increment.new) + len(increment.stale) + len(increment.orphaned)
        started = time.perf_counter()
        for verb, count in _apply(client, collection, partition, increment, actual, rows):
            batches += 1
            done += count
            upserted += count if verb == "upsert" else 0
            deleted += count if verb == "delete" else 0
            if progress is not None:
                progress(done)
        written = time.perf_counter()
        actual = read_rows(client, collection, partition, expected=len(desired))
        increment = diff(desired, actual)
        write_seconds += written - started
        verify_seconds += time.perf_counter() - written

    if not increment.is_empty:
        wrong = increment.new.append(increment.stale).append(increment.orphaned)
        raise PlatformError(
            f"partition {partition} of {collection} still differs after {REPAIRS} repairs: "
            f"{len(increment.new)} missing, {len(increment.stale)} of another version or twice, "
            f"{len(increment.orphaned)} too many, such as {', '.join(map(str, wrong[:3]))}; "
            "see that nobody else writes to it, then run again"
        )
    return SyncReport(counts, upserted, deleted, repaired, batches, write_seconds, verify_seconds)


def read_rows(client: "MilvusClient", collection: str, partition: str, expected: int = 0) -> pd.Series:
    """Versions of all rows of a partition by id, at Strong consistency; an absent one is empty.

    A key that Milvus answers twice is there twice. Rows are read in ranges of the id, each
    split in 16 when it overflows, because iterators over VARCHAR keys find nothing on Milvus
    2.3.5. `expected` is a guess of the number of rows, which spares queries that overflow.
    """
    with explaining(f"look for partition {partition} of {collection}"):
        present = client.has_partition(collection, partition, timeout=CALL_SECONDS)
    found: list[Mapping[str, Any]] = []
    if present:
        ensure_loaded(client, collection)
        # Milvus Lite scans the collection for each query and knows no limit: fewer, larger pages.
        page = _LITE_PAGE if is_lite(client) else MAX_HITS
        ranges = [_Range("", None, "")]
        while expected > 0.75 * page * len(ranges):
            ranges = [part for whole in ranges for part in _split(whole)]
        while ranges:
            asked = ranges.pop()
            answer = _read_range(client, collection, partition, asked, page)
            if len(answer) < page:
                found += answer
            elif len(asked.prefix) == _ID_DIGITS:
                raise PlatformError(
                    f"partition {partition} of {collection} holds {page} rows or more from id {asked.lower!r} on; "
                    "drop the partition and run again"
                )
            else:
                ranges += _split(asked)
    ids = pd.Index([row["id"] for row in found], dtype="str")
    return pd.Series([row["version"] for row in found], index=ids, dtype="str")


def drop_partition(client: "MilvusClient", collection: str, source: str) -> None:
    """Remove a source's partition with all its rows; an absent one is no error."""
    _drop(client, collection, partition_name(source))


def drop_other_partitions(client: "MilvusClient", collection: str, sources: Iterable[str]) -> int:
    """Remove the partitions of all sources but these, with all their rows; the number removed."""
    kept = {_DEFAULT_PARTITION, *map(partition_name, sources)}
    with explaining(f"list the partitions of {collection}"):
        others = [name for name in client.list_partitions(collection, timeout=CALL_SECONDS) if name not in kept]
    for partition in others:
        _drop(client, collection, partition)
    return len(others)


def _drop(client: "MilvusClient", collection: str, partition: str) -> None:
    with explaining(f"drop partition {partition} of {collection}"):
        if not client.has_partition(collection, partition, timeout=CALL_SECONDS):
            return
        # A server drops no loaded partition; Milvus Lite cannot release one alone, and need not.
        if not is_lite(client):
            client.release_partitions(collection, [partition], timeout=CALL_SECONDS)
    with explaining(
        f"drop partition {partition} of {collection}",
        lambda: not client.has_partition(collection, partition, timeout=CALL_SECONDS),
    ):
        client.drop_partition(collection, partition, timeout=CALL_SECONDS)


def _apply(
    client: "MilvusClient",
    collection: str,
    partition: str,
    increment: Increment,
    actual: pd.Series,
    rows: Callable[[pd.Index], Iterable[Sequence[Mapping[str, Any]]]],
) -> Iterator[tuple[str, int]]:
    """Write an increment, yielding (verb, rows) after each call."""
    written = increment.new.append(increment.stale)
    repeated = actual.index[actual.index.duplicated()].unique().intersection(increment.stale)
    yield from _delete(client, collection, partition, repeated)
    if len(written):
        _ensure_partition(client, collection, partition)
        for batch in _batches(itertools.chain.from_iterable(rows(written))):
            with explaining(f"write {len(batch)} rows to {collection}"):
                client.upsert(collection, batch, partition_name=partition, timeout=CALL_SECONDS)
            yield "upsert", len(batch)
    yield from _delete(client, collection, partition, increment.orphaned)


def _delete(client: "MilvusClient", collection: str, partition: str, ids: pd.Index) -> Iterator[tuple[str, int]]:
    """Delete keys that were read from this partition, never by a filter on other fields.

    A server that was told to write a key to two partitions keeps both rows, and the partition
    named here saves the other. Milvus Lite deletes in all partitions whatever is named, but
    keeps one row per key.
    """
    for first in range(0, len(ids), BATCH_ROWS):
        batch = ids[first : first + BATCH_ROWS].tolist()
        with explaining(f"delete {len(batch)} rows from {collection}"):
            client.delete(collection, ids=batch, partition_name=partition, timeout=CALL_SECONDS)
        yield "delete", len(batch)


def _ensure_partition(client: "MilvusClient", collection: str, partition: str) -> None:
    try:
        with explaining(f"create partition {partition} of {collection}"):
            if not client.has_partition(collection, partition, timeout=CALL_SECONDS):
                client.create_partition(collection, partition, timeout=CALL_SECONDS)
    except PlatformError:
        if not client.has_partition(collection, partition, timeout=CALL_SECONDS):
            raise


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        row_size = _row_bytes(row)
        if batch and (len(batch) == BATCH_ROWS or size + row_size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += row_size
    if batch:
        yield batch


def _row_bytes(row: Mapping[str, Any]) -> int:
    """About what a row takes in a message: float32 values, UTF-8 texts, JSON, a little around."""
    texts = sum(len(value.encode()) for value in row.values() if isinstance(value, str))
    return 4 * len(row["vector"]) + texts + len(json.dumps(row["attributes"])) + 128


@dataclass(frozen=True)
class _Range:
    """Ids from `lower` to below `upper` (None: no bound); those of ours share `prefix`."""

    lower: str
    upper: str | None
    prefix: str


def _split(whole: _Range) -> list[_Range]:
    starts = [whole.lower, *(whole.prefix + digit for digit in _HEX[1:])]
    ends = [*starts[1:], whole.upper]
    return [_Range(lower, upper, whole.prefix + digit) for lower, upper, digit in zip(starts, ends, _HEX, strict=True)]


def _read_range(
    client: "MilvusClient", collection: str, partition: str, asked: _Range, page: int
) -> list[Mapping[str, Any]]:
    bounds = f'id >= "{asked.lower}"' + ("" if asked.upper is None else f' and id < "{asked.upper}"')
    with explaining(f"read the ids of partition {partition} of {collection}"):
        return list(
            client.query(
                collection,
                filter=bounds,
                output_fields=["id", "version"],
                partition_names=[partition],
                limit=page,
                consistency_level="Strong",
                timeout=CALL_SECONDS,
            )
        )
