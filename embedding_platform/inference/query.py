"""Queries: words or a file, and the vector of one in a space."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from embedding_platform.errors import PlatformError, RejectedError, first_line
from embedding_platform.media.cutting import Cutting, cut, read
from embedding_platform.media.recognition import recognise
from embedding_platform.models.encoder import Encoder
from embedding_platform.records import Content, Item
from embedding_platform.spaces import Role, Space
from embedding_platform.storage import file_system
from embedding_platform.vectors.judgement import normalise

MOST_QUERY_SEGMENTS = 16
"""Segments of a query file that are decoded and embedded, from its beginning; their mean is the query vector."""


@dataclass(frozen=True)
class Query:
    """What is searched for: the contents of one role, and how people call it."""

    role: Role
    contents: tuple[Content, ...]
    name: str


def text_query(text: str) -> Query:
    """A query in words.

    Raises:
        PlatformError: if there are none.
    """
    if not text.strip():
        raise PlatformError("the query is empty; say what you look for")
    return Query("text", (text,), f'"{text}"')


def read_query(path: str, cutting: Cutting) -> Query:
    """A query by example: the file's segments, decoded as if it were to be indexed.

    Raises:
        PlatformError: if the file is not there, holds no known media, or cannot be decoded.
    """
    uri = path if "://" in path else os.path.abspath(path)
    fs, inner = file_system(uri)
    if not fs.isfile(inner):
        raise PlatformError(f"{path} is no file; name a text, image, audio or video file to search by")
    try:
        known = recognise(os.path.basename(path), uri, cutting.decoding)
        if known is None:
            raise PlatformError(f"{path} holds no media that can be searched by; name text, image, audio or video")
        modality, media_type = known
        item = Item(os.path.basename(path), uri, fs.size(inner), "", media_type, "")
        segments = cut(modality, "", item, replace(cutting, most_segments=MOST_QUERY_SEGMENTS))
        return Query(segments[0].role, tuple(read(modality, segments, cutting.decoding)), path)
    except RejectedError as error:
        raise PlatformError(f"{path} cannot be searched by: {error}") from None


def encode(queries: Sequence[Query], space: Space, encoder: Encoder) -> np.ndarray:
    """Vectors of queries of one role in the space, float32 [len(queries), d]: each the mean over its contents.

    Raises:
        PlatformError: if the model does not take a query.
    """
    contents = [content for query in queries for content in query.contents]
    try:
        vectors = encoder.embed(queries[0].role, contents, "query")
    except ValueError as error:
        raise PlatformError(f"{space.key} does not take {_named(queries, encoder)}: {first_line(error)}") from None
    if space.normalised:
        vectors = normalise(vectors)
    ends = np.cumsum([len(query.contents) for query in queries])
    means = np.stack([part.mean(axis=0) for part in np.split(vectors, ends[:-1])])
    return (normalise(means) if space.normalised else means).astype(np.float32)


def _named(queries: Sequence[Query], encoder: Encoder) -> str:
    """The first query that the model refuses by itself, or all of them by their number."""
    for query in queries:
        try:
            for content in query.contents:
                encoder.prepare(query.role, content, "query")
        except ValueError:
            return f"the query {query.name}"
    return f"the query {queries[0].name}" if len(queries) == 1 else f"one of {len(queries)} queries"
