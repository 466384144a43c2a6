"""`<modality>/files`: the listing of a source against its last listing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import layout, records, storage
from embedding_platform.buckets import among, bucket_of, counts_with, folder_of, is_superseded, sources_of
from embedding_platform.errors import PlatformError
from embedding_platform.increments import NOTHING, Increment, diff, diff_sorted, series_of
from embedding_platform.media.items import Listing, classify, item_states, list_items, rejected_state
from embedding_platform.media.limits import USUAL_LIMITS, not_readable_now
from embedding_platform.media.listing import entries_table, list_sources, may_be_emptied, shares
from embedding_platform.media.recognition import claimed
from embedding_platform.media.suspects import noted_in
from embedding_platform.records import ITEMS, REJECTED, Item
from embedding_platform.settings import DecodingSettings, ListingSettings
from embedding_platform.spaces import MODALITIES

USUAL_GUARD = ListingSettings()

_STATES = ["path", "state"]


@dataclass(frozen=True)
class FilesReport:
    """What a listing found and changed, and how many seconds it took. `table` is its items, of schema ITEMS."""

    increment: Increment
    table: pa.Table
    rejected: list[tuple[str, str, str, str]]
    skipped: int
    hashed: int
    seconds: float

    @property
    def items(self) -> list[Item]:
        """The items, each as an object."""
        return records.items(self.table)

    @property
    def bytes_listed(self) -> int:
        """The size of all items."""
        return pc.sum(self.table["size"], min_count=0).as_py()

    @property
    def data_version(self) -> str:
        """A hash of all paths and contents, equal for equal listings."""
        return records.column_digest(self.table["path"], self.table["version"])


def reconcile_files(
    store: str,
    media_root: str,
    modality: str,
    source: str,
    guard: ListingSettings = USUAL_GUARD,
    limits: DecodingSettings = USUAL_LIMITS,
    notes: str | None = None,
) -> FilesReport:
    """List one modality of a source and replace its tables where something changed.

    What has been read of new and changed files is durable chunk by chunk: a run that follows one
    that was cut off does not read it again. A source that is superseded, since `guard` shares out its
    folder otherwise, has no files. `notes` is the folder of `media.suspects`.

    Raises:
        PlatformError: if the media root cannot be reached, or holds no folder any more, or the
            source was large and is found empty; the last listing stays.
    """
    started = perf_counter()
    while True:
        age = listing_age(store, modality, source)
        known, known_rejected = _last_listings(store, source)
        examined, examined_rejects = _examined(store, modality, source)
        entries = entries_table(media_root, source, guard.buckets)
        with noted_in(notes) as decodes:
            listing: Listing = list_items(
                modality,
                media_root,
                source,
                {**known, modality: pa.concat_tables([known[modality], examined])},
                {**known_rejected, modality: [*examined_rejects, *known_rejected[modality]]},
                limits,
                partial(_keep_examined, store, modality, source),
                decodes,
                entries,
            )
        # A run that was held up must not put an older listing in the place of a newer one.
        if listing_age(store, modality, source) == age:
            break
    if not (listing.table.num_rows or listing.rejected):
        present_sources(store, media_root, guard)
    if not listing.media and not is_superseded(source, guard.buckets):
        refuse_emptied(store, media_root, source, guard, _whole_folder(media_root, source, entries))
    increment = diff_sorted(*(table.select(["path", "version"]) for table in (listing.table, known[modality])))
    if not listing.table.equals(known[modality]):
        storage.write_table(layout.items_url(store, modality, source), listing.table)
    if listing.rejected != known_rejected[modality]:
        url = layout.rejected_items_url(store, modality, source)
        storage.write_table(url, records.rejected_table(listing.rejected))
    for folder in (layout.examined_folder, layout.rejected_examined_folder):
        storage.remove(folder(store, modality, source))
    seconds = perf_counter() - started
    return FilesReport(increment, listing.table, listing.rejected, listing.skipped, listing.hashed, seconds)


def present_sources(store: str, media_root: str, guard: ListingSettings = USUAL_GUARD) -> list[str]:
    """Names of the sources under the media root, sorted: its folders, and the buckets of those that `guard` shares out.

    Raises:
        PlatformError: if the root cannot be reached, or holds no folder although sources were
            listed there that `guard` does not allow to be emptied: a disk that is not mounted
            leaves an empty folder in its place. Or if a folder has the name of a bucket.
    """
    folders = list_sources(media_root)
    if reserved := [bucket for bucket in map(bucket_of, folders) if bucket]:
        raise PlatformError(
            f"folder {reserved[0].name} under {media_root} has a name that stands for a part of folder "
            f"{reserved[0].folder}; rename it"
        )
    present = [source for folder in folders for source in sources_of(folder, guard.buckets)]
    if not present:
        gone = {source for modality in MODALITIES for source in listed_sources(store, modality)}
        if len(among(gone, guard.allow_emptied)) < len(gone):
            raise PlatformError(
                f"media_root {media_root} holds no folder, but {len(gone)} sources were indexed from it; "
                "mount it, or name them all in listing.allow_emptied if everything is meant to go"
            )
    return sorted(present)


def refuse_emptied(store: str, media_root: str, source: str, guard: ListingSettings, whole: pa.Table) -> None:
    """Refuse to believe that a large source, which was just found empty, is meant to be.

    A local folder that is gone altogether was removed by someone, and is believed. So is a bucket that is empty
    where others of its folder are not: it is as large as its folder. `whole` are the files of all of them, of schema
    ENTRIES, as the same look found them.

    Raises:
        PlatformError: if the last listings of the source hold as many files as a large one has,
            and `guard` does not allow it to be emptied.
    """
    if among([source], guard.allow_emptied) or not may_be_emptied(media_root, source):
        return
    folder, there = folder_of(source), whole["path"].to_pylist()
    is_bucket = folder != source
    if is_bucket and any(map(claimed, there)):
        return
    files: set[str] = set()
    for modality in MODALITIES:
        for own in among(once_listed(store, modality), [folder]):
            files.update(items_table(store, modality, own, ["path"])["path"].to_pylist())
            files.update(row[0] for row in stored_rejects(store, modality, own))
    # What a file is, its content decides: one without a name that tells has been listed by it.
    if is_bucket and not files.isdisjoint(there):
        return
    if len(files) >= guard.large_source:
        raise PlatformError(
            f"source {source} under {media_root} holds no media, but {len(files)} files were listed there before; "
            f"mount it again, or name {folder} in listing.allow_emptied if all of them are meant to go"
        )


def classify_source(
    store: str,
    media_root: str,
    source: str,
    limits: DecodingSettings = USUAL_LIMITS,
    notes: str | None = None,
    listed: pa.Table | None = None,
) -> dict[str, dict[str, str]]:
    """State by path by modality of the files that a source holds now, without hashing known ones.

    `notes` is the folder of `media.suspects`. `listed` are those files, of schema ENTRIES, where they have been listed
    already.
    """
    with noted_in(notes) as decodes:
        return classify(media_root, source, *_last_listings(store, source), limits, decodes, listed)


def files_increment(store: str, modality: str, source: str, seen: Mapping[str, str]) -> Increment:
    """What changed since the last listing; `seen` is the state by path now, and nothing is hashed."""
    listed = items_table(store, modality, source, ["path", "size", "modified", "captions_modified"])
    rejected = {row[0]: rejected_state(row) for row in stored_rejects(store, modality, source)}
    # A source is looked at for all modalities, and holds one or two of them.
    if not (seen or listed.num_rows or rejected):
        return NOTHING
    # An item that changed and cannot be read now is among both.
    listed = listed.filter(pc.invert(pc.is_in(listed["path"], pa.array(rejected.keys(), pa.string()))))
    last = pa.table([listed["path"], item_states(listed)], _STATES)
    last = pa.concat_tables([last, _states_table(rejected)])
    return diff(*(series_of(states["path"], states["state"]) for states in (_states_table(seen), last)))


def listing_age(store: str, modality: str, source: str) -> str:
    """A mark that changes whenever the source's last listing was replaced."""
    urls = (layout.items_url(store, modality, source), layout.rejected_items_url(store, modality, source))
    return " ".join(storage.change_mark(url) for url in urls)


def listing_ages(store: str, source: str) -> str:
    """A mark that changes whenever one of the source's last listings was replaced, of whichever modality."""
    return records.digest(*(listing_age(store, modality, source) for modality in MODALITIES))


def listed_sources(store: str, modality: str) -> list[str]:
    """Sources whose last listing holds files of the modality, readable or not."""
    return [source for source in once_listed(store, modality) if is_listed(store, modality, source)]


def once_listed(store: str, modality: str) -> list[str]:
    """Sources that a run has listed, whether files of the modality are left in them or not."""
    names = {
        *storage.table_names(layout.items_folder(store, modality)),
        *storage.table_names(layout.rejected_items_folder(store, modality)),
    }
    return sorted(layout.source_name(name) for name in names)


def is_listed(store: str, modality: str, source: str) -> bool:
    """Whether the last listing of the source holds files of the modality, readable or not."""
    tables = (layout.items_url, layout.rejected_items_url)
    return any(storage.row_count(url(store, modality, source)) for url in tables)


def has_settled(store: str, modality: str, source: str, paths: pa.ChunkedArray) -> bool:
    """Whether the last listing of the source has all of the paths, as items or as what it rejected for good."""
    items = items_table(store, modality, source, ["path"])["path"]
    rejected = [row[0] for row in stored_rejects(store, modality, source) if not not_readable_now(row[3])]
    settled = pa.chunked_array([*items.chunks, pa.array(rejected, pa.string())])
    return bool(pc.all(pc.is_in(paths, value_set=settled), min_count=0).as_py())


def stored_items(store: str, modality: str, source: str) -> list[Item]:
    """The items of the last listing."""
    return records.items(storage.read_table(layout.items_url(store, modality, source), ITEMS))


def items_table(store: str, modality: str, source: str, columns: Sequence[str]) -> pa.Table:
    """Columns of ITEMS of the last listing."""
    return storage.read_table(layout.items_url(store, modality, source), ITEMS, columns)


def stored_rejects(store: str, modality: str, source: str) -> list[tuple[str, str, str, str]]:
    """The rejected files of the last listing as (path, uri, version, reason)."""
    table = storage.read_table(layout.rejected_items_url(store, modality, source), REJECTED)
    return records.rejected_rows(table)


def _whole_folder(media_root: str, source: str, listed: pa.Table) -> pa.Table:
    """All files of a source's folder; both tables of schema ENTRIES, and `listed` the source's own.

    Raises:
        PlatformError: if the source does not hold the same files as when they were listed.
    """
    folder = folder_of(source)
    if folder == source:
        return listed
    whole = entries_table(media_root, folder)
    if not dict(shares(folder, whole, counts_with(source, {})))[source]["path"].equals(listed["path"]):
        raise PlatformError(f"source {source} under {media_root} changed while it was listed; run again")
    return whole


def _last_listings(store: str, source: str) -> tuple[dict[str, pa.Table], dict[str, list[tuple[str, str, str, str]]]]:
    """The items of the last listing of each modality, of schema ITEMS, and what each rejected."""
    known = {name: items_table(store, name, source, ITEMS.names) for name in MODALITIES}
    return known, {name: stored_rejects(store, name, source) for name in MODALITIES}


def _examined(store: str, modality: str, source: str) -> tuple[pa.Table, list[tuple[str, str, str, str]]]:
    """What listings that did not come to their end have read of the source's files."""
    items = storage.read_shards(layout.examined_folder(store, modality, source), ITEMS)
    rejected = storage.read_shards(layout.rejected_examined_folder(store, modality, source), REJECTED)
    return items, records.rejected_rows(rejected)


def _keep_examined(
    store: str, modality: str, source: str, items: pa.Table, rejected: list[tuple[str, str, str, str]]
) -> None:
    if items.num_rows:
        storage.append_shard(layout.examined_folder(store, modality, source), items)
    if rejected:
        url = layout.rejected_examined_folder(store, modality, source)
        storage.append_shard(url, records.rejected_table(rejected))


def _states_table(states: Mapping[str, str]) -> pa.Table:
    columns = (pa.array(part, pa.string()) for part in (states.keys(), states.values()))
    return pa.table(list(columns), _STATES)
