"""Media files opened for reading: on any file system, within the time that a decode has."""

import os
import stat
from types import TracebackType
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from embedding_platform.errors import RejectedError
from embedding_platform.media.limits import Deadline, not_now
from embedding_platform.storage import file_system


class MediaFile:
    """An open media file, as PIL and PyAV take one.

    Decoders come back for more bytes all the time, and so does one that turns in circles:
    each read and seek looks at the deadline. What stopped them is raised once, and kept in
    `stopped`, since FFmpeg takes an error in the middle of a file for its end. The file ends
    where it ended when it was opened, as one that is written to would never end.

    Raises:
        RejectedError: if the disk or the network does not tell where that is.
    """

    def __init__(self, file: Any, deadline: Deadline | None = None) -> None:
        self._file = file
        self._deadline = deadline
        try:
            self._size = int(file.seek(0, os.SEEK_END))
            file.seek(0)
        except OSError as error:
            file.close()
            raise not_now(error) from error
        self.stopped: RejectedError | None = None

    def __enter__(self) -> "MediaFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, all that are left without a number.

        Raises:
            RejectedError: if the disk or the network fails, or the time is up.
        """
        self._check()
        if self.stopped is not None:
            return b""
        left = max(0, self._size - self.tell())
        try:
            content: bytes = self._file.read(left if size < 0 else min(size, left))
        except OSError as error:
            self.stopped = not_now(error)
            raise self.stopped from error
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place in the file, and return it.

        Raises:
            RejectedError: if there can be no such place, or the time is up.
        """
        self._check()
        try:
            if whence == os.SEEK_END:
                return int(self._file.seek(self._size + offset))
            return int(self._file.seek(offset, whence))
        except (OSError, ValueError, OverflowError) as error:
            self.stopped = RejectedError("is damaged: it points to a place far outside of itself")
            raise self.stopped from error

    def tell(self) -> int:
        """The place in the file."""
        return int(self._file.tell())

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def _check(self) -> None:
        if self._deadline is not None and self.stopped is None:
            try:
                self._deadline.check()
            except RejectedError as error:
                self.stopped = error
                raise


def open_media(uri: str, deadline: Deadline | None = None) -> MediaFile:
    """Open a media file for reading bytes.

    Raises:
        RejectedError: if it is gone, is no longer a file, or cannot be read now.
    """
    fs, path = file_system(uri)
    try:
        file = os.fdopen(_handle(path), "rb") if isinstance(fs, LocalFileSystem) else fs.open(path, "rb")
    except FileNotFoundError as error:
        raise RejectedError("is no longer there") from error
    except OSError as error:
        raise not_now(error) from error
    return MediaFile(file, deadline)


def _handle(path: str) -> int:
    """Open a file without waiting, as for a pipe that took its place and that nobody writes into."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise RejectedError("is no longer a file, but a pipe, a device or a folder")
    return handle
