"""Held-out queries: what people ask, rather than what is stored, to measure recall with."""

import hashlib
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.inference.query import Query, encode, read_query, text_query
from embedding_platform.media.cutting import Cutting, code_version
from embedding_platform.media.listing import list_entries
from embedding_platform.media.reading import open_media
from embedding_platform.media.recognition import recognise
from embedding_platform.models.encoder import Encoder
from embedding_platform.records import digest
from embedding_platform.spaces import MODALITIES, Role, Space

MOST_QUERIES = 200
"""Queries that are used. Of more, a seeded sample is: those whose digest comes first."""

_SEED = "held-out queries"

_TEXTS_PER_CALL = 32
"""Texts that the model is given at once; files are large, and go one by one."""

_HASH_BLOCK_BYTES = 1 << 20

_HELD_OUT = pa.schema([("content", pa.string()), ("vector", pa.list_(pa.float32()))])
"""One row per query; `content` is a digest of all that decides its vector besides the model."""


@dataclass(frozen=True)
class _Waiting:
    """A query that is not read yet: its role, a digest of its content, and how to read it."""

    role: Role
    content: str
    read: Callable[[], Query]


def held_out_queries(
    store: str,
    space: Space,
    fingerprint: str,
    url: str | None,
    cutting: Cutting,
    load_encoder: Callable[[], Encoder],
) -> np.ndarray | None:
    """Vectors of a space's held-out queries, float32 [q, d], q at most MOST_QUERIES; None without `url`.

    `url` is what the setting `quality.queries` names: a .txt file with a query in each line, or
    a folder of media files and of such .txt files. Vectors are kept in the store by fingerprint
    and content: the model is loaded only for queries that are new or changed. The rows are in
    the order of the contents' digests.

    Raises:
        PlatformError: if the place is not there, holds no query, or holds one that the
            space's model does not embed or take.
    """
    if url is None:
        return None
    waiting = _sampled({query.content: query for query in _queries(space, url, cutting)})
    if not waiting:
        raise PlatformError(f"quality.queries.{space.key}: {url} holds no query; write one, or leave the setting out")
    place = layout.held_out_url(store, space.key, fingerprint)
    kept = storage.read_table(place, _HELD_OUT)
    vectors = dict(zip(kept["content"].to_pylist(), kept["vector"].to_pylist(), strict=True))
    missing = [query for query in waiting if query.content not in vectors]
    if missing:
        vectors |= _encoded(missing, space, load_encoder())
    wanted = {query.content: vectors[query.content] for query in waiting}
    if wanted.keys() != set(kept["content"].to_pylist()):
        columns = [pa.array(wanted, pa.string()), pa.array(list(wanted.values()), pa.list_(pa.float32()))]
        storage.write_table(place, pa.Table.from_arrays(columns, schema=_HELD_OUT))
    return np.array(list(wanted.values()), np.float32)


def _queries(space: Space, url: str, cutting: Cutting) -> Iterator[_Waiting]:
    fs, path = storage.file_system(url)
    fs.invalidate_cache(path)
    if fs.isdir(path):
        root, _, name = url.rstrip("/").rpartition("/")
        for entry in list_entries(root or "/", name):
            yield from _of_file(space, entry.uri, cutting)
    elif fs.exists(path):
        yield from _of_file(space, url, cutting)
    else:
        raise PlatformError(f"quality.queries.{space.key}: {url} is not there; correct the path, or leave it out")


def _of_file(space: Space, uri: str, cutting: Cutting) -> Iterator[_Waiting]:
    try:
        if uri.lower().endswith(".txt"):
            _refuse_foreign("text", space, uri)
            for line in _lines(space, uri):
                yield _Waiting("text", digest("text", line), partial(text_query, line))
            return
        known = recognise(posixpath.basename(uri), uri, cutting.decoding)
        if known is None:
            raise PlatformError(
                f"quality.queries.{space.key}: {uri} is neither .txt nor media; take it away, or begin its name with "
                "a dot"
            )
        role = MODALITIES[known[0]].roles[0]
        _refuse_foreign(role, space, uri)
        content = digest(role, code_version(known[0], cutting), _hash_of(uri))
        yield _Waiting(role, content, partial(read_query, uri, cutting))
    except RejectedError as error:
        raise PlatformError(f"quality.queries.{space.key}: {uri} {error}; mend it, or take it away") from None


def _lines(space: Space, uri: str) -> list[str]:
    with open_media(uri) as file:
        payload = file.read()
    try:
        lines = payload.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise PlatformError(f"quality.queries.{space.key}: {uri} is not UTF-8; save it as UTF-8") from None
    return [line.strip() for line in lines if line.strip()]


def _refuse_foreign(role: Role, space: Space, uri: str) -> None:
    if role not in space.model.roles:
        raise PlatformError(
            f"quality.queries.{space.key}: {uri} is {role}, but the space's model embeds "
            f"{' and '.join(space.model.roles)}; take it away, or name another space"
        )


def _hash_of(uri: str) -> str:
    hasher = hashlib.sha256()
    with open_media(uri) as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


def _sampled(waiting: dict[str, _Waiting]) -> list[_Waiting]:
    # By digest, so that a query that comes or goes changes one of the sample at most.
    chosen = sorted(waiting, key=lambda content: digest(_SEED, content))[:MOST_QUERIES]
    return [waiting[content] for content in sorted(chosen)]


def _encoded(waiting: Sequence[_Waiting], space: Space, encoder: Encoder) -> dict[str, list[float]]:
    vectors: dict[str, list[float]] = {}
    for role in dict.fromkeys(query.role for query in waiting):
        own = [query for query in waiting if query.role == role]
        most = _TEXTS_PER_CALL if role == "text" else 1
        for start in range(0, len(own), most):
            part = own[start : start + most]
            found = encode([query.read() for query in part], space, encoder)
            vectors |= {query.content: vector.tolist() for query, vector in zip(part, found, strict=True)}
    return vectors
