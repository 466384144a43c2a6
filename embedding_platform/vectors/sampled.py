"""A sample of a source's vectors that is the same however they lie in shards: those of the least content hashes.

A hash has nothing to do with what its content is about, nor with the order in which contents came, so
that the least ones are a random choice (a bottom-k sample: Cohen & Kaplan 2007, "Summarizing data
using bottom-k sketches"). Where they are scattered over much, they are kept beside the shards: a run
reads those that are new.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import storage
from embedding_platform.records import vectors_schema
from embedding_platform.vectors.store import vectors_of

MOST = 2000
"""Vectors of a sample."""


@dataclass(frozen=True)
class Sample:
    """Some contents, in the order of their hashes, and their vectors, float32 [n, d]."""

    contents: list[str]
    vectors: np.ndarray


def sample_stored(
    folder: str,
    dimension: int,
    shards: Sequence[tuple[str, pa.ChunkedArray]],
    rows: np.ndarray,
    name: str = "sample",
) -> Sample:
    """At most MOST vectors of those in `rows`, ascending numbers over all shards, each of another content.

    `shards` are the names of the folder's shards and the content hashes of their rows. A shard that goes
    away meanwhile is left out. What is kept for the next time is kept under `name`.

    Raises:
        PlatformError: if a shard is unreadable, or what is kept of a sample.
    """
    url = kept_url(folder, name)
    schema = _kept_schema(dimension)
    chosen = {name: least for name, least in _least(shards, rows) if len(least)}
    marks = storage.shard_marks(folder)
    kept = storage.read_table(url, schema)
    parts = [schema.empty_table()]
    for name, places in chosen.items():
        mark = marks.get(name, "")
        held = kept.filter(pc.and_(pc.equal(kept["mark"], mark), pc.is_in(kept["row"], value_set=pa.array(places))))
        others = np.setdiff1d(places, held["row"].to_numpy())
        parts += [held, *_read(folder, dimension, name, mark, others)]
    sample = pa.concat_tables(parts).sort_by("content_hash")
    # Of fewer, all lie in as little as would be read of what is kept.
    is_worth_it = sample.num_rows > 0 and sum(len(hashes) for _, hashes in shards) > storage.ROWS_PER_GROUP
    if is_worth_it and not sample.equals(kept):
        storage.write_table(url, sample)
    elif not is_worth_it and kept.num_rows:
        # It may hold what was pruned.
        storage.remove(url)
    return Sample(sample["content_hash"].to_pylist(), vectors_of(sample, dimension))


def kept_url(folder: str, name: str) -> str:
    """Where a sample of the vectors in `folder` is kept under a name."""
    return storage.join(folder, "judged", f"{name}.parquet")


def least_distinct(hashes: pa.ChunkedArray) -> pa.Array:
    """The MOST least of the hashes, each once, sorted; no set of all of them is made."""
    count = MOST
    while True:
        least = _least_of(hashes, count)
        distinct = hashes.take(least).unique()
        if len(distinct) >= MOST or len(least) == len(hashes):
            return distinct.sort().slice(0, MOST)
        count *= 4


def _kept_schema(dimension: int) -> pa.Schema:
    """Each row of a sample with the mark of the shard that it was read from, and its number there."""
    vectors = vectors_schema(dimension)
    return pa.schema(
        [("mark", pa.string()), ("row", pa.int64()), vectors.field("content_hash"), vectors.field("vector")]
    )


def _least(shards: Sequence[tuple[str, pa.ChunkedArray]], rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Row numbers in each shard, ascending, of the contents with the least hashes among `rows`."""
    if not len(rows):
        return
    joined = pa.chunked_array([chunk for _, hashes in shards for chunk in hashes.chunks], pa.string())
    places = np.sort(rows[_least_of(joined.take(pa.array(rows)), MOST).to_numpy()])
    ends = np.cumsum([len(own) for _, own in shards])
    parts = np.split(places, np.searchsorted(places, ends[:-1]))
    for (name, own), part, end in zip(shards, parts, ends, strict=True):
        yield name, part - (end - len(own))


def _least_of(hashes: pa.ChunkedArray, count: int) -> pa.Array:
    """Places of so many of the least hashes."""
    table = pa.table({"hash": hashes})
    return pc.select_k_unstable(table, k=min(count, len(hashes)), sort_keys=[("hash", "ascending")])


def _read(folder: str, dimension: int, name: str, mark: str, rows: np.ndarray) -> Iterator[pa.Table]:
    chosen: Iterator[Mapping[str, np.ndarray]] = iter([{name: rows}] if len(rows) else [])
    columns = ["content_hash", "vector"]
    for table in storage.iterate_rows(folder, vectors_schema(dimension), columns, lambda: next(chosen, {})):
        count = table.num_rows
        own = [pa.array([mark] * count, pa.string()), pa.array(rows, pa.int64())]
        yield pa.table([*own, *table.columns], schema=_kept_schema(dimension))
