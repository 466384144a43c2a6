"""From a row back to its file, model and run; and from a file to all its rows."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import layout, storage
from embedding_platform.buckets import among, folder_of, own_paths
from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.media.listing import list_entries
from embedding_platform.media.recognition import CAPTIONS_FILE, recognise
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.query import get_rows
from embedding_platform.milvus.schema import Provenance, alias_name, read_provenance
from embedding_platform.platform import Platform
from embedding_platform.reconcile.embeddings import rejected_contents
from embedding_platform.reconcile.files import listed_sources, stored_items
from embedding_platform.reconcile.rejects import Rejected
from embedding_platform.reconcile.segments import live_segments
from embedding_platform.records import Item, vectors_schema
from embedding_platform.search.hits import place_in_file
from embedding_platform.spaces import MODALITIES, Space


@dataclass(frozen=True)
class RowTrace:
    """One row of a published collection, and all that it came from.

    `file` is None once the file is no longer listed. `partition` is the Milvus partition, ""
    where a partition key places the rows of the source. `shard` is the Parquet file that holds
    the vector, "" if none does any more. `run_page` is the run's page below the web UI's address.
    """

    id: str
    space: str
    collection: str
    alias: str
    partition: str
    source: str
    path: str
    uri: str
    role: str
    where: str
    text: str
    content_hash: str
    attributes: dict[str, Any]
    file: Item | None
    fingerprint: str
    provenance: Provenance
    run_id: str
    run_page: str
    embedded_at: str
    shard: str


@dataclass(frozen=True)
class Unsearchable:
    """A segment that has no row in a space's published collection, and why."""

    id: str
    space: str
    role: str
    where: str
    content_hash: str
    reason: str


@dataclass(frozen=True)
class FileTrace:
    """A file as one modality's item, its rows in all spaces, and what it lacks."""

    modality: str
    source: str
    file: Item
    rows: tuple[RowTrace, ...]
    without_row: tuple[Unsearchable, ...]
    rejected: tuple[Rejected, ...]


def is_row_id(name: str) -> bool:
    """Whether a name is a row's id: 32 digits of 0-9 and a-f."""
    return bool(re.fullmatch("[0-9a-f]{32}", name))


def trace_row(platform: Platform, row_id: str) -> list[RowTrace]:
    """The row called `row_id` in every published space that holds it.

    Raises:
        PlatformError: if no published space has the row.
    """
    traces = [trace for space in platform.spaces for trace in _rows(platform, space, [row_id])]
    if not traces:
        raise PlatformError(
            f"no published space holds the id {row_id!r}; copy one from `embedding-platform search --json`"
        )
    return traces


def trace_file(platform: Platform, file: str) -> list[FileTrace]:
    """What became of a file, once for each modality that lists it: an image with captions is two.

    `file` is a path, a URL, or a source and a path in it as "photos/cat.jpg".

    Raises:
        PlatformError: if the file is not indexed; the message says why.
    """
    folder, path = _place(platform, file)
    traces = []
    for modality in platform.modalities:
        for source in _sources_of(platform, modality, folder, path):
            items = {item.path: item for item in stored_items(platform.store, modality, source)}
            if path in items:
                traces.append(_file_trace(platform, modality, source, items[path]))
    if not traces:
        raise PlatformError(_why_not_indexed(platform, folder, path))
    return traces


def _sources_of(platform: Platform, modality: str, folder: str, path: str) -> list[str]:
    """The listed sources that may have a file: its folder, or one of the folder's buckets."""
    sources = among(listed_sources(platform.store, modality), [folder])
    return [source for source in sources if own_paths(source)(path)]


def _file_trace(platform: Platform, modality: str, source: str, item: Item) -> FileTrace:
    table = live_segments(platform.store, modality, source, platform.cutting)
    table = table.filter(pc.equal(table["path"], item.path)).sort_by([("role", "ascending"), ("position", "ascending")])
    rejected = tuple(one for one in platform.rejects([modality], [source]) if one.path == item.path)
    rows: list[RowTrace] = []
    without: list[Unsearchable] = []
    for space in (space for space in platform.spaces if space.modality == modality):
        own = table.filter(pc.is_in(table["role"], value_set=pa.array(space.roles)))
        found = {row.id: row for row in _rows(platform, space, own["segment_id"].to_pylist())}
        rows += found.values()
        fingerprint = platform.fingerprint(space)
        unusable = {row[2]: row[3] for row in rejected_contents(platform.store, space, source, fingerprint)}
        published = alias_target(platform.milvus, alias_name(space.key)) is not None
        without += [
            Unsearchable(
                id=segment["segment_id"],
                space=space.key,
                role=segment["role"],
                where=place_in_file(modality, segment["start"], segment["end"]),
                content_hash=segment["content_hash"],
                reason=_why_without_row(unusable.get(segment["content_hash"]), published),
            )
            for segment in own.to_pylist()
            if segment["segment_id"] not in found
        ]
    return FileTrace(modality, source, item, tuple(rows), tuple(without), rejected)


def _rows(platform: Platform, space: Space, ids: Sequence[str]) -> Iterator[RowTrace]:
    """The rows of some ids that the space's published collection holds."""
    alias = alias_name(space.key)
    collection = alias_target(platform.milvus, alias)
    if collection is None:
        return
    provenance = read_provenance(platform.milvus, collection)
    rows = get_rows(platform.milvus, collection, ids)
    for source in dict.fromkeys(row["source"] for row in rows):
        own = [row for row in rows if row["source"] == source]
        items = {item.path: item for item in stored_items(platform.store, space.modality, source)}
        folder = layout.vectors_folder(platform.store, space.key, provenance.fingerprint, source)
        shards = _shards_of(folder, {row["content_hash"] for row in own})
        for row in own:
            yield RowTrace(
                id=row["id"],
                space=space.key,
                collection=collection,
                alias=alias,
                partition=Partition(collection, source, provenance.layout).name,
                source=source,
                path=row["path"],
                uri=row["uri"],
                role=row["role"],
                where=place_in_file(space.modality, row["start"], row["end"]),
                text=row["text"],
                content_hash=row["content_hash"],
                attributes=row["attributes"],
                file=items.get(row["path"]),
                fingerprint=row["fingerprint"],
                provenance=provenance,
                run_id=row["run_id"],
                run_page=f"/runs/{row['run_id']}",
                embedded_at=row["embedded_at"],
                shard=shards.get(row["content_hash"], ""),
            )


def _shards_of(folder: str, contents: set[str]) -> dict[str, str]:
    """The shard that holds each content's vector, by content hash; the first where several do."""
    shards: dict[str, str] = {}
    for name in storage.table_names(folder):
        for table in storage.iterate_shards(folder, vectors_schema(1), ["content_hash"], [name]):
            for content in contents.intersection(table["content_hash"].to_pylist()):
                shards.setdefault(content, storage.join(folder, name))
    return shards


def _place(platform: Platform, file: str) -> tuple[str, str]:
    """Folder under the media root, and path in it, of a file that is named by a path, a URL, or source and path."""
    root = platform.settings.media_url
    if "://" in file and not file.startswith("file://"):
        places = [file]
    else:
        local = os.path.abspath(os.path.expanduser(file.removeprefix("file://")))
        places = [local, os.path.realpath(local)]
        inner = os.path.normpath(file)
        if not (os.path.isabs(inner) or inner.startswith("..") or "://" in file):
            places.append(storage.join(root, inner))
    roots = [root] if "://" in root else [root, os.path.realpath(root)]
    inside = [place[len(top) + 1 :] for place in places for top in roots if place.startswith(f"{top}/")]
    # Relative to this folder and to the media root a name may be two files; the one that is there is meant.
    known = [name for name in inside if _is_there(platform, name)] or inside
    if not known:
        raise PlatformError(f"{file} is neither a row id (32 digits of 0-9 and a-f) nor a file under media_root {root}")
    source, _, path = known[0].partition("/")
    if not path:
        raise PlatformError(
            f"{file} is no row id (32 digits of 0-9 and a-f) and no file in a source; name a file as source/path, "
            f"or by its path under {root}"
        )
    return folder_of(source), path


def _is_there(platform: Platform, name: str) -> bool:
    fs, path = storage.file_system(storage.join(platform.settings.media_url, name))
    return bool(fs.isfile(path))


def _why_not_indexed(platform: Platform, folder: str, path: str) -> str:
    """Why a file that no listing has is in none."""
    name = f"{folder}/{path}"
    listed = [
        (modality, source)
        for modality in platform.modalities
        for source in _sources_of(platform, modality, folder, path)
    ]
    for modality, source in listed:
        for rejected in platform.rejects([modality], [source]):
            if rejected.path == path:
                told = f"{name} was rejected by {rejected.asset}: {rejected.reason}"
                return f"{told}; it is tried again {rejected.retried}"
    for modality, source in listed:
        for item in stored_items(platform.store, modality, source):
            if item.captions and os.path.splitext(item.path)[0] == os.path.splitext(path)[0]:
                return f"{name} is the caption of {folder}/{item.path}; trace that"
    if path.rpartition("/")[2] == CAPTIONS_FILE:
        return f"{name} gives captions to the images that it names; trace those"
    if not _is_there(platform, name):
        return f"{name} is not there, and the last run did not find it either; correct the name"
    entry = next((entry for entry in list_entries(platform.settings.media_url, folder) if entry.path == path), None)
    if entry is None:
        return f"{name} is left out, because it or a folder above it has the name of a hidden or temporary file"
    try:
        known = recognise(entry.path, entry.uri, platform.settings.decoding)
    except RejectedError as error:
        return f"{name} is not listed yet, and will be rejected: {error}; mend it, then run `embedding-platform run`"
    if known is None:
        holds = ", ".join(modality.holds for modality in MODALITIES.values())
        return f"{name} holds no media that is indexed; those are {holds}"
    if known[0] not in platform.modalities:
        return f"{name} is {known[0]}, for which the settings keep no space; add one to `spaces`"
    return f"{name} is not listed yet; run `embedding-platform run`"


def _why_without_row(rejected: str | None, published: bool) -> str:
    if rejected is not None:
        return f"rejected: {rejected}"
    if not published:
        return "the space is not published yet; run `embedding-platform run`"
    return "not in the published collection yet; run `embedding-platform run`"
