"""What readers find in Milvus and what a store holds, read without the code under test."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.schema import alias_name, partition_name, read_provenance
from embedding_platform.platform import Platform
from embedding_platform.spaces import Space

PROVENANCE = ("run_id", "embedded_at")
"""Fields that tell of the run that made a vector, which a rebuild does not repeat."""


@dataclass(frozen=True)
class Published:
    """One published collection: its rows by id without their provenance, its partitions and its index.

    Each row is a list of all that Milvus answers for the key, which should be one. A collection
    that is `keyed` has no partitions of ours.
    """

    rows: dict[str, list[dict[str, Any]]]
    partitions: frozenset[str]
    index: tuple[str, str, str]
    keyed: bool = False


def published(platform: Platform) -> dict[str, Published]:
    """What is published of each space that has rows."""
    found = {}
    for space in platform.spaces:
        target = alias_target(platform.milvus, alias_name(space.key))
        if target is not None:
            collection = read_collection(platform, target)
            if collection.rows:
                found[space.key] = collection
    return found


def read_collection(platform: Platform, collection: str) -> Published:
    """A whole collection with all its partitions."""
    client = platform.milvus
    client.load_collection(collection)
    partitions = frozenset(client.list_partitions(collection)) - {"_default"}
    keyed = read_provenance(client, collection).layout == "keyed"
    rows: dict[str, list[dict[str, Any]]] = {}
    for partition in [None] if keyed else ["_default", *sorted(partitions)]:
        for row in read_partition(client, collection, partition):
            rows.setdefault(row["id"], []).append({**row, "partition": partition})
    return Published(rows, frozenset() if keyed else partitions, _index(client, collection), keyed)


def read_source(platform: Platform, space: Space, source: str) -> list[dict[str, Any]]:
    """The rows of one source in the collection that the space has or is to have; none without it."""
    target = platform.target(space)
    if target.layout == "named":
        return read_partition(platform.milvus, target.collection, partition_name(source))
    return [row for row in read_partition(platform.milvus, target.collection, None) if row["source"] == source]


def read_partition(client: Any, collection: str, partition: str | None) -> list[dict[str, Any]]:
    """The rows of one partition or of all, without their provenance; vectors as float32 arrays."""
    if not client.has_collection(collection):
        return []
    if partition is not None and not client.has_partition(collection, partition):
        return []
    client.load_collection(collection)
    found = client.query(
        collection,
        filter='id >= ""',
        output_fields=["*"],
        partition_names=None if partition is None else [partition],
        limit=16_384,
        consistency_level="Strong",
    )
    rows = [{name: value for name, value in row.items() if name not in PROVENANCE} for row in found]
    return [{**row, "vector": np.asarray(row["vector"], np.float32)} for row in rows]


def differences(found: dict[str, Published], expected: dict[str, Published]) -> list[str]:
    """All in which two platforms' published collections differ, one line each; none if they are equal."""
    return [f"{space}: {line}" for space in sorted({*found, *expected}) for line in _of_space(found, expected, space)]


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether two rows agree in every field that both a run and a rebuild decide, vectors in every bit."""
    return not list(_of_row(left, right))


def stored_contents(folder: str) -> list[str]:
    """Content hashes of all rows of all vector shards anywhere under a folder, as often as they are there."""
    hashes: list[str] = []
    for path in parquet_files(folder):
        # Beside the vectors lies what was found when they were judged.
        if "content_hash" in pq.read_schema(path).names:
            hashes += [content for (content,) in rows_of(path, ["content_hash"])]
    return hashes


def rows_of(path: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """The rows of one Parquet file; none if it is not there."""
    if not os.path.exists(path):
        return []
    table = pq.read_table(path, columns=list(columns), partitioning=None)
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def parquet_files(folder: str) -> list[str]:
    """Complete Parquet files anywhere under a folder."""
    return [
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.endswith(".parquet") and name[0] != "."
    ]


def stored_files(folder: str) -> dict[str, tuple[int, int]]:
    """Inode and mtime of every file under a folder."""
    return {
        os.path.join(parent, name): (status.st_ino, status.st_mtime_ns)
        for parent, _, names in os.walk(folder)
        for name in names
        for status in [os.stat(os.path.join(parent, name))]
    }


def _of_space(found: dict[str, Published], expected: dict[str, Published], space: str) -> Iterator[str]:
    if space not in found or space not in expected:
        yield "is published, yet a rebuild publishes no row" if space in found else "is not published, or empty"
        return
    one, other = found[space], expected[space]
    for key in sorted({*one.rows, *other.rows}):
        there, wanted = one.rows.get(key, []), other.rows.get(key, [])
        if len(there) != len(wanted):
            paths = {row["path"] for row in (*there, *wanted)}
            yield f"row {key} of {', '.join(sorted(paths))} is there {len(there)} times, not {len(wanted)}"
        else:
            yield from (f"row {key}: {line}" for line in _of_row(there[0], wanted[0]))
    if not (one.keyed or other.keyed) and one.partitions != other.partitions:
        yield f"partitions {sorted(one.partitions ^ other.partitions)} are only in one"
    if one.index != other.index:
        yield f"index {one.index}, expected {other.index}"


def _of_row(there: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    keyed = there.get("partition") is None or wanted.get("partition") is None
    for name in sorted({*there, *wanted} - {*PROVENANCE, *(["partition"] if keyed else [])}):
        left, right = there.get(name), wanted.get(name)
        if name == "vector":
            if not _vectors_agree(left, right):
                yield f"vector {left}, expected {right}"
        elif left != right:
            yield f"{name} {left!r}, expected {right!r}"


def _vectors_agree(left: Any, right: Any) -> bool:
    if left is None or right is None or left.shape != right.shape:
        return False
    return bool(np.array_equal(left.view(np.uint32), right.view(np.uint32)))


def _index(client: Any, collection: str) -> tuple[str, str, str]:
    from embedding_platform.milvus.index import INDEX_PROPERTY, VECTOR_FIELD

    (name,) = client.list_indexes(collection, field_name=VECTOR_FIELD)
    described = client.describe_index(collection, name)
    properties = client.describe_collection(collection)["properties"]
    return described["index_type"], described["metric_type"], properties.get(INDEX_PROPERTY, "{}")
