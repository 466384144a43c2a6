"""Sources and their files, on any fsspec URL, without opening one."""

import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from embedding_platform.errors import PlatformError, RejectedError
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


@dataclass(frozen=True)
class Entry:
    """One file of a source as the file system shows it.

    `path` is relative to the source with "/" between folders, `uri` the whole fsspec URL
    (an absolute path locally). `modified` is the mtime in nanoseconds locally, and the etag
    or time of the last change elsewhere.
    """

    path: str
    uri: str
    size: int
    modified: str


def list_sources(media_root: str) -> list[str]:
    """Names of the folders directly under `media_root`, sorted, hidden ones left out.

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
    names = sorted(name for name in map(posixpath.basename, folders) if not _is_passing(name))
    for name in names:
        if _is_undecodable(name):
            raise PlatformError(f"source {name!r} under {media_root} has a name that is not UTF-8; rename the folder")
    return names


def list_entries(media_root: str, source: str) -> list[Entry]:
    """All files of a source, sorted by path; a source that is not there has none, if its root is.

    Hidden and temporary files, pipes and sockets are left out. Locally a link is followed,
    but no real folder is walked twice, nor one that holds the source. A name that is not
    UTF-8 shows U+FFFD for each byte that could not be read.

    Raises:
        PlatformError: if the root is not there or a folder may not be read. A disk that is
            not mounted, taken for an empty one, would drop its vectors.
    """
    fs, root = file_system(join(media_root, source))
    fs.invalidate_cache(root)
    if not fs.isdir(root):
        _check_root(media_root)
        return []
    if isinstance(fs, LocalFileSystem):
        return sorted(_local_entries(root), key=lambda entry: entry.path)
    try:
        found = fs.find(root, detail=True)
    except OSError as error:
        raise PlatformError(
            f"source {source} under {media_root} cannot be listed: {error}; permit reading it"
        ) from error
    entries = []
    for name, info in found.items():
        path = name[len(root.rstrip("/")) + 1 :]
        if info["type"] == "file" and path and not path.endswith("/") and not any(map(_is_passing, path.split("/"))):
            entries.append(Entry(path, join(media_root, source, path), int(info["size"] or 0), _change_mark(info)))
    return sorted(entries, key=lambda entry: entry.path)


def current_state(uri: str) -> tuple[int, str]:
    """Size and change mark of a file now, in the form that `Entry` has them.

    Raises:
        FileNotFoundError: if the file is gone.
    """
    fs, path = file_system(uri)
    if isinstance(fs, LocalFileSystem):
        status = os.stat(path)
        return status.st_size, str(status.st_mtime_ns)
    fs.invalidate_cache(posixpath.dirname(path))
    info = fs.info(path)
    return int(info["size"] or 0), _change_mark(info)


def open_media(uri: str) -> BinaryIO:
    """Open a media file for reading bytes.

    Raises:
        RejectedError: if it is gone or may not be read.
    """
    fs, path = file_system(uri)
    try:
        return cast("BinaryIO", fs.open(path, "rb"))
    except FileNotFoundError as error:
        raise RejectedError("is no longer there") from error
    except PermissionError as error:
        raise RejectedError("may not be read: permit it, then touch the file") from error


def _check_root(media_root: str) -> None:
    fs, root = file_system(media_root)
    if not fs.isdir(root):
        raise PlatformError(
            f"media_root {media_root} is not there; create the folder, or set media_root to where the media are"
        )


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
        folder, prefix = links.pop(0)
        try:
            identity = _identity(os.stat(folder))
        except OSError:
            continue
        if identity not in walked:
            yield from _walk(folder, prefix, walked, links)


def _walk(folder: str, prefix: str, walked: set[tuple[int, int]], links: list[tuple[str, str]]) -> Iterator[Entry]:
    pending = [(folder, prefix)]
    while pending:
        folder, prefix = pending.pop()
        try:
            walked.add(_identity(os.stat(folder)))
            children = sorted(os.scandir(folder), key=lambda child: child.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise PlatformError(
                f"folder {folder} cannot be listed: {error.strerror}; permit reading it, or hide it by a leading dot"
            ) from error
        for child in children:
            if _is_passing(child.name):
                continue
            try:
                status = child.stat()
            except OSError:
                continue  # A link to nothing, a link to itself, or a file that has just gone.
            path = prefix + child.name
            if stat.S_ISDIR(status.st_mode):
                (links if child.is_symlink() else pending).append((child.path, path + "/"))
            elif stat.S_ISREG(status.st_mode):
                shown = (_shown(path), _shown(child.path))
                yield Entry(*shown, size=status.st_size, modified=str(status.st_mtime_ns))


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


def _is_undecodable(name: str) -> bool:
    return _shown(name) != name


def _shown(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _change_mark(info: dict[str, Any]) -> str:
    mark = next((info[key] for key in _CHANGE_MARKS if info.get(key)), "")
    # Some file systems list a time as seconds and look it up as a datetime.
    return str(mark.timestamp() if isinstance(mark, datetime) else mark).strip('"')
