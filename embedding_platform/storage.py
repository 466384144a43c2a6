"""Tables that appear whole or not at all, on any fsspec URL.

Two shapes serve every stage. A *table* is one Parquet file that is replaced as a whole. A
*shard folder* is a set of immutable, content-addressed Parquet files whose union is the
data: appending a shard is durable the moment it returns, and a second writer can only
repeat the first.
"""

import hashlib
import os
import posixpath
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from embedding_platform.errors import PlatformError, first_line


class GoneError(PlatformError, FileNotFoundError):
    """A file went away while it was read: another run replaced it by others."""


_HIDDEN_PREFIX = ".writing-"

_LEFTOVER_SECONDS = 24 * 3600.0
"""No write takes so long: what is still beside its target then was left by a killed writer."""

ROWS_PER_GROUP = 8192
"""Rows of a Parquet row group: what is read of a large file to have some of its rows."""

FEWEST_SHARDS = 32
"""Small shards of a folder that are worth joining in the middle of a run."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}
"""Extras of this package that install the file system of a protocol."""


def join(root: str, *parts: str) -> str:
    """Join URL or path parts with "/"."""
    return posixpath.join(root, *parts)


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it.

    Raises:
        PlatformError: if no file system serves the URL's protocol, or it is not installed.
    """
    if "://" not in url.partition("::")[0]:
        # A local name may hold "::", which fsspec would take for a chain of file systems.
        fs = LocalFileSystem()
        first, _, rest = url.partition("::")
        if not rest or os.path.isabs(first):
            return fs, fs._strip_protocol(url)
    try:
        return fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        protocols = re.findall(r"([\w+.-]+)://", url)
        extra = next((_EXTRAS[protocol] for protocol in protocols if protocol in _EXTRAS), None)
        if isinstance(error, ImportError):
            mend = f"pip install 'embedding-platform[{extra}]'" if extra else "install what it names"
        else:
            mend = "correct the URL; folders, s3://, gs:// and az:// are served"
        # The URL itself may hold a password.
        place = ", ".join(f"{protocol}://" for protocol in protocols) or url
        raise PlatformError(f"no file system for {place}: {error}; {mend}") from None


def write_bytes(url: str, payload: bytes) -> None:
    """Make `url` hold exactly `payload`, atomically and durably.

    Locally the bytes are written beside the target, synced and renamed; elsewhere one PUT
    of the object store is atomic by itself.
    """
    fs, path = file_system(url)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, payload)
        return
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        beside = os.path.join(folder, f"{_HIDDEN_PREFIX}{uuid4().hex}")
        try:
            with open(beside, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            if os.path.exists(beside):
                os.unlink(beside)
            raise
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise PlatformError(
            f"cannot write {url}: {error.strerror}; free space or permit writing under store_root, then run again"
        ) from error


def read_bytes(url: str) -> bytes | None:
    """The bytes at `url`; None if it is absent."""
    fs, path = file_system(url)
    try:
        return fs.cat_file(path)
    except FileNotFoundError:
        return None


def write_table(url: str, table: pa.Table) -> None:
    """Replace the Parquet file at `url` by `table`."""
    write_bytes(url, _encode(table))


def read_table(url: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the Parquet file at `url`, some columns or all; an absent file is an empty table of `schema`.

    Raises:
        PlatformError: if the file is there but unreadable.
    """
    fs, path = file_system(url)
    wanted = list(columns or schema.names)
    if not fs.exists(path):
        return _only(schema, wanted).empty_table()
    return _read(fs, path, schema, wanted)


def iterate_table(url: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the Parquet file at `url`, some columns or all, in pieces of at most ROWS_PER_GROUP rows.

    An absent file has none.

    Raises:
        PlatformError: if the file is there but unreadable.
    """
    fs, path = file_system(url)
    if not fs.exists(path):
        return
    with _explaining(path), pq.ParquetFile(path, filesystem=fs) as file:
        wanted = list(columns or schema.names)
        for batch in file.iter_batches(ROWS_PER_GROUP, columns=wanted):
            yield pa.Table.from_batches([batch]).select(wanted).cast(_only(schema, wanted))


def row_count(url: str) -> int:
    """Rows of the Parquet file at `url`, from its footer alone; an absent file has none.

    Raises:
        PlatformError: if the file is there but unreadable.
    """
    fs, path = file_system(url)
    try:
        with _explaining(path):
            return int(pq.read_metadata(path, filesystem=fs).num_rows)
    except FileNotFoundError:
        return 0


def change_mark(url: str) -> str:
    """A mark that changes whenever the file at `url` is replaced; "" while it is absent."""
    fs, path = file_system(url)
    return str(fs.ukey(path)) if fs.exists(path) else ""


def modified_at(url: str) -> float:
    """When the file at `url` was last replaced, in seconds since 1970; 0 while it is absent."""
    fs, path = file_system(url)
    try:
        return float(fs.modified(path).timestamp())
    except FileNotFoundError:
        return 0.0


def append_shard(folder: str, table: pa.Table) -> str:
    """Add `table` to the shard folder and return the shard's name, a hash of its bytes."""
    payload = _encode(table)
    name = f"{hashlib.sha256(payload).hexdigest()[:32]}.parquet"
    write_bytes(join(folder, name), payload)
    return name


def table_names(folder: str) -> list[str]:
    """Names of the complete Parquet files in `folder`, sorted; an absent folder has none."""
    fs, path = file_system(folder)
    fs.invalidate_cache(path)
    if not fs.exists(path):
        return []
    names = (posixpath.basename(entry) for entry in fs.ls(path, detail=False))
    return sorted(name for name in names if name.endswith(".parquet") and not name.startswith("."))


def shard_marks(folder: str, suffix: str = ".parquet") -> dict[str, str]:
    """A mark of each shard of `folder` that changes whenever its file is written anew, for instance by another hand.

    With another `suffix` it tells of the files that end in it.
    """
    fs, path = file_system(folder)
    fs.invalidate_cache(path)
    if not fs.exists(path):
        return {}
    marks = {posixpath.basename(entry["name"]): str(sorted(entry.items())) for entry in fs.ls(path, detail=True)}
    return {
        name: hashlib.sha256(mark.encode()).hexdigest()[:32]
        for name, mark in marks.items()
        if name.endswith(suffix) and not name.startswith(".")
    }


def iterate_shards(
    folder: str,
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    names: Iterable[str] | None = None,
) -> Iterator[pa.Table]:
    """Yield the shards of `folder` one at a time, so that memory holds one of them.

    Where another writer compacts the folder meanwhile, rows may come twice, but none is missed.

    Raises:
        PlatformError: if a shard is unreadable.
        FileNotFoundError: if a shard of `names` is not there.
    """
    for _, shard in named_shards(folder, schema, columns, names):
        yield shard


def named_shards(
    folder: str,
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    names: Iterable[str] | None = None,
) -> Iterator[tuple[str, pa.Table]]:
    """Yield what `iterate_shards` yields, each shard with its name."""
    fs, path = file_system(folder)
    waiting = list(table_names(folder) if names is None else names)
    read = set()
    while waiting:
        name = waiting.pop(0)
        try:
            shard = _read(fs, posixpath.join(path, name), schema, list(columns or schema.names))
        except FileNotFoundError:
            present = table_names(folder)
            if names is not None or name in present:
                raise
            waiting = [other for other in present if other not in read]
            continue
        read.add(name)
        yield name, shard


def iterate_rows(
    folder: str, schema: pa.Schema, columns: Sequence[str], choose: Callable[[], Mapping[str, np.ndarray]]
) -> Iterator[pa.Table]:
    """Yield, shard by shard, the rows that `choose` chooses by shard name and row numbers, ascending.

    Of a shard only the row groups that hold a chosen row are read. Where another writer
    removes a chosen shard meanwhile, `choose` is asked again for what has not come yet.

    Raises:
        PlatformError: if a shard is unreadable.
    """
    fs, path = file_system(folder)
    chosen = choose()
    while chosen:
        name = next(iter(chosen))
        try:
            table = _read_rows(fs, posixpath.join(path, name), schema, columns, chosen[name])
        except FileNotFoundError:
            if name in table_names(folder):
                raise
            chosen = choose()
            continue
        chosen = {other: rows for other, rows in chosen.items() if other != name}
        yield table


def read_shards(folder: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """The union of all shards in `folder`; rows of equal content may appear more than once."""
    wanted = list(columns or schema.names)
    return pa.concat_tables([_only(schema, wanted).empty_table(), *iterate_shards(folder, schema, wanted)])


def remove_shards(folder: str, names: Iterable[str]) -> None:
    """Remove shards; one that is already gone is no error, since another writer may compact too."""
    fs, path = file_system(folder)
    for name in names:
        try:
            fs.rm_file(posixpath.join(path, name))
        except FileNotFoundError:
            continue


def compact_shards(
    folder: str,
    schema: pa.Schema,
    keep: Callable[[pa.Table], pa.Table],
    rows_per_shard: int,
    fewest: int = FEWEST_SHARDS,
) -> int:
    """Rewrite many small shards into few, with the rows that `keep` returns of some; the number of shards removed.

    New shards are durable before old ones go, so a reader or a crash in between meets
    repeated rows, never missing ones. Shards of `rows_per_shard` stay as they are, so that the
    cost grows with what is new. Nothing is done while fewer than `fewest` small ones lie here.
    `keep` is called once the shards are known, some that are gone by then among them.
    """
    names = table_names(folder)
    if len(names) < fewest:
        return 0
    names = [name for name in names if row_count(join(folder, name)) < rows_per_shard]
    if len(names) < fewest:
        return 0
    met: list[pa.Table] = []
    kept: list[pa.Table] = []
    written: set[str] = set()
    for name in names:
        # One that is gone was rewritten by another run, and its rows with it.
        with suppress(FileNotFoundError):
            met += iterate_shards(folder, schema, names=[name])
        if _rows(met) >= rows_per_shard:
            kept.append(keep(pa.concat_tables(met)))
            met = []
        if _rows(kept) >= rows_per_shard:
            written.add(append_shard(folder, pa.concat_tables(kept)))
            kept = []
    if met:
        kept.append(keep(pa.concat_tables(met)))
    if _rows(kept):
        written.add(append_shard(folder, pa.concat_tables(kept)))
    removed = [name for name in names if name not in written]
    remove_shards(folder, removed)
    return len(removed)


def remove(url: str) -> None:
    """Remove a file, or a folder with all that it holds; one that is not there is no error.

    Raises:
        PlatformError: if it may not be removed.
    """
    fs, path = file_system(url)
    try:
        fs.rm(path, recursive=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise PlatformError(f"cannot remove {url}: {error.strerror}; permit writing under store_root") from error


def folder_bytes(url: str) -> int:
    """Size of all files under a folder."""
    fs, path = file_system(url)
    return int(fs.du(path, total=True))


def leftovers(folder: str) -> list[str]:
    """What killed writers left anywhere under `folder` more than a day ago.

    A file that is being written is younger. Only local folders have such files; a clock that
    was set back keeps them longer.
    """
    fs, path = file_system(folder)
    if not isinstance(fs, LocalFileSystem):
        return []
    beside = (
        os.path.join(place, name)
        for place, _, names in os.walk(path)
        for name in names
        if name.startswith(_HIDDEN_PREFIX)
    )
    return [one for one in beside if _is_old(one)]


def remove_leftovers(folder: str) -> None:
    """Remove what killed writers left anywhere under `folder`."""
    for leftover in leftovers(folder):
        # One that may not be removed, or that another run removes, harms nobody.
        with suppress(OSError):
            os.unlink(leftover)


def subfolders(url: str) -> list[str]:
    """Names of the folders directly under `url`, sorted; an absent folder has none."""
    fs, path = file_system(url)
    fs.invalidate_cache(path)
    if not fs.exists(path):
        return []
    return sorted(
        posixpath.basename(entry["name"].rstrip("/"))
        for entry in fs.ls(path, detail=True)
        if entry["type"] == "directory"
    )


def sibling_folders(folder: str) -> dict[str, list[str]]:
    """The folders beside `folder` by name, with the names of their Parquet files."""
    parent, own = posixpath.split(folder.rstrip("/"))
    return {name: table_names(join(parent, name)) for name in subfolders(parent) if name != own}


def remove_sibling_folders(folder: str, older: Mapping[str, Sequence[str]]) -> None:
    """Remove the folders beside `folder` that another version of our code made, as `sibling_folders` once told of them.

    One that has come or changed since is being worked on by another process, and stays.
    """
    for name, tables in sibling_folders(folder).items():
        if older.get(name) == tables:
            fs, path = file_system(join(posixpath.dirname(folder.rstrip("/")), name))
            fs.rm(path, recursive=True)


def _is_old(path: str) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime > _LEFTOVER_SECONDS
    except FileNotFoundError:
        return False


def _encode(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_PER_GROUP)
    return sink.getvalue().to_pybytes()


def _read(fs: fsspec.AbstractFileSystem, path: str, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    # Opened once: a table that is replaced meanwhile is read as it was.
    with _explaining(path), pq.ParquetFile(path, filesystem=fs) as file:
        return file.read(list(columns)).select(list(columns)).cast(_only(schema, columns))


def _read_rows(
    fs: fsspec.AbstractFileSystem, path: str, schema: pa.Schema, columns: Sequence[str], rows: np.ndarray
) -> pa.Table:
    with _explaining(path), pq.ParquetFile(path, filesystem=fs) as file:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        group_of = np.searchsorted(ends, rows, side="right")
        groups = np.unique(group_of)
        table = file.read_row_groups(groups.tolist(), columns=list(columns)).select(list(columns))
        if len(rows) < table.num_rows:
            # Row numbers among the groups that were read.
            before = np.cumsum([0, *(sizes[group] for group in groups)])[:-1]
            first = ends - np.array(sizes)
            table = table.take(rows - first[group_of] + before[np.searchsorted(groups, group_of)])
        return table.cast(_only(schema, columns))


def _only(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in columns])


def _rows(tables: Sequence[pa.Table]) -> int:
    return sum(table.num_rows for table in tables)


@contextmanager
def _explaining(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise GoneError(f"{path} has just gone, by another run of the same source; run again") from error
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        reason = first_line(error)
        raise PlatformError(
            f"cannot read {path}: {reason}; remove this file and run again: its rows will be made anew"
        ) from error
