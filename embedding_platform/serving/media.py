"""A hit's file on its way to a player: from the media root alone, whole or a part of it."""

import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote

from fsspec.implementations.local import LocalFileSystem
from starlette.responses import Response, StreamingResponse

from embedding_platform.media.recognition import claimed
from embedding_platform.serving.refused import RefusedError
from embedding_platform.storage import file_system

_PIECE_BYTES = 256 * 2**10

_SHOWN = frozenset(
    {
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/gif",
        "image/bmp",
        "image/avif",
        "audio/wav",
        "audio/flac",
        "audio/mpeg",
        "audio/ogg",
        "audio/mp4",
        "audio/aac",
        "video/mp4",
        "video/webm",
        "video/ogg",
        "video/quicktime",
        "video/x-matroska",
    }
)
"""Media types that a browser shows and that run nothing. All others are handed over as a download."""

_NOT_EVEN_HERE = "sandbox; default-src 'none'"
"""What a file may do should a browser show it as a page after all: nothing."""


@dataclass(frozen=True)
class Part:
    """Bytes `start` to `end` of a file, `end` not among them."""

    start: int
    end: int


@dataclass
class OpenFile:
    """An open file of the media root: its size in bytes, a mark that changes with it, and a name for decoders.

    By that name exactly this file is opened again, whatever has been put in its place, as long as
    this one is open.
    """

    file: BinaryIO
    size: int
    mark: str
    uri: str

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(self, *raised: object) -> None:
        self.file.close()

    def pieces(self, part: Part) -> Iterator[bytes]:
        """Yield a part piece by piece, and close the file."""
        with self.file:
            self.file.seek(part.start)
            left = part.end - part.start
            while left > 0 and (piece := self.file.read(min(_PIECE_BYTES, left))):
                left -= len(piece)
                yield piece


def open_inside(media_root: str, source: str, path: str) -> OpenFile:
    """Open a file of a source for reading.

    `source` and `path` are taken as names, never as URLs. Locally links are followed as long
    as they stay inside the root, and what is opened is what was looked at.

    Raises:
        RefusedError: 403 where the name leads out of the media root, 404 where no file is there.
    """
    fs, root = file_system(media_root)
    names = [source, *path.split("/")]
    if any(name in ("", ".", "..") or "\0" in name for name in names):
        raise RefusedError(403, "this name leads out of the media root")
    if isinstance(fs, LocalFileSystem):
        return _open_local(root, names)
    if "::" in path:
        raise RefusedError(403, "this name holds ::, which file systems take for a chain of addresses")
    place = posixpath.join(root, *names)
    try:
        info = fs.info(place)
        if info["type"] != "file":
            raise FileNotFoundError
        file = fs.open(place, "rb")
    except FileNotFoundError:
        raise _gone(source, path) from None
    return OpenFile(file, int(info["size"]), str(fs.ukey(place)), fs.unstrip_protocol(place))


def file_answer(opened: OpenFile, path: str, wanted_range: str = "", known_mark: str = "") -> Response:
    """The file, or the one range of it that is asked for (RFC 9110, section 14), as a safe thing to show.

    `wanted_range` and `known_mark` are the headers Range and If-None-Match, "" without.
    """
    mark = f'"{hashlib.sha256(opened.mark.encode()).hexdigest()[:32]}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": mark,
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": _NOT_EVEN_HERE,
        "Content-Disposition": _disposition(path),
    }
    if mark in (known.strip() for known in known_mark.split(",")):
        opened.file.close()
        return Response(status_code=304, headers=headers)
    part = requested_part(wanted_range, opened.size)
    if part is None:
        opened.file.close()
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{opened.size}"})
    headers["Content-Length"] = str(part.end - part.start)
    is_whole = part == Part(0, opened.size)
    if not is_whole:
        headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{opened.size}"
    return StreamingResponse(opened.pieces(part), 200 if is_whole else 206, headers, shown_type(path))


def requested_part(wanted: str, size: int) -> Part | None:
    """The part that a Range header asks for; None for one beyond the end.

    It is the whole file where the header asks for several parts, or for nothing that makes sense.
    """
    found = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", wanted.replace(" ", ""))
    if found is None or not (found[1] or found[2]):
        return Part(0, size)
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
    else:
        start, end = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
        if found[2] and int(found[2]) < start:
            return Part(0, size)
    return Part(start, end) if start < end else None


def shown_type(path: str) -> str:
    """The media type that a file is sent as: its own where a browser shows it, else one that runs nothing."""
    _, media_type = claimed(path) or ("", "")
    if media_type in _SHOWN or media_type == "application/pdf":
        return media_type
    return "application/octet-stream"


def is_shown(path: str) -> bool:
    """Whether a browser shows or plays the file by itself."""
    return shown_type(path) in _SHOWN


def _open_local(root: str, names: list[str]) -> OpenFile:
    """Open a file below a local root by its real path, folder by folder, so that no link can be put in meanwhile."""
    real_root = os.path.realpath(root)
    real = os.path.realpath(os.path.join(root, *names))
    if os.path.commonpath([real_root, real]) != real_root or real == real_root:
        raise RefusedError(
            403, f"{'/'.join(names)} is reached by a link that leaves the media root; only what lies inside is served"
        )
    *folders, name = os.path.relpath(real, real_root).split(os.sep)
    handle = os.open(real_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
            os.close(handle)
            handle = inner
        # Without waiting, as for a pipe that took the file's place and that nobody writes into.
        inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=handle)
        os.close(handle)
        handle = inner
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError
    except OSError as error:
        os.close(handle)
        if isinstance(error, PermissionError):
            raise RefusedError(403, f"{'/'.join(names)} may not be read by this server") from None
        raise _gone(names[0], "/".join(names[1:])) from None
    mark = f"{status.st_dev}.{status.st_ino}.{status.st_mtime_ns}.{status.st_size}"
    return OpenFile(os.fdopen(handle, "rb"), status.st_size, mark, f"/dev/fd/{handle}")


def _gone(source: str, path: str) -> RefusedError:
    return RefusedError(404, f"{source}/{path} is no longer there; the next run takes its rows away")


def _disposition(path: str) -> str:
    kind = "inline" if is_shown(path) else "attachment"
    return f"{kind}; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1], safe='')}"
