"""From a query to hits, and from a hit back to the run that made it."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.media.cutting import cut, read
from embedding_platform.media.listing import file_system
from embedding_platform.media.recognition import recognise
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.query import get_rows, search_rows
from embedding_platform.milvus.schema import Provenance, alias_name, read_provenance
from embedding_platform.models.encoder import Encoder, Precision
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import listed_sources, stored_items
from embedding_platform.records import Content, Item
from embedding_platform.spaces import MODALITIES, MODEL_SETS, Role, Space
from embedding_platform.vectors.judgement import normalise

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")

MOST_QUERY_SEGMENTS = 16
"""Segments of a query file that are embedded; their mean is the query vector."""


@dataclass(frozen=True)
class Query:
    """What is searched for: the contents of one role, and how people call it."""

    role: Role
    contents: tuple[Content, ...]
    name: str


@dataclass(frozen=True)
class Hit:
    """One row found: where it is, how near, and what made it.

    `where` is the place inside the file ("characters 120-840", "seconds 0.0-30.0", "").
    """

    space: str
    id: str
    score: float
    source: str
    path: str
    uri: str
    role: str
    where: str
    text: str
    content_hash: str
    model: str
    run_id: str
    embedded_at: str


@dataclass(frozen=True)
class Trace:
    """From a row back to its file, model and run."""

    hit: Hit
    collection: str
    provenance: Provenance
    attributes: dict[str, Any]
    file: Item | None


def text_query(text: str) -> Query:
    """A query in words.

    Raises:
        PlatformError: if there are none.
    """
    if not text.strip():
        raise PlatformError("the query is empty; say what you look for")
    return Query("text", (text,), f'"{text}"')


def file_query(platform: Platform, path: str) -> Query:
    """A query by example: the file's segments, decoded as if it were to be indexed.

    Raises:
        PlatformError: if the file is not there, holds no known media, or cannot be decoded.
    """
    uri = path if "://" in path else os.path.abspath(path)
    fs, inner = file_system(uri)
    if not fs.isfile(inner):
        raise PlatformError(f"{path} is no file; name a text, image, audio or video file to search by")
    try:
        known = recognise(os.path.basename(path), uri, platform.settings.decoding)
        if known is None:
            raise PlatformError(f"{path} holds no media that can be searched by; name text, image, audio or video")
        modality, media_type = known
        item = Item(os.path.basename(path), uri, fs.size(inner), "", media_type, "")
        segments = cut(modality, "", item, platform.cutting)[:MOST_QUERY_SEGMENTS]
        return Query(segments[0].role, tuple(read(modality, segments, platform.settings.decoding)), path)
    except RejectedError as error:
        raise PlatformError(f"{path} cannot be searched by: {error}") from None


def search(
    platform: Platform,
    query: Query,
    spaces: Sequence[Space] = (),
    sources: Sequence[str] = (),
    limit: int = 5,
) -> dict[str, list[Hit]]:
    """The `limit` nearest rows of each space, best first, by space key.

    Without `spaces`, every published space that embeds the query's role is searched. The
    query is encoded by the model that made the collection.

    Raises:
        PlatformError: if a space cannot encode the query, is not published, or was made by
            another model than the settings name.
    """
    able = [space for space in platform.spaces if query.role in space.model.roles]
    if not able:
        raise PlatformError(f"none of the spaces that the settings keep encodes {query.role}; add one to `spaces`")
    unable = [space.key for space in spaces if space not in able]
    if unable:
        those = ", ".join(space.key for space in able)
        raise PlatformError(f"{', '.join(unable)} cannot encode {query.role}; spaces that can: {those}")
    chosen = [(space, list(sources)) for space in spaces] or [
        (space, held)
        for space in able
        if (held := _held(platform, space, sources)) is not None
        and alias_target(platform.milvus, alias_name(space.key))
    ]
    if not chosen:
        among = f" with the source {' or '.join(sources)}" if sources else ""
        raise PlatformError(f"no published space{among} can answer this; run `embedding-platform run` first")
    return {space.key: _search_space(platform, query, space, held, limit) for space, held in chosen}


def trace(platform: Platform, row_id: str) -> list[Trace]:
    """The row called `row_id` in every published space that holds it, back to its file.

    Raises:
        PlatformError: if no published space has the row.
    """
    traces = []
    for space in platform.spaces:
        alias = alias_name(space.key)
        collection = alias_target(platform.milvus, alias)
        if collection is None:
            continue
        for row in get_rows(platform.milvus, alias, [row_id]):
            items = stored_items(platform.store, space.modality, row["source"])
            file = next((item for item in items if item.path == row["path"]), None)
            provenance = read_provenance(platform.milvus, alias)
            traces.append(Trace(_hit(space, {**row, "score": 1.0}), collection, provenance, row["attributes"], file))
    if not traces:
        raise PlatformError(
            f"no published space holds the id {row_id!r}; copy one from `embedding-platform search --json`"
        )
    return traces


def as_json(hits: dict[str, list[Hit]]) -> dict[str, list[dict[str, Any]]]:
    """Hits as plain data."""
    return {space: [asdict(hit) for hit in found] for space, found in hits.items()}


def _search_space(platform: Platform, query: Query, space: Space, sources: Sequence[str], limit: int) -> list[Hit]:
    alias = alias_name(space.key)
    if alias_target(platform.milvus, alias) is None:
        raise PlatformError(f"{space.key} is not published yet; run `embedding-platform run` first")
    former, precision = _maker(platform, space, read_provenance(platform.milvus, alias))
    vector = encode(query, former, platform.encoder(former, precision, for_queries=True))
    rows = search_rows(platform.milvus, alias, vector, limit, space.index, space.metric, list(sources) or None)
    return [_hit(space, row) for row in rows]


def encode(query: Query, space: Space, encoder: Encoder) -> np.ndarray:
    """The query's vector in the space, float32 [d]: the mean over its contents."""
    vectors = encoder.embed(query.role, query.contents, "query")
    if space.normalised:
        vectors = normalise(vectors)
    mean = vectors.mean(axis=0, keepdims=True)
    return (normalise(mean) if space.normalised else mean)[0].astype(np.float32)


def _maker(platform: Platform, space: Space, provenance: Provenance) -> tuple[Space, Precision]:
    """Model and precision that made the collection; while a migration is under way those are the former ones."""
    catalogue = [known for spaces in MODEL_SETS.values() for known in spaces if known.key == space.key]
    own = platform.settings.precision
    for candidate in (space, *catalogue):
        for precision in (own, *(other for other in PRECISIONS if other != own)):
            try:
                fingerprint = platform.fingerprint(candidate, precision)
            except PlatformError:
                # A model of the catalogue that is not installed here did not make the collection.
                break
            if fingerprint == provenance.fingerprint:
                return candidate, precision
    raise PlatformError(
        f"{space.key} is published with {provenance.model} (fingerprint {provenance.fingerprint[:12]}), which the "
        "settings no longer name; set that model back, or run `embedding-platform run` to migrate"
    )


def _held(platform: Platform, space: Space, sources: Sequence[str]) -> list[str] | None:
    """Those of the sources asked for that the space has; None if it has none of them."""
    if not sources:
        return []
    return [source for source in listed_sources(platform.store, space.modality) if source in sources] or None


def _hit(space: Space, row: dict[str, Any]) -> Hit:
    names = ("id", "score", "source", "path", "uri", "role", "text", "content_hash", "model", "run_id", "embedded_at")
    unit = MODALITIES[space.modality].unit
    where = "" if unit == "whole" else f"{unit} {_number(row['start'], unit)}-{_number(row['end'], unit)}"
    return Hit(space=space.key, where=where, **{name: row[name] for name in names})


def _number(value: float, unit: str) -> str:
    return f"{value:.0f}" if unit == "characters" else f"{value:.2f}"
