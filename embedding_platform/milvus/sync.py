"""Make one Milvus partition hold exactly the rows it should, and read back what was written."""

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform.errors import PlatformError, UnsoundError
from embedding_platform.increments import Increment, diff, series_of
from embedding_platform.memory import bytes_to_hold
from embedding_platform.milvus.connection import CALL_SECONDS, explaining
from embedding_platform.milvus.deployment import deployment_of
from embedding_platform.milvus.expressions import EVERYTHING, Expression, all_of, compare, one_of
from embedding_platform.milvus.index import VECTOR_FIELD, ensure_loaded
from embedding_platform.milvus.partitions import Partition, ensure_partition, has_partition
from embedding_platform.milvus.query import get_rows, rows_where

if TYPE_CHECKING:
    from pymilvus import MilvusClient

BATCH_ROWS = 1000
BATCH_BYTES = 32 * 2**20
"""Half of the 64 MB that a Milvus server takes in one message; less where memory is short."""

REPAIRS = 2

MOST_NAMED = 20
"""Ids of wrong rows that a failure names."""

MOST_PROBES = 5
"""Rows just written that a search has to find: the first of so many batches."""

PROVENANCE_FIELDS = ("run_id", "model", "embedded_at")
"""Fields that may differ between rows of one version: a vector that was made twice has two makers, and a
model may have been moved."""

FULL_PAGE = 0.75
"""Share of a page that a range of ids is meant to fill: ids are hashes, so that ranges fill alike."""

TOUCHED_SHARE = 0.1
"""Share of a partition's rows up to which only those that were written are read back: the others were
read a moment before."""

READ_BACK = ("content_hash", "fingerprint")
"""Fields of a row just written that are read back beside id and version, a digest of all its fields."""

_PREFIX_DIGITS = 8
_PREFIXES = 16**_PREFIX_DIGITS

Rows: TypeAlias = Callable[[pd.Index], Iterable[Sequence[Mapping[str, Any]]]]
"""Given row ids, yields lists of complete rows (`schema.Row`) for them, in any order and batching."""


@dataclass(frozen=True)
class Comparison:
    """A partition against what it should hold.

    `actual` is the version by id of each row that is stale or orphaned, as Milvus has it.
    `altered` rows have the version that they should have and other contents; they are stale in
    `increment`, and not in `actual`.
    """

    actual: pd.Series
    increment: Increment
    altered: pd.Index
    seconds: float


@dataclass(frozen=True)
class SyncReport:
    """What one sync found and did.

    `counts` is the increment met at the start (new, stale, orphaned, unchanged), `upserted`
    and `deleted` are rows sent, `repaired` those that only the read-back showed to be wrong,
    `batches` write calls. `probes` are some of the rows just upserted, at most MOST_PROBES.
    """

    counts: Mapping[str, int]
    upserted: int
    deleted: int
    repaired: int
    batches: int
    write_seconds: float
    verify_seconds: float
    probes: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class _Call:
    """One write, and the rows that it wrote."""

    verb: Literal["upsert", "delete"]
    rows: int
    written: Sequence[Mapping[str, Any]] = ()


def compare_partition(
    client: "MilvusClient", partition: Partition, desired: pd.Series, sample: Iterable[Sequence[Mapping[str, Any]]] = ()
) -> Comparison:
    """Read the partition's ids and versions back and compare them with the desired ones.

    `sample` are whole rows as they should be, in batches: those of them that seem unchanged are
    read back in whole too, vector included, so that a row is found out that somebody altered
    without touching its version.
    """
    started = time.perf_counter()
    actual, increment = _compare(desired, _pages(client, partition, len(desired)))
    altered: list[str] = []
    for rows in sample if len(increment.unchanged) else ():
        unchanged = set(increment.unchanged.intersection([row["id"] for row in rows]))
        altered += differing(client, partition.collection, [row for row in rows if row["id"] in unchanged])
    if altered:
        increment = replace(
            increment,
            stale=increment.stale.append(pd.Index(altered, dtype="str")),
            unchanged=increment.unchanged.difference(altered, sort=False),
        )
    return Comparison(actual, increment, pd.Index(altered, dtype="str"), time.perf_counter() - started)


def sync_partition(
    client: "MilvusClient",
    partition: Partition,
    desired: pd.Series,
    rows: Rows,
    progress: Callable[[int], None] | None = None,
    found: Comparison | None = None,
    before_write: Callable[[], None] = lambda: None,
) -> SyncReport:
    """Upsert the new and stale rows, delete the orphaned ones, read back and repair.

    Up to TOUCHED_SHARE of the rows, those that were touched are read back, by id, version and
    READ_BACK; beyond it ids and versions of all rows of the partition.

    `desired` maps row id (index) to row version. `progress` hears after each call how many rows
    are written or deleted so far; `found` is a comparison that was made just before;
    `before_write` is called before each write, and may raise to end the sync. Every call is
    durable by itself and may be repeated, so a sync that was killed is finished by the next
    one; where nothing differs, nothing is written.

    Raises:
        PlatformError: Milvus fails, or still holds other rows after two repairs.
    """
    found = found or compare_partition(client, partition, desired)
    actual, increment, verify_seconds = found.actual, found.increment, found.seconds
    counts = increment.counts()
    done = upserted = deleted = repaired = batches = 0
    write_seconds = 0.0
    probes: list[Mapping[str, Any]] = []

    for attempt in range(1 + REPAIRS):
        if increment.is_empty:
            break
        touched = increment.new.append(increment.stale).append(increment.orphaned)
        few = len(touched) <= TOUCHED_SHARE * len(desired)
        meant: dict[str, tuple[str, ...]] = {}
        if attempt:
            repaired += len(increment.new) + len(increment.stale) + len(increment.orphaned)
        started = time.perf_counter()
        for call in _apply(client, partition, increment, actual, rows, before_write):
            batches += 1
            done += call.rows
            if call.verb == "upsert":
                upserted += call.rows
                probes += call.written[:1] if len(probes) < MOST_PROBES else ()
                meant |= {row["id"]: _read_of(row) for row in call.written} if few else {}
            else:
                deleted += call.rows
            if progress is not None:
                progress(done)
        ended = time.perf_counter()
        if few:
            actual, increment = _read_back(client, partition, desired, touched, meant)
        else:
            actual, increment = _compare(desired, _pages(client, partition, len(desired)))
        write_seconds += ended - started
        verify_seconds += time.perf_counter() - ended

    if not increment.is_empty:
        wrong = increment.new.append(increment.stale).append(increment.orphaned)
        raise UnsoundError(
            f"{partition} still differs after {REPAIRS} repairs: "
            f"{len(increment.new)} missing, {len(increment.stale)} of another version or twice, "
            f"{len(increment.orphaned)} too many, such as {', '.join(map(str, wrong[:3]))}; "
            "see that nobody else writes to it, then run again",
            check="rows",
            numbers={name: count for name, count in increment.counts().items() if name != "unchanged"},
            worst=[str(row_id) for row_id in wrong[:MOST_NAMED]],
        )
    return SyncReport(counts, upserted, deleted, repaired, batches, write_seconds, verify_seconds, tuple(probes))


def read_rows(client: "MilvusClient", partition: Partition, expected: int = 0) -> pd.Series:
    """Versions of all rows of a partition by id, at Strong consistency; an absent one is empty.

    A key that Milvus answers twice is there twice. `expected` is a guess of the number of rows,
    which spares queries that overflow.
    """
    pages = [page.rows for page in _pages(client, partition, expected)]
    return pd.concat([_series([]), *pages])


def differing(client: "MilvusClient", collection: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of those rows that Milvus holds with another value in any field but PROVENANCE_FIELDS."""
    stored = {row["id"]: row for row in get_rows(client, collection, [row["id"] for row in rows])}
    return [row["id"] for row in rows if row["id"] not in stored or not _equal(row, stored[row["id"]])]


@dataclass(frozen=True)
class _Page:
    """All rows whose ids begin with a prefix from `first` to below `last`: version by id."""

    first: int
    last: int
    rows: pd.Series


def _pages(client: "MilvusClient", partition: Partition, expected: int) -> Iterator[_Page]:
    """Read a partition in ranges of the id, each halved when it overflows.

    Iterators over VARCHAR keys find nothing on Milvus 2.3.5, and a page at a time takes little
    memory.
    """
    if partition.name and not has_partition(client, partition):
        yield _Page(0, _PREFIXES, _series([]))
        return
    ensure_loaded(client, partition.collection)
    most = deployment_of(client).page_rows
    ranges = _ranges(1 + int(expected / (FULL_PAGE * most)))
    while ranges:
        first, last = ranges.pop()
        answer = _read_range(client, partition, first, last, most)
        if len(answer) < most:
            yield _Page(first, last, _series(answer))
        elif last - first == 1:
            raise PlatformError(
                f"{partition} holds {most} rows or more from id {_lower(first)!r} on; "
                "drop what is not ours and run again"
            )
        else:
            middle = (first + last) // 2
            ranges += [(first, middle), (middle, last)]


def _compare(desired: pd.Series, pages: Iterable[_Page]) -> tuple[pd.Series, Increment]:
    """Compare page by page; the rows of stale and orphaned ids, and the increment."""
    prefixes = _prefixes(desired.index)
    order = np.argsort(prefixes, kind="stable")
    ends = prefixes[order]
    wrong: list[pd.Series] = [_series([])]
    parts: list[tuple[pd.Index, pd.Index, pd.Index]] = []
    for page in pages:
        own = order[np.searchsorted(ends, page.first) : np.searchsorted(ends, page.last)]
        part = diff(desired.iloc[own], page.rows)
        parts.append((part.new, part.stale, part.orphaned))
        wrong.append(page.rows[page.rows.index.isin(part.stale.append(part.orphaned))])
    new, stale, orphaned = (desired.index[:0].append(list(met)) for met in zip(*parts, strict=True))
    due = new.append(stale)
    unchanged = desired.index if due.empty else desired.index[~desired.index.isin(due)]
    return pd.concat(wrong), Increment(new, stale, orphaned, unchanged)


def _read_back(
    client: "MilvusClient",
    partition: Partition,
    desired: pd.Series,
    touched: pd.Index,
    meant: Mapping[str, tuple[str, ...]],
) -> tuple[pd.Series, Increment]:
    """Compare the touched rows again; one with other values of READ_BACK than were `meant` counts as of no version."""
    rows: list[dict[str, Any]] = []
    for first in range(0, len(touched), BATCH_ROWS):
        asked = one_of("id", touched[first : first + BATCH_ROWS])
        for row in _query(client, partition, asked, deployment_of(client).page_rows, READ_BACK):
            found = _read_of(row)
            rows.append(row if meant.get(row["id"], found) == found else {**row, "version": ""})
    actual = _series(rows)
    increment = diff(desired[desired.index.isin(touched)], actual)
    return actual, increment


def _read_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in READ_BACK)


def _prefixes(ids: pd.Index) -> np.ndarray:
    """The first _PREFIX_DIGITS of ids of ours, which are hexadecimal, as numbers."""
    begun = pc.utf8_slice_codeunits(pa.table({"id": pa.array(ids, pa.string())})["id"], 0, _PREFIX_DIGITS)
    fixed = begun.cast(pa.binary()).combine_chunks().cast(pa.binary(_PREFIX_DIGITS))
    digits = np.frombuffer(fixed.buffers()[1], np.uint8, count=len(fixed) * _PREFIX_DIGITS)
    values = np.where(digits > ord("9"), digits - ord("a") + 10, digits - ord("0")).astype(np.int64)
    return values.reshape(-1, _PREFIX_DIGITS) @ (16 ** np.arange(_PREFIX_DIGITS)[::-1])


def _series(rows: Sequence[Mapping[str, Any]]) -> pd.Series:
    return series_of(
        pa.array([row["id"] for row in rows], pa.string()), pa.array([row["version"] for row in rows], pa.string())
    )


def _equal(row: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    plain = [name for name in row if name not in (VECTOR_FIELD, *PROVENANCE_FIELDS)]
    vector = np.asarray(stored[VECTOR_FIELD], np.float32)
    return all(row[name] == stored[name] for name in plain) and np.array_equal(row[VECTOR_FIELD], vector)


def _apply(
    client: "MilvusClient",
    partition: Partition,
    increment: Increment,
    actual: pd.Series,
    rows: Rows,
    before_write: Callable[[], None],
) -> Iterator[_Call]:
    """Write an increment, yielding after each call what it was."""
    written = increment.new.append(increment.stale)
    repeated = actual.index[actual.index.duplicated()].unique().intersection(increment.stale)
    yield from _delete(client, partition, repeated, before_write)
    if len(written):
        ensure_partition(client, partition)
        for batch in _batches(itertools.chain.from_iterable(rows(written))):
            before_write()
            _write(client, partition, batch)
            yield _Call("upsert", len(batch), batch)
    yield from _delete(client, partition, increment.orphaned, before_write)


def _write(client: "MilvusClient", partition: Partition, batch: Sequence[Mapping[str, Any]]) -> None:
    with explaining(f"write {len(batch)} rows of {partition}"):
        if partition.name or deployment_of(client).upserts_by_key:
            client.upsert(partition.collection, batch, partition_name=partition.name or None, timeout=CALL_SECONDS)
        else:
            client.delete(partition.collection, ids=[row["id"] for row in batch], timeout=CALL_SECONDS)
            client.insert(partition.collection, batch, timeout=CALL_SECONDS)


def _delete(
    client: "MilvusClient", partition: Partition, ids: pd.Index, before_write: Callable[[], None]
) -> Iterator[_Call]:
    """Delete keys that were read from this partition, never by a filter on other fields.

    A server that was told to write a key to two partitions keeps both rows, and the partition
    named here saves the other. Milvus Lite deletes in all partitions whatever is named, but
    keeps one row per key.
    """
    for first in range(0, len(ids), BATCH_ROWS):
        batch = ids[first : first + BATCH_ROWS].tolist()
        before_write()
        with explaining(f"delete {len(batch)} rows of {partition}"):
            client.delete(partition.collection, ids=batch, partition_name=partition.name or None, timeout=CALL_SECONDS)
        yield _Call("delete", len(batch))


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    size, most = 0, bytes_to_hold(BATCH_BYTES)
    for row in rows:
        row_size = _row_bytes(row)
        if batch and (len(batch) == BATCH_ROWS or size + row_size > most):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += row_size
    if batch:
        yield batch


def _row_bytes(row: Mapping[str, Any]) -> int:
    """About what a row takes in a message: float32 values, UTF-8 texts, JSON, a little around."""
    texts = sum(len(value.encode()) for value in row.values() if isinstance(value, str))
    return 4 * len(row[VECTOR_FIELD]) + texts + len(json.dumps(row["attributes"])) + 128


def _ranges(count: int) -> list[tuple[int, int]]:
    """Ranges of ids, from one prefix to below another, that together hold every id."""
    ends = [_PREFIXES * place // count for place in range(count + 1)]
    return list(itertools.pairwise(ends))


def _lower(prefix: int) -> str:
    return f"{prefix:0{_PREFIX_DIGITS}x}" if prefix else ""


def _read_range(client: "MilvusClient", partition: Partition, first: int, last: int, most: int) -> list[dict[str, Any]]:
    # Ids that are not ours may lie before and behind all prefixes.
    above = compare("id", ">=", _lower(first))
    below = compare("id", "<", _lower(last)) if last < _PREFIXES else EVERYTHING
    return _query(client, partition, all_of(above, below), most)


def _query(
    client: "MilvusClient", partition: Partition, condition: Expression, most: int, others: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Id, version and other fields of rows that meet a condition, at most so many."""
    fields = ("id", "version", *others)
    return rows_where(client, partition.collection, partition.where(condition), fields, most, partition.names)
