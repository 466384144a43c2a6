"""Load many new rows through Parquet files that a Milvus server reads from its own object storage.

A job of Milvus takes one file. It neither overwrites a key that is there nor notices one, so
only rows that the partition does not hold may be imported, and what a killed run began has to
be settled before the partition is read:

    settle_imports(client, partition, root)
    missing = compare_partition(client, partition, desired).increment.new
    import_rows(client, partition, rows(missing), root)
    sync_partition(client, partition, desired, rows)

Only a Milvus server can do it (`Deployment.imports_files`); Milvus Lite knows no import, and
Zilliz Cloud has one of its own that wants credentials of a cloud's storage. Both take upserts.
"""

import json
import posixpath
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import BUILD_SECONDS, CALL_SECONDS, explaining
from embedding_platform.milvus.deployment import deployment_of
from embedding_platform.milvus.expressions import compare
from embedding_platform.milvus.index import ensure_loaded
from embedding_platform.milvus.partitions import Partition, ensure_partition
from embedding_platform.milvus.schema import FIELD_NAMES, partition_name
from embedding_platform.storage import file_system, join

if TYPE_CHECKING:
    from pymilvus import MilvusClient
    from pymilvus.client.grpc_handler import GrpcHandler
    from pymilvus.client.types import BulkInsertState

FILE_ROWS = 200_000
FILE_BYTES = 256 * 2**20
"""Bounds of one file in memory, half of what a Milvus 2.3 puts into one segment."""

FILES_AT_ONCE = 4

JOB_SECONDS = 900.0
"""Deadline of one file: when Milvus itself gives an import up (rootCoord.importTaskExpiration)."""

_POLL_SECONDS = 0.2

_ARROW_TYPES: Mapping[str, pa.DataType] = {
    "VARCHAR": pa.string(),
    "INT32": pa.int32(),
    "DOUBLE": pa.float64(),
    "JSON": pa.string(),
    # Milvus 2.3 refuses lists of fixed size.
    "FLOAT_VECTOR": pa.list_(pa.float32()),
}
"""What a column of each Milvus type is in Parquet (milvus.io, "Prepare Source Data")."""


@dataclass(frozen=True)
class ImportReport:
    """What one import did; every row of it answers queries."""

    files: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class _Job:
    id: int
    file: str
    rows: int


def import_rows(
    client: "MilvusClient",
    partition: Partition,
    batches: Iterable[Sequence[Mapping[str, Any]]],
    root: str,
    job_seconds: float = JOB_SECONDS,
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Import complete rows (`schema.Row`) that the partition does not hold; they are searchable then.

    `root` is a folder or fsspec URL in the storage that Milvus reads: its bucket and a prefix,
    or a folder below `localStorage.path`. Files of bounded size are written there and imported,
    a few at once; each has `job_seconds`. `progress` hears after each file how many rows are in.
    The files are removed when all rows are there. After a failure they stay, so that
    `settle_imports` knows that something was begun.

    Raises:
        PlatformError: this Milvus imports no files, a job fails or does not end in time, or
            Milvus took another number of rows than a file or all of them hold.
    """
    if not deployment_of(client).imports_files:
        raise PlatformError(f"{deployment_of(client).name} imports no files; leave milvus.import_root empty")
    started = time.perf_counter()
    ensure_partition(client, partition)
    ensure_loaded(client, partition.collection)
    before = count_rows(client, partition)
    waiting: deque[_Job] = deque()
    files = rows = 0
    for file, written in _write_files(client, partition, batches, root):
        waiting.append(_begin(client, partition, file, written))
        files += 1
        if len(waiting) == FILES_AT_ONCE:
            rows += _await(client, waiting.popleft(), job_seconds)
            if progress is not None:
                progress(rows)
    while waiting:
        rows += _await(client, waiting.popleft(), job_seconds)
        if progress is not None:
            progress(rows)
    if files:
        _refresh(client, partition.collection)
        found = count_rows(client, partition)
        if found != before + rows:
            raise PlatformError(
                f"{partition} holds {found} rows after {rows} were imported to {before}; see that nobody else "
                "writes to it, then run again"
            )
        _remove_folder(_folder(partition, root))
    return ImportReport(files, rows, time.perf_counter() - started)


def settle_imports(client: "MilvusClient", partition: Partition, root: str, job_seconds: float = JOB_SECONDS) -> int:
    """Let end what a killed or failed import of this partition left behind; the number of its files.

    Milvus goes on with jobs whose client is gone, and shows their rows only later. Once this
    returns, a read of the partition shows all of them. Without leftovers Milvus is not asked.

    Raises:
        PlatformError: Milvus fails, or a job does not end in time.
    """
    folder = _folder(partition, root)
    left = _files_in(folder)
    if not left:
        return 0
    deadline = time.monotonic() + job_seconds
    while running := [state for state in _jobs(client, partition.collection) if _is_running(state, folder)]:
        if time.monotonic() >= deadline:
            raise PlatformError(
                f"{len(running)} imports to {partition} that a former run began do not end; see the log of Milvus, "
                "then run again"
            )
        time.sleep(_POLL_SECONDS)
    _refresh(client, partition.collection)
    _remove_folder(folder)
    return len(left)


def count_rows(client: "MilvusClient", partition: Partition) -> int:
    """Rows of a partition at Strong consistency; a key that was imported twice counts twice."""
    with explaining(f"count the rows of {partition}"):
        (answer,) = client.query(
            partition.collection,
            filter=partition.where(compare("id", ">=", "")),
            output_fields=["count(*)"],
            partition_names=partition.names,
            consistency_level="Strong",
            timeout=CALL_SECONDS,
        )
    return int(answer["count(*)"])


def _write_files(
    client: "MilvusClient", partition: Partition, batches: Iterable[Sequence[Mapping[str, Any]]], root: str
) -> Iterator[tuple[str, int]]:
    """Write batches to as few files as their bounds allow; each file's URL and rows, once it is closed."""
    kinds = _kinds(client, partition.collection)
    pending = (_table(rows, kinds) for rows in batches if rows)
    table = next(pending, None)
    while table is not None:
        file = join(_folder(partition, root), f"{uuid4().hex}.parquet")
        rows = size = 0
        with _open(file) as sink, pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
            while table is not None and (
                not rows or (rows + table.num_rows <= FILE_ROWS and size + table.nbytes <= FILE_BYTES)
            ):
                writer.write_table(table)
                rows, size = rows + table.num_rows, size + table.nbytes
                table = next(pending, None)
        yield file, rows


def _kinds(client: "MilvusClient", collection: str) -> dict[str, str]:
    """Type of each field that we write to a collection, by name."""
    with explaining(f"describe collection {collection}"):
        described = client.describe_collection(collection, timeout=CALL_SECONDS)
    return {field["name"]: field["type"].name for field in described["fields"] if field["name"] in FIELD_NAMES}


def _table(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> pa.Table:
    return pa.table({name: _column([row[name] for row in rows], kind) for name, kind in kinds.items()})


def _column(values: list[Any], kind: str) -> pa.Array:
    if kind == "FLOAT_VECTOR":
        ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
        return pa.ListArray.from_arrays(ends, np.concatenate(values).astype(np.float32, copy=False))
    if kind == "JSON":
        values = [json.dumps(value, ensure_ascii=False) for value in values]
    return pa.array(values, _ARROW_TYPES[kind])


def _begin(client: "MilvusClient", partition: Partition, file: str, rows: int) -> _Job:
    with explaining(f"begin to import {file} to {partition}"):
        job = _handler(client).do_bulk_insert(
            partition.collection, partition.name, [_path_in_storage(file)], timeout=CALL_SECONDS
        )
    return _Job(job, file, rows)


def _await(client: "MilvusClient", job: _Job, seconds: float) -> int:
    """Wait for a job; the number of rows that Milvus took, which is what the file holds."""
    from pymilvus.client.types import BulkInsertState

    deadline = time.monotonic() + seconds
    while True:
        with explaining(f"tell how far the import of {job.file} is"):
            state = _handler(client).get_bulk_insert_state(job.id, timeout=CALL_SECONDS)
        if state.state == BulkInsertState.ImportCompleted:
            break
        if state.state in (BulkInsertState.ImportFailed, BulkInsertState.ImportFailedAndCleaned):
            reason = " ".join(state.infos.get(BulkInsertState.FAILED_REASON, "").split()) or "it gives no reason"
            raise PlatformError(
                f"Milvus could not import {job.file}: {reason}; see that milvus.import_root lies in the storage that "
                "this Milvus reads, then run again: the next run does the rest"
            )
        if time.monotonic() >= deadline:
            raise PlatformError(
                f"Milvus has not imported {job.file} after {seconds:.0f} s ({state.state_name}); see the log of "
                "Milvus, then run again: the next run does the rest"
            )
        time.sleep(_POLL_SECONDS)
    if state.row_count != job.rows:
        raise PlatformError(
            f"Milvus imported {state.row_count} of the {job.rows} rows in {job.file}; run again: the next run does "
            "the rest"
        )
    return job.rows


def _jobs(client: "MilvusClient", collection: str) -> list["BulkInsertState"]:
    with explaining(f"list the imports to {collection}"):
        return list(_handler(client).list_bulk_insert_tasks(0, collection, timeout=CALL_SECONDS))


def _is_running(state: "BulkInsertState", folder: str) -> bool:
    """Whether a job of this folder's files has not ended; one that names no file may be of any folder."""
    from pymilvus.client.types import BulkInsertState

    ended = (
        BulkInsertState.ImportCompleted,
        BulkInsertState.ImportFailed,
        BulkInsertState.ImportFailedAndCleaned,
    )
    files = state.infos.get(BulkInsertState.IMPORT_FILES, "")
    return state.state not in ended and (not files or _path_in_storage(folder) in files)


def _refresh(client: "MilvusClient", collection: str) -> None:
    """Show the rows of finished imports to queries, which otherwise takes half a minute."""
    ensure_loaded(client, collection)
    with explaining(f"load what was imported to {collection}"):
        client.refresh_load(collection, timeout=BUILD_SECONDS)


def _handler(client: "MilvusClient") -> "GrpcHandler":
    # pymilvus offers these calls only here and in its older interface, which wants a second connection.
    return client._get_connection()


def _folder(partition: Partition, root: str) -> str:
    return join(root, partition.collection, partition_name(partition.source))


def _path_in_storage(url: str) -> str:
    """What Milvus calls a file of its storage: a local path, or the key without the bucket."""
    fs, path = file_system(url)
    return path if isinstance(fs, LocalFileSystem) else path.partition("/")[2]


def _files_in(folder: str) -> list[str]:
    fs, path = file_system(folder)
    fs.invalidate_cache(path)
    return [name for name in fs.ls(path, detail=False) if name.endswith(".parquet")] if fs.exists(path) else []


def _remove_folder(folder: str) -> None:
    fs, path = file_system(folder)
    fs.rm(path, recursive=True)


def _open(url: str) -> Any:
    fs, path = file_system(url)
    try:
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        return fs.open(path, "wb")
    except OSError as error:
        raise PlatformError(
            f"cannot write {url}: {error.strerror or error}; free space or permit writing under milvus.import_root, "
            "then run again"
        ) from error
