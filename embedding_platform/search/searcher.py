"""From a query to hits."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedding_platform.buckets import among
from embedding_platform.errors import PlatformError
from embedding_platform.inference.query import Query, encode, read_query, text_query
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.index import VECTOR_FIELD
from embedding_platform.milvus.query import get_rows, search_rows
from embedding_platform.milvus.schema import Provenance, alias_name, read_provenance
from embedding_platform.milvus.words import WordStatistics, search_words, word_statistics
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import is_listed, listed_sources, once_listed
from embedding_platform.search.filters import ALL, Filter
from embedding_platform.search.fusion import CANDIDATES, fused
from embedding_platform.search.hits import Hit, hit_of
from embedding_platform.search.makers import maker_of
from embedding_platform.settings import load_settings
from embedding_platform.spaces import Role, Space

_SOURCES_NAMED = 20
"""Of those there are, in the line that refuses another."""

MOST_HITS = 1000
"""Hits of one search and space."""


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
        self._statistics: dict[str, WordStatistics] = {}

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
                hybrid=published.provenance.words,
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

        A `hybrid` search of words finds rows by their vectors and by their words, and fuses the
        two lists: a hit's score is the sum of 1 / (60 + its place) over the lists that have it
        (see `fused`). The first place of both is 2 / 61 = 0.0328, and nothing
        follows from how far two scores are apart; `vector_score` tells how near a hit is.

        Raises:
            PlatformError: if the space cannot encode the query, is not published, was made by a
                model that is no longer there, does not know a source of the filter, or has no
                words to be searched by.
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

        Without `spaces`, every published space is searched that encodes the query's role, has a
        source of the filter, and for a hybrid search has words; a source that none of them has is
        refused.
        """
        asked = self._query(query)
        words = _words(asked) if hybrid else ""
        hits: dict[str, list[Hit]] = {}
        for published, sources in self._chosen(asked, spaces, filter.sources, hybrid):
            vector = self._vector(asked, published)
            hits[published.space.key] = self._found(published, vector, words, sources, filter, limit)
        return hits

    def more_like(self, row_id: str, space: str, *, filter: Filter = ALL, limit: int = 5) -> list[Hit]:
        """The `limit` rows nearest to the vector of a row that the space holds, without that row; no model is loaded.

        Raises:
            PlatformError: if the space is not published or does not hold the row, or does not know a
                source of the filter.
        """
        published = self._readable(self._platform.space(space))
        rows = get_rows(self._platform.milvus, published.collection, [row_id])
        if not rows:
            raise PlatformError(f"{space} holds no row {row_id}; take the id of a hit of this space")
        vector = np.asarray(rows[0][VECTOR_FIELD], np.float32)
        hits = self._found(published, vector, "", filter.sources, filter, limit, besides=1)
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

    def _chosen(
        self, query: Query, keys: Sequence[str], sources: Sequence[str], hybrid: bool
    ) -> list[tuple[_Published, Sequence[str]]]:
        """The spaces to search, and of the sources asked for those that each has; a space that is named has to do."""
        named = [self._platform.space(key) for key in keys]
        able = [space for space in self._platform.spaces if query.role in space.model.roles]
        if not able:
            raise PlatformError(f"none of the spaces that the settings keep encodes {query.role}; add one to `spaces`")
        if unable := [space.key for space in named if space not in able]:
            those = ", ".join(space.key for space in able)
            raise PlatformError(f"{', '.join(unable)} cannot encode {query.role}; spaces that can: {those}")
        if named:
            chosen = [(self._readable(space), sources) for space in named]
        else:
            kept = self._kept(able, sources)
            chosen = [(published, held) for space, held in kept if (published := self._published(space))]
        with_words = [(published, held) for published, held in chosen if published.provenance.words]
        wordless = [published.space.key for published, _ in chosen if not published.provenance.words]
        if hybrid and wordless and (named or not with_words):
            raise PlatformError(
                f"{', '.join(wordless)} cannot be searched by words; leave hybrid out, choose a space of text, or set "
                "milvus.search_words and run `embedding-platform run`"
            )
        if not chosen:
            having = f" with the source {' or '.join(sources)}" if sources else ""
            raise PlatformError(f"no published space{having} can answer this; run `embedding-platform run` first")
        return with_words if hybrid else chosen

    def _kept(self, spaces: Sequence[Space], sources: Sequence[str]) -> list[tuple[Space, Sequence[str]]]:
        """Of the spaces those that have one of the sources asked for, with those that each has.

        Raises:
            PlatformError: for a source that none of them has.
        """
        if not sources:
            return [(space, ()) for space in spaces]
        modalities = {space.modality for space in spaces}
        listed = {modality: listed_sources(self._platform.store, modality) for modality in modalities}
        known = {source for names in listed.values() for source in names}
        if unknown := [source for source in sources if not among(known, [source])]:
            raise PlatformError(
                f"unknown source {', '.join(map(repr, unknown))} in {', '.join(space.key for space in spaces)}; "
                + (f"choose among {', '.join(sorted(known)[:_SOURCES_NAMED])}" if known else "none is listed yet")
            )
        held = [(space, [asked for asked in sources if among(listed[space.modality], [asked])]) for space in spaces]
        return [(space, names) for space, names in held if names]

    def _meant(self, asked: Sequence[str], modality: str) -> list[str]:
        """The sources that are asked for, and of a folder that is or was shared out all that ever had files of it."""
        store, counts = self._platform.store, self._platform.settings.listing.buckets
        # Where there are many sources, it takes long to list them all.
        folders = [source for source in asked if source in counts or not is_listed(store, modality, source)]
        had = among(once_listed(store, modality), folders) if folders else []
        return list(dict.fromkeys([*asked, *had]))

    def _vector(self, query: Query, published: _Published) -> np.ndarray:
        """The query's vector, float32 [d], by the model that made the collection."""
        former, precision = maker_of(self._platform, published.space, published.provenance)
        encoder = self._platform.encoder(former, precision, for_queries=True)
        with self._encoding:
            (vector,) = encode([query], former, encoder)
        return np.asarray(vector)

    def _found(
        self,
        published: _Published,
        vector: np.ndarray,
        words: str,
        sources: Sequence[str],
        filter: Filter,
        limit: int,
        besides: int = 0,
    ) -> list[Hit]:
        """Hits by vector, float32 [d], and by words where there are any; `besides` come above the limit."""
        if not 1 <= limit <= MOST_HITS:
            raise PlatformError(f"limit is {limit}; choose from 1 to {MOST_HITS}")
        client, collection, metric = self._platform.milvus, published.collection, published.provenance.metric
        meant = self._meant(sources, published.space.modality)
        index, kept = published.space.index, (meant or None, filter.condition)
        most = max(limit, CANDIDATES) if words else limit + besides
        rows = search_rows(client, collection, vector, most, index, metric, *kept)
        if not words:
            return [hit_of(published.space, {**row, "vector_score": row["score"]}) for row in rows]
        statistics = word_statistics(client, collection, self._statistics.get(collection))
        self._statistics[collection] = statistics
        worded = search_words(client, collection, words, CANDIDATES, statistics, *kept)
        rows = fused(rows, worded, vector, metric, limit)
        return [hit_of(published.space, row) for row in rows]


def _words(query: Query) -> str:
    """The words of a query.

    Raises:
        PlatformError: if it is none of text.
    """
    words = " ".join(content for content in query.contents if isinstance(content, str))
    if not words:
        raise PlatformError(f"a hybrid search wants words, and {query.name} is {query.role}; leave hybrid out")
    return words
