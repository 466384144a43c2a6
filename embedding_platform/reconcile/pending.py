"""The increments that are waiting, one stage at a time, without doing anything about them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from embedding_platform.increments import Increment, diff
from embedding_platform.milvus.alias import alias_target, is_withdrawn
from embedding_platform.milvus.schema import has_collection
from embedding_platform.reconcile.collection import collection_increment
from embedding_platform.reconcile.embeddings import embeddings_increment
from embedding_platform.reconcile.files import files_increment
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.segments import segments_increment
from embedding_platform.reconcile.target import Target

if TYPE_CHECKING:
    from pymilvus import MilvusClient

    from embedding_platform.media.cutting import Cutting


@dataclass(frozen=True)
class Pending:
    """The increment of one asset for one source, against what its upstream holds now."""

    asset: str
    source: str
    increment: Increment


def pending_publication(client: "MilvusClient", target: Target) -> Pending:
    """The alias as a table of one row: new, stale if it points elsewhere, or unchanged.

    One that was rolled back is unchanged: no run moves it.
    """
    published = alias_target(client, target.alias)
    withdrawn = has_collection(client, target.collection) and is_withdrawn(client, target.collection)
    desired = pd.Series({target.alias: published if withdrawn else target.collection}, dtype=object)
    actual = pd.Series({target.alias: published} if published else {}, dtype=object)
    return Pending(f"{target.space.key}/published", "", diff(desired, actual))


def pending_of_source(
    client: "MilvusClient",
    store: str,
    modality: str,
    source: str,
    seen: dict[str, str],
    targets: Sequence[Target],
    cutting: "Cutting",
) -> Iterator[Pending]:
    """The increment of each asset of one source; `seen` is the state by path of its files now."""
    yield Pending(f"{modality}/files", source, files_increment(store, modality, source, seen))
    yield Pending(f"{modality}/segments", source, segments_increment(store, modality, source, cutting))
    for target in targets:
        space, fingerprint = target.space, target.fingerprint
        embeddings = embeddings_increment(store, space, source, fingerprint, cutting)
        yield Pending(f"{space.key}/embeddings", source, embeddings)
        live = LiveRows(store, space, source, fingerprint, cutting)
        yield Pending(f"{space.key}/collection", source, collection_increment(client, target, live))
