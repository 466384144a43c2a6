"""The stable name that readers search, and the collections it may point to."""

from typing import TYPE_CHECKING

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import CALL_SECONDS, explaining
from embedding_platform.milvus.schema import alias_name, provenance_of, read_provenance

if TYPE_CHECKING:
    from pymilvus import MilvusClient

_NO_SUCH_ALIAS = (100, 1600)
"""Error codes of Milvus Lite and of a Milvus server."""


def alias_target(client: "MilvusClient", alias: str) -> str | None:
    """Name of the collection that `alias` points to; None without such an alias."""
    from pymilvus.exceptions import MilvusException

    with explaining(f"look up alias {alias}"):
        try:
            return str(client.describe_alias(alias, timeout=CALL_SECONDS)["collection_name"])
        except MilvusException as error:
            if error.code in _NO_SUCH_ALIAS:
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


def list_collections_of(client: "MilvusClient", space_key: str) -> list[str]:
    """Names of all collections of a space, of whatever fingerprint, sorted."""
    prefix = f"{alias_name(space_key)}_"
    found = []
    with explaining("list the collections"):
        for name in client.list_collections(timeout=CALL_SECONDS):
            if name.startswith(prefix):
                provenance = provenance_of(client.describe_collection(name, timeout=CALL_SECONDS))
                if provenance is not None and provenance.space == space_key:
                    found.append(name)
    return sorted(found)
