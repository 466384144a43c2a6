"""Sources and their files, on any fsspec URL, without opening one."""

import errno
import os
import posixpath
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from embedding_platform.buckets import bucket_of, folder_of, is_superseded, number_of, sources_of
from embedding_platform.errors import PlatformError
from embedding_platform.media.limits import not_now
from embedding_platform.media.recognition import CAPTIONS_FILE
from embedding_platform.storage import file_system, join

_TEMPORARY_SUFFIXES = (
    "~",
    ".tmp",
    ".temp",
    ".part",
    ".partial",
    ".filepart",
    ".crdownload",
    ".download",
    ".swp",
    ".swo",
    ".swx",
    ".lock",
)
_TEMPORARY_PREFIXES = (".", "~$", "#")

_CHANGE_MARKS = ("ETag", "etag", "md5", "generation", "LastModified", "last_modified", "updated", "mtime", "created")
"""What the fsspec file systems call the thing that changes with a file, the surest first."""

_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""What looking up a name says when it leads to no file: it has just gone, or is a link to nothing or to itself.
Any other error says nothing about whether the file is there."""


@dataclass(frozen=True)
class Entry:
    """One file of a source as the file system shows it.

    `path` is relative to the source with "/" between folders, `uri` the whole fsspec URL
    (an absolute path locally). `modified` is mtime and ctime in nanoseconds locally, and the etag
    or time of the last change elsewhere.
    """

    path: str
    uri: str
    size: int
    modified: str

    @property
    def changed_at(self) -> float | None:
        """When a local file was last written or put here, in seconds since 1970: its ctime, which copying does not
        carry over. None elsewhere, where `modified` need not be a time."""
        return int(self.modified.partition(".")[2]) / 1e9 if self.uri.startswith("/") else None


ENTRIES = pa.schema([("path", pa.string()), ("uri", pa.string()), ("size", pa.int64()), ("modified", pa.string())])
"""One row per file of a source; the columns are the fields of `Entry`."""

_ENTRIES_AT_ONCE = 8192

_REPLACEMENT = "\ufffd"


def list_sources(media_root: str) -> list[str]:
    """Names of the folders directly under `media_root`, sorted, hidden ones left out.

    A name that is not UTF-8 shows U+FFFD for each byte that could not be read; its files cannot be listed.

    Raises:
        PlatformError: if the root cannot be reached.
    """
    fs, root = file_system(media_root)
    fs.invalidate_cache(root)
    try:
        _check_root(media_root)
        folders = [entry["name"].rstrip("/") for entry in fs.ls(root, detail=True) if _is_folder(fs, entry)]
    except OSError as error:
        raise PlatformError(
            f"media_root {media_root} cannot be listed: {error.strerror or error}; permit reading it, or set another"
        ) from error
    return sorted({_shown(name) for name in map(posixpath.basename, folders) if not _is_passing(name)})


def list_entries(media_root: str, source: str) -> list[Entry]:
    """All files of a source, sorted by path; a source that is not there has none, if its root is.

    Hidden and temporary files, pipes and sockets are left out. Locally a link is followed,
    but no real folder is walked twice, nor one that holds the source. A name that is not
    UTF-8 shows U+FFFD for each byte that could not be read.

    Raises:
        PlatformError: if the root is not there, the name of the source is not UTF-8, it is a link that
            leads nowhere, or a folder or what is known of a file cannot be read. A disk that is not
            mounted, taken for an empty one, would drop its vectors.
    """
    return entries(entries_table(media_root, source))


def entries_table(media_root: str, source: str, counts: Mapping[str, int] | None = None) -> pa.Table:
    """What `list_entries` lists as a table of schema ENTRIES, each path once; a local file takes some 200 bytes of it.

    A bucket has all captions files of its folder besides its own files: they may name images anywhere. `counts` tells
    how many buckets each folder has now, where some have any: a source that is superseded by others has no file.

    Raises:
        PlatformError: as `list_entries` does.
    """
    found, bucket = _entries(media_root, folder_of(source)), bucket_of(source)
    if bucket is not None:
        found = (entry for entry in found if _is_captions(entry.path) or bucket.has(entry.path))
    if counts is not None and is_superseded(source, counts):
        found = iter(())
    pieces = [ENTRIES.empty_table()]
    while piece := list(islice(found, _ENTRIES_AT_ONCE)):
        columns = [[getattr(entry, name) for entry in piece] for name in ENTRIES.names]
        pieces.append(pa.table(columns, schema=ENTRIES))
    table = pa.concat_tables(pieces)
    pieces.clear()
    order = pc.sort_indices(table, [("path", "ascending"), ("modified", "ascending")])
    ordered: list[pa.ChunkedArray] = []
    for name in ENTRIES.names:
        # A column at a time: of a million files, the whole table twice takes some 300 MB.
        ordered.append(table[name].take(order))
        table = table.drop_columns(name)
    table = pa.table(ordered, schema=ENTRIES)
    # Two names that are not UTF-8 may be shown as one.
    paths = table["path"]
    repeated = pc.equal(paths.slice(1), paths.slice(0, max(0, len(paths) - 1))).to_numpy(zero_copy_only=False)
    return table.filter(pa.array(np.append(~repeated.astype(bool), True))) if repeated.any() else table


def shares(folder: str, listed: pa.Table, counts: Mapping[str, int]) -> Iterator[tuple[str, pa.Table]]:
    """Each source of a folder, with its own of the folder's files, a row for each with its `path`, as `entries_table`
    gives them."""
    sources = sources_of(folder, counts)
    if len(sources) == 1:
        yield folder, listed
        return
    paths = listed["path"].to_pylist()
    numbers = np.fromiter((number_of(path, len(sources)) for path in paths), np.int64, len(paths))
    for_all = np.fromiter(map(_is_captions, paths), bool, len(paths))
    numbers[for_all] = -1
    order, common = np.argsort(numbers, kind="stable"), np.flatnonzero(for_all)
    ends = np.searchsorted(numbers[order], np.arange(len(sources) + 1))
    for source, begin, end in zip(sources, ends, ends[1:], strict=False):
        yield source, listed.take(pa.array(np.sort(np.append(common, order[begin:end]))))


def entries(table: pa.Table) -> list[Entry]:
    """The entries of a table of schema ENTRIES."""
    return [Entry(*row) for row in zip(*(table[name].to_pylist() for name in ENTRIES.names), strict=True)]


def newest_change(table: pa.Table) -> float | None:
    """When the newest of the files of a table of schema ENTRIES was written or put there; see `Entry.changed_at`."""
    local = table["modified"].filter(pc.starts_with(table["uri"], "/"))
    times = pc.list_element(pc.split_pattern(local, "."), 1).cast(pa.int64()) if len(local) else local
    return pc.max(times).as_py() / 1e9 if len(times) else None


def _entries(media_root: str, source: str) -> Iterator[Entry]:
    fs, root = file_system(join(media_root, source))
    fs.invalidate_cache(root)
    if isinstance(fs, LocalFileSystem):
        status = _status(root)
        if status is None and os.path.islink(root):
            raise PlatformError(
                f"source {source} under {media_root} is a link to {os.path.realpath(root)}, where nothing is; "
                "mount what it leads to, or remove the link if all of its files are meant to go"
            )
        if status is None or not stat.S_ISDIR(status.st_mode):
            _check_root(media_root)
            if _REPLACEMENT in source and source in _undecodable_names(media_root):
                raise PlatformError(
                    f"source {source} under {media_root} has a name that is not UTF-8; rename the folder"
                )
            return
        yield from _local_entries(root)
        return
    try:
        if not _is_there(fs, root):
            _check_root(media_root)
            return
        found = _found(fs, root)
    except OSError as error:
        raise PlatformError(
            f"source {source} under {media_root} cannot be listed: {error.strerror or error}; "
            "permit reading it, or see to the network"
        ) from error
    for name, info in found.items():
        path = name[len(root.rstrip("/")) + 1 :]
        if info["type"] == "file" and path and not path.endswith("/") and not any(map(_is_passing, path.split("/"))):
            yield Entry(path, join(media_root, source, path), int(info["size"] or 0), _change_mark(info))


def may_be_emptied(media_root: str, source: str) -> bool:
    """Whether an empty listing can mean that what held the files is away, and not the source itself.

    A disk that is not mounted leaves its folder behind. On object stores folders are made of
    their objects, so that nothing tells one that was removed from one that cannot be seen.
    """
    fs, root = file_system(join(media_root, folder_of(source)))
    return not isinstance(fs, LocalFileSystem) or _status(root) is not None


def current_state(uri: str) -> tuple[int, str]:
    """Size and change mark of a file now, in the form that `Entry` has them.

    Raises:
        FileNotFoundError: if the file is gone.
        RejectedError: if the disk or the network does not tell.
    """
    fs, path = file_system(uri)
    try:
        if isinstance(fs, LocalFileSystem):
            status = os.stat(path)
            return status.st_size, _times(status)
        fs.invalidate_cache(posixpath.dirname(path))
        info = fs.info(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise not_now(error) from error
    return int(info["size"] or 0), _change_mark(info)


def _check_root(media_root: str) -> None:
    fs, root = file_system(media_root)
    if not fs.isdir(root):
        # On an object store a folder is there as long as an object is in it, which may be a hidden one.
        is_local = isinstance(fs, LocalFileSystem)
        mend = "create the folder" if is_local else "put an object such as sources/.keep under it"
        raise PlatformError(f"media_root {media_root} is not there; {mend}, or set media_root to where the media are")


def _local_entries(root: str) -> Iterator[Entry]:
    walked = set()
    for holder in _holders(os.path.realpath(root)):
        try:
            walked.add(_identity(os.stat(holder)))
        except OSError:
            continue
    links: list[tuple[str, str]] = []
    yield from _walk(root, "", walked, links)
    while links:
        # After the real folders, so that a linked folder goes by its own name where it has one.
        waiting, links = sorted(links), []
        for folder, prefix in waiting:
            status = _status(folder)
            if status is not None and _identity(status) not in walked:
                yield from _walk(folder, prefix, walked, links)


def _walk(folder: str, prefix: str, walked: set[tuple[int, int]], links: list[tuple[str, str]]) -> Iterator[Entry]:
    pending = [(folder, prefix)]
    while pending:
        folder, prefix = pending.pop()
        try:
            walked.add(_identity(os.stat(folder)))
            with os.scandir(folder) as children:
                for child in children:
                    status = None if _is_passing(child.name) else _status(child)
                    if status is None:
                        continue
                    path = prefix + child.name
                    if stat.S_ISDIR(status.st_mode):
                        (links if child.is_symlink() else pending).append((child.path, path + "/"))
                    elif stat.S_ISREG(status.st_mode):
                        shown = (_shown(path), _shown(child.path))
                        yield Entry(*shown, size=status.st_size, modified=_times(status))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise PlatformError(
                f"folder {folder} cannot be listed: {error.strerror}; "
                "permit reading it or mount it again, or hide it by a leading dot"
            ) from error


def _status(place: "str | os.DirEntry[str]") -> os.stat_result | None:
    """What the file system knows of a file or folder; None where there is nothing.

    Raises:
        PlatformError: if it does not tell, which must not be taken for nothing.
    """
    try:
        return place.stat() if isinstance(place, os.DirEntry) else os.stat(place)
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return None
        raise PlatformError(
            f"{os.fspath(place)} cannot be looked at: {error.strerror}; "
            "permit it or mount it again, or hide it by a leading dot"
        ) from error


def _is_there(fs: Any, folder: str) -> bool:
    # `isdir` takes any error for an answer.
    try:
        return bool(fs.info(folder)["type"] == "directory")
    except FileNotFoundError:
        return False


def _found(fs: Any, root: str) -> dict[str, dict[str, Any]]:
    """All files below a folder that is not local.

    The object stores list all objects at once, and raise when they cannot. What fsspec itself
    walks for the others would leave out the folders that it cannot list.
    """
    if isinstance(fs, AsyncFileSystem):
        at_once = type(fs)._find is not AsyncFileSystem._find
    else:
        at_once = type(fs).find is not AbstractFileSystem.find
    if at_once:
        return dict(fs.find(root, detail=True))
    found: dict[str, dict[str, Any]] = {}
    pending = [root.rstrip("/")]
    while pending:
        folder = pending.pop()
        try:
            children = fs.ls(folder, detail=True)
        except FileNotFoundError:
            continue
        for child in children:
            name = child["name"].rstrip("/")
            if child["type"] != "directory":
                found[child["name"]] = child
            elif name != folder:
                pending.append(name)
    return found


def _times(status: os.stat_result) -> str:
    """The mtime, and the ctime, which no program sets: it tells where files of one size and mtime change places."""
    return f"{status.st_mtime_ns}.{status.st_ctime_ns}"


def _holders(folder: str) -> Iterator[str]:
    while (parent := os.path.dirname(folder)) != folder:
        yield parent
        folder = parent


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_folder(fs: Any, entry: dict[str, Any]) -> bool:
    return entry["type"] == "directory" or (bool(entry.get("islink")) and bool(fs.isdir(entry["name"])))


def _is_passing(name: str) -> bool:
    """Whether a name is that of a hidden or temporary file or folder."""
    return name.startswith(_TEMPORARY_PREFIXES) or name.lower().endswith(_TEMPORARY_SUFFIXES)


def _is_captions(path: str) -> bool:
    return posixpath.basename(path) == CAPTIONS_FILE


def _undecodable_names(folder: str) -> set[str]:
    """What the names in a local folder that are not UTF-8 are shown as."""
    return {_shown(name) for name in os.listdir(file_system(folder)[1]) if _shown(name) != name}


def _shown(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _change_mark(info: dict[str, Any]) -> str:
    mark = next((info[key] for key in _CHANGE_MARKS if info.get(key)), "")
    # Some file systems list a time as seconds and look it up as a datetime.
    return str(mark.timestamp() if isinstance(mark, datetime) else mark).strip('"')
