"""`<modality>/segments`: the items of a source against the segments already cut from them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from embedding_platform import layout, records, storage
from embedding_platform.errors import RejectedError
from embedding_platform.increments import Increment, diff
from embedding_platform.media.cutting import Cutting, code_version, cut
from embedding_platform.media.limits import stands
from embedding_platform.media.listing import current_state
from embedding_platform.reconcile.files import stored_items
from embedding_platform.records import REJECTED, SEGMENTS, Item, Segment

ROWS_PER_SHARD = 50_000
"""Segments in a shard after compaction: some 50 MB of text."""

ITEMS_PER_CHUNK = 64
"""Items whose segments become durable together: a killed run repeats at most so many."""

CHANGED = "changed or went away after it was listed; the next run takes it up"
"""The one reason that does not stand: what was found wrong was wrong with other bytes."""

Reject = tuple[str, str, str, str]
"""(path, uri, version, reason) of something that a stage could not use."""


@dataclass(frozen=True)
class SegmentsReport:
    """What cutting a source did. The increment counts items, rejected ones included."""

    increment: Increment
    items: int
    segments: int
    rejected: list[Reject]
    data_version: str


def reconcile_segments(
    store: str,
    modality: str,
    source: str,
    cutting: Cutting,
    readers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SegmentsReport:
    """Cut the items that have no segments yet, chunk by durable chunk, and drop what is no longer live.

    An item that cannot be cut goes to the rejected table and is tried again when it, or our
    code for it, changes. `progress` hears of items done and items to do.
    """
    version = code_version(modality, cutting)
    folder = layout.segments_folder(store, modality, source, version)
    items = {item.path: item for item in stored_items(store, modality, source)}
    last_rejects = rejected_items(store, modality, source, cutting)
    rejects = {(row[0], row[2]): row for row in last_rejects if _lasts(row[3], cutting)}
    increment = segments_increment(store, modality, source, cutting, list(items.values()))
    needed = [items[path] for path in [*increment.new, *increment.stale]]

    with ThreadPoolExecutor(readers) as pool:
        for start in range(0, len(needed), ITEMS_PER_CHUNK):
            chunk = needed[start : start + ITEMS_PER_CHUNK]
            outcomes = list(pool.map(lambda item: _cut_one(modality, source, item, cutting), chunk))
            segments = [segment for outcome in outcomes if isinstance(outcome, list) for segment in outcome]
            if segments:
                storage.append_shard(folder, records.segments_table(segments))
            bad = [outcome for outcome in outcomes if not isinstance(outcome, list)]
            if bad:
                rejects |= {(row[0], row[2]): row for row in bad}
                _write_rejects(store, modality, source, version, list(rejects.values()))
            progress(start + len(chunk), len(needed))

    live_rejects = [row for row in rejects.values() if row[0] in items and items[row[0]].version == row[2]]
    if sorted(live_rejects) != sorted(last_rejects):
        _write_rejects(store, modality, source, version, live_rejects)
    if len(increment.stale) or len(increment.orphaned):
        _drop_dead_rows(folder, items)
    if needed:
        storage.compact_shards(folder, SEGMENTS, lambda table: _live_rows(table, items), ROWS_PER_SHARD)
    storage.remove_sibling_folders(folder)
    live = live_segments(store, modality, source, cutting, ["segment_id", "content_hash"]).sort_by("segment_id")
    data_version = records.digest(*live["segment_id"].to_pylist(), *live["content_hash"].to_pylist())
    return SegmentsReport(increment, len(items), live.num_rows, sorted(live_rejects), data_version)


def segments_increment(
    store: str, modality: str, source: str, cutting: Cutting, items: Sequence[Item] | None = None
) -> Increment:
    """Which items are to be cut, or their segments dropped; nothing is done.

    `items` are those of the last listing, for a caller that has read it already.
    """
    if items is None:
        items = stored_items(store, modality, source)
    folder = layout.segments_folder(store, modality, source, code_version(modality, cutting))
    desired = pd.Series({item.path: item.version for item in items}, dtype=object)
    rejected = rejected_items(store, modality, source, cutting)
    rejects = [(path, version) for path, _, version, reason in rejected if _lasts(reason, cutting)]
    table = storage.read_shards(folder, SEGMENTS, ["path", "item_version"])
    dealt_with = dict.fromkeys(zip(table["path"].to_pylist(), table["item_version"].to_pylist(), strict=True))
    dealt_with |= dict.fromkeys(rejects)
    paths, versions = [path for path, _ in dealt_with], [version for _, version in dealt_with]
    return diff(desired, pd.Series(versions, index=paths, dtype=object))


def live_segments(
    store: str, modality: str, source: str, cutting: Cutting, columns: Sequence[str] | None = None
) -> pa.Table:
    """The segments of the source's present items, each once; columns of SEGMENTS.

    Where a file lies is what the last listing says: the media root may have moved since it was cut.
    """
    folder = layout.segments_folder(store, modality, source, code_version(modality, cutting))
    wanted = list(columns or SEGMENTS.names)
    keys = ["segment_id", "path", "item_version"]
    table = storage.read_shards(folder, SEGMENTS, [*dict.fromkeys([*wanted, *keys])])
    live = {item.path: item for item in stored_items(store, modality, source)}
    table = _once(_live_rows(table, live))
    if "uri" in wanted:
        uris = pa.array([live[path].uri for path in table["path"].to_pylist()], pa.string())
        table = table.set_column(table.schema.get_field_index("uri"), "uri", uris)
    return table.select(wanted)


def rejected_items(store: str, modality: str, source: str, cutting: Cutting) -> list[Reject]:
    """Items that the present cutter could not cut, as (path, uri, version, reason)."""
    url = layout.rejected_segments_url(store, modality, source, code_version(modality, cutting))
    return records.rejected_rows(storage.read_table(url, REJECTED))


def check_unchanged(item: Item) -> None:
    """Make sure that what was just read of the file is what was listed and hashed.

    Raises:
        RejectedError: if the file changed since; the next listing gives it a new version.
    """
    try:
        unchanged = current_state(item.uri) == (item.size, item.modified)
    except FileNotFoundError:
        unchanged = False
    if not unchanged:
        raise RejectedError(CHANGED)


def _lasts(reason: str, cutting: Cutting) -> bool:
    """Whether a verdict stands until the item or our code changes."""
    return reason != CHANGED and stands(reason, cutting.decoding)


def _cut_one(modality: str, source: str, item: Item, cutting: Cutting) -> list[Segment] | Reject:
    outcome: list[Segment] | Reject
    try:
        outcome = cut(modality, source, item, cutting)
    except RejectedError as error:
        outcome = (item.path, item.uri, item.version, str(error))
    try:
        check_unchanged(item)
    except RejectedError as error:
        outcome = (item.path, item.uri, item.version, str(error))
    return outcome


def _drop_dead_rows(folder: str, live: dict[str, Item]) -> None:
    """Rewrite the shards that hold rows of absent or changed items; new shards first, then the old go."""
    for name in storage.table_names(folder):
        (table,) = storage.iterate_shards(folder, SEGMENTS, names=[name])
        kept = _live_rows(table, live)
        if kept.num_rows == table.num_rows:
            continue
        if kept.num_rows:
            storage.append_shard(folder, kept)
        storage.remove_shards(folder, [name])


def _live_rows(table: pa.Table, live: dict[str, Item]) -> pa.Table:
    rows = zip(table["path"].to_pylist(), table["item_version"].to_pylist(), strict=True)
    versions = {path: item.version for path, item in live.items()}
    return table.filter(pa.array([versions.get(path) == version for path, version in rows], pa.bool_()))


def _once(table: pa.Table) -> pa.Table:
    repeated = pd.Series(table["segment_id"].to_pylist(), dtype=object).duplicated()
    return table.filter(pa.array(~repeated.to_numpy(dtype=bool)))


def _write_rejects(store: str, modality: str, source: str, version: str, rows: list[Reject]) -> None:
    url = layout.rejected_segments_url(store, modality, source, version)
    storage.write_table(url, records.rejected_table(rows))
