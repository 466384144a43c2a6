"""What nothing protects any more: former collections and vectors, vectors of contents that are gone, half files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError
from embedding_platform.increments import index_of, presence
from embedding_platform.media.cutting import Cutting
from embedding_platform.milvus.alias import Publication, alias_target, publications
from embedding_platform.milvus.connection import CALL_SECONDS, explaining
from embedding_platform.milvus.schema import alias_name
from embedding_platform.reconcile.files import listed_sources
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.segments import iterate_live_segments
from embedding_platform.reconcile.target import Target
from embedding_platform.vectors import store as vector_store

if TYPE_CHECKING:
    from pymilvus import MilvusClient


@dataclass(frozen=True)
class Shards:
    """A source's vectors in a space that settings ask for, and how the files are cut whose contents they are of."""

    store: str
    folder: str
    target: Target
    cutting: Cutting


@dataclass(frozen=True)
class Prunable:
    """One thing that may go: a collection in Milvus, a folder of the store, or some of the vectors in one.

    `size` is its rows, or its bytes; `places` are what to remove of the store, `shards` where
    vectors are to be left out.
    """

    kind: Literal["collection", "vectors", "contents", "notes", "leftovers"]
    name: str
    size: int
    reason: str
    places: tuple[str, ...] = ()
    shards: Shards | None = None


def prunable(
    client: "MilvusClient", store: str, targets: Sequence[Target], retained: int, cutting: Cutting
) -> list[Prunable]:
    """What may be removed; nothing is done.

    A collection stays while an alias points to it, while settings ask for it, or as one of the
    `retained` of its space that were published last before it. Vectors stay while they
    belong to a collection that stays, or to a fingerprint that settings ask for; of the latter
    those of contents that no source of the modality holds may go, once all its items are cut.
    Notes stay while they tell of a collection that stays, half-written files for a day.
    """
    ours = publications(client)
    kept = _kept(client, ours, targets, retained)
    found = [
        Prunable("collection", one.collection, _rows(client, one.collection), _reason(one))
        for one in ours
        if one.collection not in kept
    ]
    fingerprints = {target.fingerprint for target in targets}
    fingerprints |= {one.provenance.fingerprint for one in ours if one.collection in kept}
    prefixes = {fingerprint[: layout.FINGERPRINT_DIGITS] for fingerprint in fingerprints}
    for folder in layout.space_folders(store):
        # Two spaces may have one model: what is kept of it goes when neither needs it.
        if folder.rsplit("/", 1)[-1] not in prefixes:
            places = (folder, *layout.beside_vectors(store, folder))
            size = storage.folder_bytes(folder)
            found.append(Prunable("vectors", folder, size, "of a model that nothing names", places))
    found += _without_content(store, targets, cutting)
    for name in storage.subfolders(layout.collections_folder(store)):
        if name not in kept:
            folder = layout.collection_folder(store, name)
            found.append(
                Prunable(
                    "notes", folder, storage.folder_bytes(folder), "on a collection that goes or is gone", (folder,)
                )
            )
    if left := storage.leftovers(store):
        size = sum(map(storage.folder_bytes, left))
        found.append(Prunable("leftovers", store, size, f"{len(left)} files that killed runs left half", tuple(left)))
    return found


def prune(client: "MilvusClient", things: Sequence[Prunable]) -> None:
    """Remove what `prunable` found, a collection before the vectors that it could be made from again.

    Raises:
        PlatformError: if Milvus fails, a collection was published meanwhile, a source was listed anew and
            is not cut yet, or a folder may not be removed.
    """
    for thing in things:
        if thing.kind == "collection":
            if _has_alias(client, thing.name):
                raise PlatformError(f"{thing.name} was published meanwhile; look again at what to prune")
            with explaining(f"drop collection {thing.name}"):
                client.drop_collection(thing.name, timeout=CALL_SECONDS)
        if thing.shards:
            _leave_out(thing.shards)
        for place in thing.places:
            storage.remove(place)


def _without_content(store: str, targets: Sequence[Target], cutting: Cutting) -> Iterator[Prunable]:
    """Vectors that no file of any source gives cause for, in the spaces that settings ask for."""
    for target in targets:
        held = _held(store, target, cutting)
        if held is None:
            continue
        space_folder = layout.space_folder(store, target.space.key, target.fingerprint)
        for name in storage.subfolders(space_folder):
            folder = storage.join(space_folder, name)
            gone = len(presence(held, vector_store.stored_hashes(folder, target.fingerprint)).orphaned)
            if gone:
                size = 4 * target.space.model.dimension * gone
                reason = f"{gone} vectors of contents that no file holds any more"
                yield Prunable("contents", folder, size, reason, shards=Shards(store, folder, target, cutting))


def _leave_out(shards: Shards) -> None:
    # Asked again: meanwhile a file may have come whose content has its vector here.
    held = _held(shards.store, shards.target, shards.cutting)
    if held is None:
        raise PlatformError(
            f"files of {shards.target.space.modality} were listed meanwhile and are not cut yet; "
            "look again at what to prune when their run has ended"
        )
    vector_store.keep_only(shards.folder, shards.target.space.model.dimension, shards.target.fingerprint, held)


def _held(store: str, target: Target, cutting: Cutting) -> pd.Index | None:
    """Contents of the live segments of all sources of a modality; None while an item is not cut, whose are unknown."""
    space = target.space
    sources = listed_sources(store, space.modality)
    if any(LiveRows(store, space, source, target.fingerprint, cutting).uncut() for source in sources):
        return None
    parts = (
        part["content_hash"]
        for source in sources
        for part in iterate_live_segments(store, space.modality, source, cutting, ["content_hash"])
    )
    return index_of(pc.unique(pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())))


def _kept(client: "MilvusClient", ours: Sequence[Publication], targets: Sequence[Target], retained: int) -> set[str]:
    kept = {target.collection for target in targets}
    for one in ours:
        if _has_alias(client, one.collection):
            kept.add(one.collection)
    for space in {one.provenance.space for one in ours}:
        published = alias_target(client, alias_name(space))
        former = [
            one.collection
            for one in ours
            if one.provenance.space == space and one.number and one.collection != published
        ]
        kept.update(former[-retained:] if retained else ())
    return kept


def _has_alias(client: "MilvusClient", collection: str) -> bool:
    with explaining(f"list the aliases of {collection}"):
        return bool(client.list_aliases(collection, timeout=CALL_SECONDS)["aliases"])


def _reason(publication: Publication) -> str:
    return "was published before others" if publication.number else "was never published"


def _rows(client: "MilvusClient", collection: str) -> int:
    with explaining(f"count the rows of {collection}"):
        return int(client.get_collection_stats(collection, timeout=CALL_SECONDS)["row_count"])
