"""The stable name that readers search, and the collections that it points or pointed to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import CALL_SECONDS, explaining
from embedding_platform.milvus.deployment import NO_SUCH_ALIAS
from embedding_platform.milvus.schema import Provenance, alias_name, provenance_of, read_provenance

if TYPE_CHECKING:
    from pymilvus import MilvusClient

PUBLISHED_PROPERTY = "embedding_platform.published"
"""Counts the publications of a space: the larger, the later. A clock may be set back, a count is not."""

WITHDRAWN_PROPERTY = "embedding_platform.withdrawn"


@dataclass(frozen=True)
class Publication:
    """A collection of ours: what made it, when it was published, and whether it was rolled back.

    `number` is 0 for a collection that was never published.
    """

    collection: str
    provenance: Provenance
    number: int
    withdrawn: bool


def alias_target(client: "MilvusClient", alias: str) -> str | None:
    """Name of the collection that `alias` points to; None without such an alias."""
    from pymilvus.exceptions import MilvusException

    with explaining(f"look up alias {alias}"):
        try:
            return str(client.describe_alias(alias, timeout=CALL_SECONDS)["collection_name"])
        except MilvusException as error:
            if error.code in NO_SUCH_ALIAS:
                return None
            raise


def point_alias(client: "MilvusClient", alias: str, collection: str) -> bool:
    """Let `alias` point to `collection`, in one step for readers; False if it already does.

    Raises:
        PlatformError: the alias serves another space, or its name is taken by a collection.
    """
    current = alias_target(client, alias)
    if current == collection:
        return False
    if current is None:
        deed = f"create alias {alias} for collection {collection}"
        with explaining(deed, lambda: alias_target(client, alias) == collection):
            client.create_alias(collection, alias, timeout=CALL_SECONDS)
        return True
    served, offered = read_provenance(client, current).space, read_provenance(client, collection).space
    if served != offered:
        raise PlatformError(f"alias {alias} serves the space {served}, not {offered}; rename one of the two spaces")
    with explaining(f"point alias {alias} to collection {collection}"):
        client.alter_alias(collection, alias, timeout=CALL_SECONDS)
    return True


def publications(client: "MilvusClient", space_key: str | None = None) -> list[Publication]:
    """All collections of a space, or of ours at all, of whatever fingerprint; the last published comes last."""
    found = []
    with explaining("list the collections"):
        for name in client.list_collections(timeout=CALL_SECONDS):
            # Others may share this Milvus, with collections that are no business of ours.
            if space_key is not None and not name.startswith(f"{alias_name(space_key)}_"):
                continue
            publication = _publication(client, name)
            if publication is not None and space_key in (None, publication.provenance.space):
                found.append(publication)
    return sorted(found, key=lambda publication: (publication.number, publication.collection))


def note_published(client: "MilvusClient", collection: str) -> None:
    """Write down that a collection has been published after all others of its space, once."""
    newest = publications(client, read_provenance(client, collection).space)[-1]
    if newest.collection == collection and newest.number and not newest.withdrawn:
        return
    properties = {PUBLISHED_PROPERTY: str(newest.number + 1), WITHDRAWN_PROPERTY: ""}
    with explaining(f"note that collection {collection} is published"):
        client.alter_collection_properties(collection, properties, timeout=CALL_SECONDS)


def withdraw(client: "MilvusClient", collection: str, withdrawn: bool = True) -> None:
    """Keep a collection from being published by itself again, or allow it."""
    with explaining(f"note that collection {collection} is withdrawn"):
        client.alter_collection_properties(
            collection, {WITHDRAWN_PROPERTY: "yes" if withdrawn else ""}, timeout=CALL_SECONDS
        )


def is_withdrawn(client: "MilvusClient", collection: str) -> bool:
    """Whether the collection was rolled back from."""
    with explaining(f"describe collection {collection}"):
        publication = _publication(client, collection)
    return publication is not None and publication.withdrawn


def _publication(client: "MilvusClient", name: str) -> Publication | None:
    description = client.describe_collection(name, timeout=CALL_SECONDS)
    provenance = provenance_of(description)
    if provenance is None:
        return None
    properties = description.get("properties", {})
    return Publication(
        name, provenance, int(properties.get(PUBLISHED_PROPERTY) or 0), bool(properties.get(WITHDRAWN_PROPERTY))
    )
