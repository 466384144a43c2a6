"""What no alias, no setting and no retention protects any more: former collections, former vectors, half files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError
from embedding_platform.milvus.alias import Publication, alias_target, publications
from embedding_platform.milvus.connection import CALL_SECONDS, explaining
from embedding_platform.milvus.schema import alias_name
from embedding_platform.reconcile.target import Target

if TYPE_CHECKING:
    from pymilvus import MilvusClient


@dataclass(frozen=True)
class Prunable:
    """One thing that may go: a collection in Milvus, or a folder of the store.

    `size` is its rows, or its bytes; `places` are what to remove of the store.
    """

    kind: Literal["collection", "vectors", "notes", "leftovers"]
    name: str
    size: int
    reason: str
    places: tuple[str, ...] = ()


def prunable(client: "MilvusClient", store: str, targets: Sequence[Target], retained: int) -> list[Prunable]:
    """What may be removed; nothing is done.

    A collection stays while an alias points to it, while settings ask for it, or as one of the
    `retained` of its space that were published last before it. Vectors stay while they
    belong to a collection that stays, or to a fingerprint that settings ask for; notes while
    they tell of a collection that stays. Half-written files stay for a day.
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
        PlatformError: if Milvus fails, a collection was published meanwhile, or a folder may not be removed.
    """
    for thing in things:
        if thing.kind == "collection":
            if _has_alias(client, thing.name):
                raise PlatformError(f"{thing.name} was published meanwhile; look again at what to prune")
            with explaining(f"drop collection {thing.name}"):
                client.drop_collection(thing.name, timeout=CALL_SECONDS)
        for place in thing.places:
            storage.remove(place)


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
