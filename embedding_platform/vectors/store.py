"""The vector store: append-only, content-addressed Parquet shards, one folder per source.

Reading is the union of shards restricted to what is wanted; equal content has one vector,
whatever its path. The folder of a source lies beside those of the space's other sources, so
content that moved between sources finds its vector again.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import storage
from embedding_platform.records import vectors_schema

SHARD_BYTES = 64 * 2**20
"""Size of a shard after compaction: a few of them fit into memory while they are joined."""


class VectorBatch(NamedTuple):
    """Content hashes [n], their vectors float32 [n, d], and the provenance of each."""

    hashes: np.ndarray
    vectors: np.ndarray
    run_ids: list[str]
    embedded_at: list[datetime]


def stored_hashes(folder: str) -> pd.Index:
    """The content hashes that have a vector in `folder`, each once."""
    columns = storage.read_shards(folder, vectors_schema(1), ["content_hash"])
    return pd.Index(columns["content_hash"].unique().to_pylist(), dtype=object)


def append(folder: str, hashes: list[str], vectors: np.ndarray, run_id: str, device: str) -> str:
    """Store vectors float32 [n, d] under their content hashes as one durable shard; returns its name."""
    count, dimension = vectors.shape
    values = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    table = pa.table(
        {
            "content_hash": pa.array(hashes, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(values, dimension),
            "run_id": pa.array([run_id] * count, pa.string()),
            "embedded_at": pa.array([datetime.now(UTC)] * count, pa.timestamp("us", tz="UTC")),
            "device": pa.array([device] * count, pa.string()),
        },
        schema=vectors_schema(dimension),
    )
    return storage.append_shard(folder, table)


def iterate(folder: str, dimension: int, wanted: pd.Index) -> Iterator[VectorBatch]:
    """Yield the vectors of the wanted content hashes, each once, one shard in memory at a time."""
    seen: set[str] = set()
    for table in storage.iterate_shards(folder, vectors_schema(dimension)):
        chosen = _not_seen(_only(table, wanted), seen)
        if chosen.num_rows:
            seen.update(chosen["content_hash"].to_pylist())
            yield _batch(chosen, dimension)


def reuse(space_folder: str, own_folder: str, dimension: int, wanted: pd.Index) -> pd.Index:
    """Copy vectors of wanted content hashes from the space's other sources; returns those found."""
    found: set[str] = set()
    own_name = own_folder.rsplit("/", 1)[-1]
    for name in storage.subfolders(space_folder):
        if name == own_name or len(found) == len(wanted):
            continue
        folder = storage.join(space_folder, name)
        held = wanted.intersection(stored_hashes(folder)).difference(list(found))
        if not len(held):
            continue
        for table in storage.iterate_shards(folder, vectors_schema(dimension)):
            chosen = _not_seen(_only(table, held), found)
            if chosen.num_rows:
                storage.append_shard(own_folder, chosen)
                found.update(chosen["content_hash"].to_pylist())
    return pd.Index(sorted(found), dtype=object)


def compact(folder: str, dimension: int, live: pd.Index, rows_per_shard: int | None = None) -> int:
    """Rewrite many small shards into few of SHARD_BYTES that hold live content only, each once.

    Returns the number of shards removed; see `storage.compact_shards`.
    """
    rows_per_shard = rows_per_shard or max(1, SHARD_BYTES // (4 * dimension))
    seen: set[str] = set()

    def keep(table: pa.Table) -> pa.Table:
        chosen = _not_seen(_only(table, live), seen)
        seen.update(chosen["content_hash"].to_pylist())
        return chosen

    return storage.compact_shards(folder, vectors_schema(dimension), keep, rows_per_shard)


def _only(table: pa.Table, wanted: pd.Index) -> pa.Table:
    return table.filter(pc.is_in(table["content_hash"], value_set=pa.array(wanted, pa.string())))


def _not_seen(table: pa.Table, seen: set[str]) -> pa.Table:
    hashes = pd.Series(table["content_hash"].to_pylist(), dtype=object)
    return table.filter(pa.array((~hashes.duplicated() & ~hashes.isin(seen)).to_numpy(dtype=bool)))


def _batch(table: pa.Table, dimension: int) -> VectorBatch:
    column = table["vector"].combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
    hashes = np.array(table["content_hash"].to_pylist(), dtype=object)
    return VectorBatch(hashes, vectors, table["run_id"].to_pylist(), table["embedded_at"].to_pylist())
