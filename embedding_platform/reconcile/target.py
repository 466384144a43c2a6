"""Which collection a space's vectors belong into."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedding_platform.milvus.partitions import Partition, plan_layout
from embedding_platform.milvus.schema import Layout, Provenance, alias_name, collection_name
from embedding_platform.spaces import Space

if TYPE_CHECKING:
    from pymilvus import MilvusClient


@dataclass(frozen=True)
class Target:
    """The collection that a space has, or is to have, and the alias that is to point to it.

    `words` tells whether its rows are to be found by the words of their texts too.
    """

    space: Space
    fingerprint: str
    layout: Layout = "named"
    words: bool = False

    @property
    def alias(self) -> str:
        """The name that readers search."""
        return alias_name(self.space.key)

    @property
    def collection(self) -> str:
        """The name in Milvus."""
        return collection_name(self.space.key, self.fingerprint, self.layout, self.words)

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
            words=self.words,
        )

    def partition(self, source: str) -> Partition:
        """Where the rows of a source lie."""
        return Partition(self.collection, source, self.layout)


def target_of(
    connect: Callable[[], "MilvusClient"],
    space: Space,
    fingerprint: str,
    sources: int,
    most_named: int,
    words: bool = False,
) -> Target:
    """The collection that the space's model and the number of its sources ask for; see `plan_layout`.

    Milvus is asked only where that number is near the limit.
    """
    if sources <= most_named // 2:
        return Target(space, fingerprint, words=words)
    layout = plan_layout(connect(), space.key, fingerprint, sources, most_named, words)
    return Target(space, fingerprint, layout, words)
