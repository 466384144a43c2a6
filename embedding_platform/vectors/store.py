"""The vector store: append-only, content-addressed Parquet shards, one folder per source.

Reading is the union of shards restricted to what is wanted; equal content has one vector,
whatever its path. The folder of a source lies beside those of the space's other sources, so
content that moved between sources finds its vector again.
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import storage
from embedding_platform.errors import PlatformError
from embedding_platform.increments import index_of
from embedding_platform.records import vectors_schema

SHARD_BYTES = 64 * 2**20
"""Size of a shard after compaction: a few of them fit into memory while they are joined."""


class VectorBatch(NamedTuple):
    """Content hashes [n], their vectors float32 [n, d], and the provenance of each."""

    hashes: np.ndarray
    vectors: np.ndarray
    run_ids: list[str]
    embedded_at: list[datetime]


class Wanted:
    """Content hashes to be met once each: `taken` tells of each whether it was."""

    def __init__(self, wanted: pd.Index) -> None:
        self.hashes = pa.array(wanted, pa.string())
        self.taken = np.zeros(len(self.hashes), dtype=bool)

    def rows_in(self, hashes: pa.ChunkedArray) -> np.ndarray:
        """Numbers of the rows, ascending, that hold a wanted hash for the first time."""
        places = self._places(hashes)
        rows = np.flatnonzero(places >= 0)
        rows = rows[~self.taken[places[rows]]]
        _, first = np.unique(places[rows], return_index=True)
        return np.sort(rows[first])

    def take(self, hashes: pa.ChunkedArray) -> None:
        """Count the wanted ones among the hashes as met."""
        places = self._places(hashes)
        self.taken[places[places >= 0]] = True

    def _places(self, hashes: pa.ChunkedArray) -> np.ndarray:
        return pc.index_in(hashes, value_set=self.hashes).fill_null(-1).to_numpy()


def shard_hashes(folder: str, fingerprint: str) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """Yield the name of each shard and the content hashes of its rows.

    Raises:
        PlatformError: if a shard holds vectors of another fingerprint.
    """
    for name, table in storage.named_shards(folder, vectors_schema(1), ["content_hash", "fingerprint"]):
        others = table.filter(pc.not_equal(table["fingerprint"], fingerprint))
        if others.num_rows:
            raise PlatformError(
                f"shard {storage.join(folder, name)} holds vectors of another model: "
                f"stored={others['fingerprint'][0]}, expected={fingerprint}; "
                "remove this file and run again: what is missing then is embedded anew"
            )
        yield name, table["content_hash"]


def stored_hashes(folder: str, fingerprint: str) -> pd.Index:
    """The content hashes that have a vector in `folder`, each once.

    Raises:
        PlatformError: if a shard holds vectors of another fingerprint.
    """
    return index_of(pc.unique(_joined([hashes for _, hashes in shard_hashes(folder, fingerprint)])))


def append(folder: str, hashes: list[str], vectors: np.ndarray, fingerprint: str, run_id: str, device: str) -> str:
    """Store vectors float32 [n, d] under their content hashes as one durable shard; returns its name.

    `fingerprint` is that of the space whose model made them.
    """
    count, dimension = vectors.shape
    values = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    table = pa.table(
        {
            "content_hash": pa.array(hashes, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(values, dimension),
            "run_id": pa.array([run_id] * count, pa.string()),
            "embedded_at": pa.array([datetime.now(UTC)] * count, pa.timestamp("us", tz="UTC")),
            "device": pa.array([device] * count, pa.string()),
            "fingerprint": pa.array([fingerprint] * count, pa.string()),
        },
        schema=vectors_schema(dimension),
    )
    return storage.append_shard(folder, table)


def iterate(folder: str, dimension: int, wanted: pd.Index, fingerprint: str) -> Iterator[VectorBatch]:
    """Yield the vectors of the wanted content hashes, each once, one shard in memory at a time.

    Of a shard that holds none of them only the hashes are read.

    Raises:
        PlatformError: if a shard holds vectors of another fingerprint.
    """
    for table in _iterate(folder, dimension, Wanted(wanted), fingerprint):
        yield _batch(table, dimension)


def reuse(space_folder: str, own_folder: str, dimension: int, wanted: pd.Index, fingerprint: str) -> pd.Index:
    """Copy vectors of wanted content hashes from the space's other sources; returns those found."""
    contents = Wanted(wanted)
    own_name = own_folder.rsplit("/", 1)[-1]
    for name in storage.subfolders(space_folder):
        if contents.taken.all():
            break
        if name != own_name:
            for table in _iterate(storage.join(space_folder, name), dimension, contents, fingerprint):
                storage.append_shard(own_folder, table)
    found = contents.hashes.filter(pa.array(contents.taken))
    return index_of(found.sort())


def compact(
    folder: str,
    dimension: int,
    fingerprint: str,
    rows_per_shard: int | None = None,
    fewest: int = storage.FEWEST_SHARDS,
) -> int:
    """Rewrite many small shards into few of SHARD_BYTES that hold each content once; the number of shards removed.

    Nothing is dropped that no other shard holds: a content that is gone may come back, or be on
    its way to another source, and is not embedded again then. See `storage.compact_shards`.
    """
    rows_per_shard = rows_per_shard or max(1, SHARD_BYTES // (4 * dimension))
    # Asked only when the shards to rewrite have been named, so that it knows of all that they hold.
    wanted = cache(lambda: Wanted(stored_hashes(folder, fingerprint)))

    def keep(table: pa.Table) -> pa.Table:
        contents = wanted()
        rows = contents.rows_in(table["content_hash"])
        contents.take(table["content_hash"].take(rows))
        return table.take(rows)

    return storage.compact_shards(folder, vectors_schema(dimension), keep, rows_per_shard, fewest)


def keep_only(folder: str, dimension: int, fingerprint: str, contents: pd.Index) -> int:
    """Drop the vectors of all other contents, one shard in memory at a time; the number of vectors dropped.

    What a shard keeps is durable in another before it goes.

    Raises:
        PlatformError: if a shard holds vectors of another fingerprint.
    """
    dropped = 0
    for name, hashes in shard_hashes(folder, fingerprint):
        kept = pc.is_in(hashes, value_set=pa.array(contents, pa.string()))
        if pc.all(kept).as_py():
            continue
        # One that is gone was rewritten by another run.
        with suppress(FileNotFoundError):
            for table in storage.iterate_shards(folder, vectors_schema(dimension), names=[name]):
                rest = table.filter(kept)
                if rest.num_rows:
                    storage.append_shard(folder, rest)
                storage.remove_shards(folder, [name])
                dropped += table.num_rows - rest.num_rows
    return dropped


def vectors_of(table: pa.Table, dimension: int) -> np.ndarray:
    """The column `vector` of a shard as float32 [n, dimension]."""
    column = table["vector"].combine_chunks()
    vectors: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
    return vectors


def _iterate(folder: str, dimension: int, wanted: Wanted, fingerprint: str) -> Iterator[pa.Table]:
    """Yield rows of the hashes that were not met yet, each once, and count them as met."""

    def choose() -> dict[str, np.ndarray]:
        # All at once, since each look-up makes a table of all that is wanted.
        shards = list(shard_hashes(folder, fingerprint))
        if not shards:
            return {}
        rows = wanted.rows_in(_joined([hashes for _, hashes in shards]))
        ends = np.cumsum([len(hashes) for _, hashes in shards])
        parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
        return {
            name: part - (end - len(hashes))
            for (name, hashes), part, end in zip(shards, parts, ends, strict=True)
            if len(part)
        }

    schema = vectors_schema(dimension)
    for table in storage.iterate_rows(folder, schema, schema.names, choose):
        wanted.take(table["content_hash"])
        yield table


def _joined(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())


def _batch(table: pa.Table, dimension: int) -> VectorBatch:
    vectors = vectors_of(table, dimension)
    hashes = np.array(table["content_hash"].to_pylist(), dtype=object)
    return VectorBatch(hashes, vectors, table["run_id"].to_pylist(), table["embedded_at"].to_pylist())
