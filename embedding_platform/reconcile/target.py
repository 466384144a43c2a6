"""Which collection a space's vectors belong into."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedding_platform.milvus.partitions import Partition, plan_layout
from embedding_platform.milvus.schema import Layout, Provenance, alias_name, collection_name
from embedding_platform.reconcile.files import listed_sources
from embedding_platform.spaces import Space

if TYPE_CHECKING:
    from pymilvus import MilvusClient


@dataclass(frozen=True)
class Target:
    """The collection that a space has, or is to have, and the alias that is to point to it."""

    space: Space
    fingerprint: str
    layout: Layout = "named"

    @property
    def alias(self) -> str:
        """The name that readers search."""
        return alias_name(self.space.key)

    @property
    def collection(self) -> str:
        """The name in Milvus."""
        return collection_name(self.space.key, self.fingerprint, self.layout)

    @property
    def provenance(self) -> Provenance:
        """What the collection says of itself."""
        model = self.space.model
        return Provenance(
            space=self.space.key,
            fingerprint=self.fingerprint,
            model=model.location,
            revision=model.revision or "",
            dimension=model.dimension,
            metric=self.space.metric,
            normalised=self.space.normalised,
            pooling=model.pooling,
            generation=self.space.generation,
            layout=self.layout,
        )

    def partition(self, source: str) -> Partition:
        """Where the rows of a source lie."""
        return Partition(self.collection, source, self.layout)


def target_of(client: "MilvusClient", store: str, space: Space, fingerprint: str, most_named: int) -> Target:
    """The collection that the space's model and the number of its sources ask for."""
    sources = len(listed_sources(store, space.modality))
    return Target(space, fingerprint, plan_layout(client, space.key, fingerprint, sources, most_named))
