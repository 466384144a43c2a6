"""`<modality>/segments`: the items of a source against the segments already cut from them."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from time import perf_counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import layout, records, storage
from embedding_platform.errors import RejectedError
from embedding_platform.increments import Increment, diff_sorted
from embedding_platform.inference.read_ahead import ReadAhead
from embedding_platform.inference.stopwatch import Stopwatch
from embedding_platform.media.cutting import Cutting, code_version, cut
from embedding_platform.media.limits import stands
from embedding_platform.media.listing import current_state
from embedding_platform.media.suspects import Decode, Decodes, noted_in
from embedding_platform.memory import bytes_to_hold
from embedding_platform.reconcile.files import items_table
from embedding_platform.records import ITEMS, REJECTED, SEGMENTS, Item, Segment

ROWS_PER_SHARD = 50_000
"""Segments in a shard after compaction: some 50 MB of text."""

ITEMS_PER_CHUNK = 1024
BYTES_PER_CHUNK = 256 * 2**20
SECONDS_PER_CHUNK = 60.0
"""Work that a killed run may lose: a chunk is stored when it holds so many items, or so much media, or is this old.
Segments may take as many bytes as media, in a chunk and, as often again, ahead of it; less where memory is short."""

SEGMENT_BYTES = 1024
"""What a segment takes besides its text, roughly."""

MOST_EXAMPLES = 24
"""New segments that a report holds, to be shown."""

ROWS_AT_ONCE = 200_000
"""Rows whose ids are compared with all items at once: a comparison costs as much for few rows as for many."""

_LISTED = ["path", "version"]
"""Columns of ITEMS that tell which segments are live, and of SEGMENTS those that are compared with them."""
_CUT = ["path", "item_version"]

CHANGED = "changed or went away after it was listed; the next run takes it up"
"""The one reason that does not stand: what was found wrong was wrong with other bytes."""

Reject = tuple[str, str, str, str]
"""(path, uri, version, reason) of something that a stage could not use."""

Outcome = tuple[Item, list[Segment] | Reject]
"""An item with what cutting it gave."""


@dataclass(frozen=True)
class SegmentsReport:
    """What cutting a source did. The increment counts items, rejected ones included.

    `bytes_read` is the size of the files that were cut, `some` are some of the segments that they
    gave, one of each file, at most MOST_EXAMPLES. `seconds` tell where the time went: in all
    (total), until all files were cut and stored (cut), and of the threads that cut them, summed
    over these (decode).
    """

    increment: Increment
    items: int
    segments: int
    rejected: list[Reject]
    bytes_read: int
    some: list[Segment]
    seconds: dict[str, float]
    data_version: str


def reconcile_segments(
    store: str,
    modality: str,
    source: str,
    cutting: Cutting,
    readers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
    notes: str | None = None,
) -> SegmentsReport:
    """Cut the items that have no segments yet, chunk by durable chunk, and drop what is no longer live.

    An item that cannot be cut goes to the rejected table and is tried again when it, or our
    code for it, changes. `progress` hears of items done and items to do. `notes` is the folder of
    `media.suspects`.
    """
    started, watch = perf_counter(), Stopwatch()
    version = code_version(modality, cutting)
    folder = layout.segments_folder(store, modality, source, version)
    listed = partial(items_table, store, modality, source, _LISTED)
    older = storage.sibling_folders(folder)
    items, cut_versions = listed(), _cut_versions(folder)
    last_rejects = rejected_items(store, modality, source, cutting)
    rejects = {(row[0], row[2]): row for row in last_rejects if cut_verdict_lasts(row[3], cutting)}
    increment = _increment(items, cut_versions, rejects.values())
    needed = increment.new.append(increment.stale)

    done = bytes_read = 0
    some: list[Segment] = []
    held = bytes_to_hold(BYTES_PER_CHUNK)
    # Two for each reader wait at most, fewer of large ones.
    weigh = partial(_weight, least=held // (2 * readers))
    with (
        noted_in(notes) as decodes,
        ReadAhead(
            _needed_items(store, modality, source, needed),
            partial(_cut_each, partial(_cut_one, modality, source, cutting, decodes, watch)),
            readers,
            held,
            weigh,
        ) as cut_ahead,
    ):
        for chunk in _chunks(cut_ahead, held):
            outcomes = [outcome for _, outcome in chunk]
            segments = [segment for outcome in outcomes if isinstance(outcome, list) for segment in outcome]
            if segments:
                storage.append_shard(folder, records.segments_table(segments, source))
            bad = [outcome for outcome in outcomes if not isinstance(outcome, list)]
            if bad:
                rejects |= {(row[0], row[2]): row for row in bad}
                _write_rejects(store, modality, source, version, list(rejects.values()))
            if len(some) < MOST_EXAMPLES:
                some += [outcome[0] for outcome in outcomes if isinstance(outcome, list) and outcome]
                some = some[:MOST_EXAMPLES]
            bytes_read += sum(item.size for item, _ in chunk)
            done += len(chunk)
            progress(done, len(needed))
    seconds = {**watch.seconds, "cut": perf_counter() - started} if len(needed) else {}

    live_rejects = _of_items(list(rejects.values()), items)
    if sorted(live_rejects) != sorted(last_rejects):
        _write_rejects(store, modality, source, version, live_rejects)
    if len(increment.stale) or not _is_live(cut_versions, items).all():
        _drop_dead_rows(folder, listed)
    if len(needed):
        storage.compact_shards(folder, SEGMENTS, _keep_live(listed), ROWS_PER_SHARD)
    storage.remove_sibling_folders(folder, older)
    storage.remove_leftovers(folder)
    live = live_segments(store, modality, source, cutting, ["segment_id", "row_version"]).sort_by("segment_id")
    data_version = records.column_digest(live["segment_id"], live["row_version"])
    return SegmentsReport(
        increment=increment,
        items=items.num_rows,
        segments=live.num_rows,
        rejected=sorted(live_rejects),
        bytes_read=bytes_read,
        some=some,
        seconds={"total": perf_counter() - started, **seconds},
        data_version=data_version,
    )


def segments_increment(store: str, modality: str, source: str, cutting: Cutting) -> Increment:
    """Which items are to be cut, or their segments dropped; nothing is done."""
    items = items_table(store, modality, source, _LISTED)
    folder = layout.segments_folder(store, modality, source, code_version(modality, cutting))
    rejects = rejected_items(store, modality, source, cutting)
    return _increment(items, _cut_versions(folder), [row for row in rejects if cut_verdict_lasts(row[3], cutting)])


def live_segments(
    store: str, modality: str, source: str, cutting: Cutting, columns: Sequence[str] | None = None
) -> pa.Table:
    """The segments of the source's present items, each once; columns of SEGMENTS, all if none are named.

    Without `text` and `attributes` a million of them take some hundreds of megabytes.
    """
    wanted = list(columns or SEGMENTS.names)
    empty = pa.schema([SEGMENTS.field(name) for name in wanted]).empty_table()
    return pa.concat_tables([empty, *iterate_live_segments(store, modality, source, cutting, wanted)])


def iterate_live_segments(
    store: str,
    modality: str,
    source: str,
    cutting: Cutting,
    columns: Sequence[str] | None = None,
    where: Mapping[str, pa.Array] | None = None,
) -> Iterator[pa.Table]:
    """Yield the segments of the source's present items, each once, shard by shard, so that memory holds one shard.

    `where` maps columns to the values that are asked for; of a shard without them only ids are
    read. Where a file lies is what the last listing says: the media root may have moved since
    it was cut.
    """
    folder = layout.segments_folder(store, modality, source, code_version(modality, cutting))
    wanted = list(columns or SEGMENTS.names)
    items = items_table(store, modality, source, [*_LISTED, *(["uri"] if "uri" in wanted else [])])
    asked = where or {}
    keys = [*dict.fromkeys(["segment_id", *_CUT, *asked])]
    met: list[pa.ChunkedArray] = []

    def choose() -> dict[str, np.ndarray]:
        names: list[str] = []
        rows: list[np.ndarray] = []
        ids: list[pa.ChunkedArray] = []
        for group in _groups(storage.named_shards(folder, SEGMENTS, keys)):
            table = pa.concat_tables([shard for _, shard in group])
            chosen = _is_live(table, items)
            for name, values in asked.items():
                chosen &= _is_in(table[name], values)
            ends = np.cumsum([shard.num_rows for _, shard in group])
            for (name, shard), part in zip(group, np.split(chosen, ends[:-1]), strict=True):
                names.append(name)
                rows.append(np.flatnonzero(part))
                ids.append(shard["segment_id"].filter(pa.array(part)))
        if not names:
            return {}
        first = _is_first(_joined(ids))
        if met:
            first &= ~_is_in(_joined(ids), pc.unique(_joined(met)))
        parts = np.split(first, np.cumsum([len(part) for part in rows])[:-1])
        return {name: part[kept] for name, part, kept in zip(names, rows, parts, strict=True) if kept.any()}

    needed = [*dict.fromkeys([*wanted, "segment_id", *(["path"] if "uri" in wanted else [])])]
    for table in storage.iterate_rows(folder, SEGMENTS, needed, choose):
        met.append(table["segment_id"])
        if "uri" in wanted:
            uris = items["uri"].take(pc.index_in(table["path"], items["path"]))
            table = table.set_column(table.schema.get_field_index("uri"), "uri", uris)
        yield table.select(wanted)


def rejected_items(store: str, modality: str, source: str, cutting: Cutting) -> list[Reject]:
    """Items that the present cutter could not cut, as (path, uri, version, reason)."""
    url = layout.rejected_segments_url(store, modality, source, code_version(modality, cutting))
    return records.rejected_rows(storage.read_table(url, REJECTED))


def cut_verdict_lasts(reason: str, cutting: Cutting) -> bool:
    """Whether a rejection stands until the item or our code changes."""
    return reason != CHANGED and stands(reason, cutting.decoding)


def check_unchanged(uri: str, size: int, modified: str) -> None:
    """Make sure that what was just read of the file is what was listed, with that size and change mark, and hashed.

    Raises:
        RejectedError: if the file changed since; the next listing gives it a new version.
    """
    try:
        unchanged = current_state(uri) == (size, modified)
    except FileNotFoundError:
        unchanged = False
    if not unchanged:
        raise RejectedError(CHANGED)


def _cut_one(
    modality: str, source: str, cutting: Cutting, decodes: Decodes, watch: Stopwatch, item: Item
) -> list[Segment] | Reject:
    outcome: list[Segment] | Reject
    decode = Decode("cut", modality, item.uri, item.size, item.modified)
    try:
        with watch.running("decode"):
            outcome = decodes.one(decode, cut, modality, source, item, cutting)
    except RejectedError as error:
        outcome = (item.path, item.uri, item.version, str(error))
    try:
        check_unchanged(item.uri, item.size, item.modified)
    except RejectedError as error:
        outcome = (item.path, item.uri, item.version, str(error))
    return outcome


def _needed_items(store: str, modality: str, source: str, needed: pd.Index) -> Iterator[Item]:
    """The items of those paths, a piece of the listing in memory at a time."""
    if len(needed):
        paths = pa.array(needed, pa.string())
        for piece in storage.iterate_table(layout.items_url(store, modality, source), ITEMS):
            rows = pc.index_in(paths, piece["path"]).drop_null()
            yield from records.items(piece.take(rows.sort()))


def _cut_each(cut_one: Callable[[Item], list[Segment] | Reject], item: Item) -> Iterator[Outcome]:
    yield item, cut_one(item)


def _weight(outcome: Outcome, least: int = 0) -> int:
    """About how many bytes an outcome takes, and no fewer than `least`."""
    segments = outcome[1] if isinstance(outcome[1], list) else []
    return max(least, SEGMENT_BYTES + sum(SEGMENT_BYTES + sys.getsizeof(segment.text) for segment in segments))


def _chunks(outcomes: Iterable[Outcome], most: int) -> Iterator[list[Outcome]]:
    """Outcomes in lists that are as long as a killed run may lose, and take some `most` bytes."""
    chunk: list[Outcome] = []
    size, held, opened = 0, 0, perf_counter()
    for item, outcome in outcomes:
        chunk.append((item, outcome))
        size += item.size
        held += _weight((item, outcome))
        if (
            len(chunk) >= ITEMS_PER_CHUNK
            or size >= BYTES_PER_CHUNK
            or held >= most
            or perf_counter() - opened > SECONDS_PER_CHUNK
        ):
            yield chunk
            chunk, size, held, opened = [], 0, 0, perf_counter()
    if chunk:
        yield chunk


def _increment(items: pa.Table, cut_versions: pa.Table, rejects: Iterable[Reject]) -> Increment:
    """Items against those that were cut or rejected. Dead rows of an item that was cut anew do not make it stale."""
    dealt_with = pa.concat_tables([cut_versions, _versions(list(rejects))])
    current = _is_live(dealt_with, items)
    # Of each item one row: the present version where it is there, any other where not.
    rows = np.argsort(~current, kind="stable")
    rows = pa.array(rows[_is_first(dealt_with["path"].take(pa.array(rows)))])
    once = dealt_with.take(rows.take(pc.sort_indices(dealt_with["path"].take(rows))))
    return diff_sorted(items.select(_LISTED), once)


def _of_items(rejects: list[Reject], items: pa.Table) -> list[Reject]:
    """Rejections of items as they are listed."""
    live = _is_live(_versions(rejects), items)
    return [row for row, is_live in zip(rejects, live, strict=True) if is_live]


def _versions(rejects: list[Reject]) -> pa.Table:
    paths, versions = [row[0] for row in rejects], [row[2] for row in rejects]
    return pa.table([pa.array(paths, pa.string()), pa.array(versions, pa.string())], _CUT)


def _cut_versions(folder: str) -> pa.Table:
    """Paths and versions of the items that have segments, a pair as often as some ROWS_AT_ONCE segments hold it."""
    parts = [
        pa.concat_tables([shard for _, shard in group]).group_by(_CUT).aggregate([])
        for group in _groups(storage.named_shards(folder, SEGMENTS, _CUT))
    ]
    empty = pa.schema([SEGMENTS.field(name) for name in _CUT]).empty_table()
    return pa.concat_tables([empty, *parts])


def _groups(shards: Iterable[tuple[str, pa.Table]]) -> Iterator[list[tuple[str, pa.Table]]]:
    """Shards in groups of some ROWS_AT_ONCE rows: a look-up among all items costs as much for few rows as for many."""
    group: list[tuple[str, pa.Table]] = []
    for shard in shards:
        group.append(shard)
        if sum(table.num_rows for _, table in group) >= ROWS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _drop_dead_rows(folder: str, listed: Callable[[], pa.Table]) -> None:
    """Rewrite the shards that hold rows of absent or changed items; new shards first, then the old go.

    The listing is read after the names of the shards: a shard that another run wrote under a
    newer listing is either not looked at, or judged by a listing at least as new.
    """
    names = storage.table_names(folder)
    items = listed()
    for name in names:
        try:
            (keys,) = storage.iterate_shards(folder, SEGMENTS, _CUT, [name])
            if _is_live(keys, items).all():
                continue
            (table,) = storage.iterate_shards(folder, SEGMENTS, names=[name])
        except FileNotFoundError:
            # Another run has rewritten it.
            continue
        kept = table.filter(pa.array(_is_live(table, items)))
        if kept.num_rows:
            storage.append_shard(folder, kept)
        storage.remove_shards(folder, [name])


def _keep_live(listed: Callable[[], pa.Table]) -> Callable[[pa.Table], pa.Table]:
    """What keeps live rows. The listing is read at the first call, when the shards to keep rows of have been named."""
    listing = cache(listed)
    return lambda table: table.filter(pa.array(_is_live(table, listing())))


def _is_live(table: pa.Table, items: pa.Table) -> np.ndarray:
    """Which rows, by path and item_version, are of items as they are listed; bool [rows]."""
    places = pc.index_in(table["path"], items["path"])
    return _mask(pc.equal(items["version"].take(places), table["item_version"]))


def _is_in(column: pa.ChunkedArray, values: pa.Array) -> np.ndarray:
    return _mask(pc.is_in(column, pa.array(values, pa.string())))


def _is_first(column: pa.ChunkedArray) -> np.ndarray:
    """Which rows hold a value for the first time; bool [rows]."""
    chunks = column.dictionary_encode().chunks
    codes = np.concatenate([np.zeros(0, np.int64), *(chunk.indices.to_numpy() for chunk in chunks)])
    first = np.zeros(len(codes), dtype=bool)
    first[np.unique(codes, return_index=True)[1]] = True
    return first


def _mask(verdicts: pa.ChunkedArray) -> np.ndarray:
    mask: np.ndarray = verdicts.fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
    return mask


def _joined(columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())


def _write_rejects(store: str, modality: str, source: str, version: str, rows: list[Reject]) -> None:
    url = layout.rejected_segments_url(store, modality, source, version)
    storage.write_table(url, records.rejected_table(rows))
