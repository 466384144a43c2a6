"""From a query to hits."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedding_platform.errors import PlatformError
from embedding_platform.inference.query import Query, encode, read_query, text_query
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.index import VECTOR_FIELD
from embedding_platform.milvus.query import get_rows, search_rows
from embedding_platform.milvus.schema import Provenance, alias_name, read_provenance
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import listed_sources
from embedding_platform.search.filters import ALL, Filter
from embedding_platform.search.hits import Hit, hit_of
from embedding_platform.search.makers import maker_of
from embedding_platform.settings import load_settings
from embedding_platform.spaces import Role, Space


@dataclass(frozen=True)
class SearchableSpace:
    """A published space: what it holds, and what it can be asked.

    `roles` are those of queries that its model encodes, `holds` those of its rows.
    `hybrid` tells whether it can be searched by words and vectors together.
    """

    key: str
    modality: str
    roles: tuple[Role, ...]
    holds: tuple[Role, ...]
    collection: str
    model: str
    metric: str
    hybrid: bool


@dataclass(frozen=True)
class _Published:
    """A space and the collection that readers have of it, by its own name: the alias may move meanwhile."""

    space: Space
    collection: str
    provenance: Provenance


class Searcher:
    """Searches the published spaces of one platform.

        searcher = Searcher.open()
        for hit in searcher.search("how bees find their way home", "text/minilm", limit=3):
            print(hit.path, hit.where, hit.text)

    Several threads may share one. The first query of a model loads it; the later ones take
    milliseconds.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        # A runtime need not take two batches at once, and two share the same cores anyway.
        self._encoding = threading.Lock()

    @classmethod
    def open(cls, settings_file: str | None = None) -> "Searcher":
        """A searcher of the platform of `embedding_platform.yaml` here, or of another settings file.

        Raises:
            PlatformError: if the settings are wrong.
        """
        return cls(Platform(load_settings(settings_file)))

    def spaces(self) -> list[SearchableSpace]:
        """The published spaces, in the order of the catalogue.

        Raises:
            PlatformError: if Milvus does not answer.
        """
        return [
            SearchableSpace(
                key=published.space.key,
                modality=published.space.modality,
                roles=published.space.model.roles,
                holds=published.space.roles,
                collection=published.collection,
                model=published.provenance.model,
                metric=published.provenance.metric,
                hybrid=False,
            )
            for space in self._platform.spaces
            if (published := self._published(space)) is not None
        ]

    def sources(self, space: str) -> list[str]:
        """The sources that a space may hold rows of.

        Raises:
            PlatformError: if there is no such space.
        """
        return listed_sources(self._platform.store, self._platform.space(space).modality)

    def file_query(self, path: str) -> Query:
        """A query by example, of a path or URL: the file's segments, decoded as if it were to be indexed.

        Raises:
            PlatformError: if the file is not there, holds no known media, or cannot be decoded.
        """
        return read_query(path, self._platform.cutting)

    def search(
        self, query: str | Path | Query, space: str, *, filter: Filter = ALL, limit: int = 5, hybrid: bool = False
    ) -> list[Hit]:
        """The `limit` nearest rows of one space, best first.

        The query is words, the path of a file to search by, or a `Query` made before; the model
        that made the collection encodes it.

        Raises:
            PlatformError: if the space cannot encode the query, is not published, was made by a
                model that is no longer there, or does not know a source of the filter.
        """
        return self.search_spaces(query, [space], filter=filter, limit=limit, hybrid=hybrid)[space]

    def search_spaces(
        self,
        query: str | Path | Query,
        spaces: Sequence[str] = (),
        *,
        filter: Filter = ALL,
        limit: int = 5,
        hybrid: bool = False,
    ) -> dict[str, list[Hit]]:
        """The same in several spaces, by space key: their scores compare only inside each.

        Without `spaces`, every published space is searched that encodes the query's role and
        has a source of the filter.
        """
        if hybrid:
            raise PlatformError("no published space can be searched by words and vectors together; leave `hybrid` out")
        asked = self._query(query)
        named = [self._platform.space(key) for key in spaces]
        able = [space for space in self._platform.spaces if asked.role in space.model.roles]
        if not able:
            raise PlatformError(f"none of the spaces that the settings keep encodes {asked.role}; add one to `spaces`")
        unable = [space.key for space in named if space not in able]
        if unable:
            those = ", ".join(space.key for space in able)
            raise PlatformError(f"{', '.join(unable)} cannot encode {asked.role}; spaces that can: {those}")
        chosen = [(self._readable(space), filter.sources) for space in named] or self._holding(able, filter.sources)
        if not chosen:
            among = f" with the source {' or '.join(filter.sources)}" if filter.sources else ""
            raise PlatformError(f"no published space{among} can answer this; run `embedding-platform run` first")
        return {
            published.space.key: self._nearest(published, self._vector(asked, published), sources, filter, limit)
            for published, sources in chosen
        }

    def more_like(self, row_id: str, space: str, *, filter: Filter = ALL, limit: int = 5) -> list[Hit]:
        """The `limit` rows nearest to the vector of a row that the space holds, without that row; no model is loaded.

        Raises:
            PlatformError: if the space is not published or does not hold the row, or does not know a
                source of the filter.
        """
        published = self._readable(self._platform.space(space))
        found = get_rows(self._platform.milvus, published.collection, [row_id])
        if not found:
            raise PlatformError(f"{space} holds no row {row_id}; take the id of a hit of this space")
        vector = np.asarray(found[0][VECTOR_FIELD], np.float32)
        hits = self._nearest(published, vector, filter.sources, filter, limit + 1)
        return [hit for hit in hits if hit.id != row_id][:limit]

    def _query(self, query: str | Path | Query) -> Query:
        if isinstance(query, Query):
            return query
        return self.file_query(str(query)) if isinstance(query, Path) else text_query(query)

    def _published(self, space: Space) -> _Published | None:
        collection = alias_target(self._platform.milvus, alias_name(space.key))
        if collection is None:
            return None
        return _Published(space, collection, read_provenance(self._platform.milvus, collection))

    def _readable(self, space: Space) -> _Published:
        published = self._published(space)
        if published is None:
            raise PlatformError(f"{space.key} is not published yet; run `embedding-platform run` first")
        return published

    def _holding(self, spaces: Sequence[Space], sources: Sequence[str]) -> list[tuple[_Published, Sequence[str]]]:
        """Published spaces, each with those of the sources that it has; none that has none of them."""
        found: list[tuple[_Published, Sequence[str]]] = []
        for space in spaces:
            listed = listed_sources(self._platform.store, space.modality) if sources else []
            held = [source for source in listed if source in sources]
            published = self._published(space) if held or not sources else None
            if published is not None:
                found.append((published, held))
        return found

    def _vector(self, query: Query, published: _Published) -> np.ndarray:
        """The query's vector, float32 [d], by the model that made the collection."""
        former, precision = maker_of(self._platform, published.space, published.provenance)
        encoder = self._platform.encoder(former, precision, for_queries=True)
        with self._encoding:
            (vector,) = encode([query], former, encoder)
        return np.asarray(vector)

    def _nearest(
        self, published: _Published, vector: np.ndarray, sources: Sequence[str], filter: Filter, limit: int
    ) -> list[Hit]:
        space = published.space
        rows: list[dict[str, Any]] = search_rows(
            self._platform.milvus,
            published.collection,
            vector,
            limit,
            space.index,
            published.provenance.metric,
            list(sources) or None,
            filter.condition,
        )
        return [hit_of(space, {**row, "vector_score": row["score"]}) for row in rows]
