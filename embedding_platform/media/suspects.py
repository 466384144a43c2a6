"""Files that were being decoded when a process died: they are decoded apart, so that they end no other.

Decoders of images, sound and video are native code, and one hostile file can end the process. While a
file is decoded, a note of it lies in a file of its process, which keeps that file locked: what the process
wrote outlives it without being forced to disk, and the lock does not. A note that nobody holds was left by
a process that died. Why it died is not known, so all that it decoded is suspect, and decoded in a process
of its own (`confinement`). What comes of that counts as if it had been decoded here; what ends that process
too is rejected. A suspicion lasts until the stage that lifted it has come to its end.
"""

import contextlib
import fcntl
import itertools
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, TypeVar

from embedding_platform.media.confinement import DiedError, decoded_apart, once

_SLOT_BYTES = 16 * 2**10
"""Room for one note: a path of 4,096 bytes takes up to 12 kB as JSON. What is longer is not noted."""

_ERASED = b"\0"
_NOTES = ".notes"
_LOCK = "lock"

_KEPT_SECONDS = 30 * 86_400.0
"""Time after which a suspicion is forgotten that no run has confirmed: most such files are gone, or have changed."""

Value = TypeVar("Value")

_Place: TypeAlias = tuple[Path, int]
"""A file of notes and a slot in it."""


@dataclass(frozen=True)
class Decode:
    """One step of decoding a file in one state: size in bytes and change mark, as a listing has them."""

    step: Literal["recognise", "probe", "cut", "read"]
    modality: str
    uri: str
    size: int
    modified: str


@dataclass
class Decodes:
    """Decodes files, here or apart. Without `notes` it keeps none."""

    notes: "_Notes | None" = None
    suspects: Collection[Decode] = ()
    lifted: set[Decode] = field(default_factory=set)
    confirmed: set[Decode] = field(default_factory=set)

    def each(self, decode: Decode, function: Callable[..., Iterable[Value]], *arguments: Any) -> Iterator[Value]:
        """Yield what `function` gives for `arguments`: the values of that decode.

        Raises:
            RejectedError: if the decode is suspect and ends a process of its own as well.
            BaseException: whatever the function raises.
        """
        if decode in self.suspects:
            self.lifted.add(decode)
            try:
                yield from decoded_apart(function, *arguments)
            except DiedError:
                self.confirmed.add(decode)
                raise
        elif self.notes is None or decode.modality == "text":
            # What of a document is parsed by native code is parsed apart anyway.
            yield from function(*arguments)
        else:
            with self.notes.held(decode):
                yield from function(*arguments)

    def one(self, decode: Decode, function: Callable[..., Value], *arguments: Any) -> Value:
        """What `function` returns for `arguments`.

        Raises:
            BaseException: as `each` does.
        """
        (value,) = self.each(decode, once, function, *arguments)
        return value


UNNOTED = Decodes()


@contextmanager
def noted_in(folder: str | None) -> Iterator[Decodes]:
    """Note what the block decodes in a local folder, and suspect what processes that died have left there.

    Suspicions that it lifts are forgotten when the block ends without an error. Where the folder is None, or cannot
    be written, nothing is noted: that keeps no file from being decoded.
    """
    notes = None
    if folder is not None:
        with contextlib.suppress(OSError):
            notes = _Notes(Path(folder))
    if notes is None:
        yield Decodes()
        return
    decodes = Decodes(notes, notes.left_behind)
    is_done = False
    try:
        yield decodes
        is_done = True
    finally:
        notes.close(decodes.lifted - decodes.confirmed if is_done else (), decodes.confirmed)


class _Notes:
    """The notes of one block: slots of a file that is locked until it is closed, and gone then.

    `left_behind` are the notes of processes that died, and where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder):
            handle, path = tempfile.mkstemp(_NOTES, dir=folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
            self.left_behind: Mapping[Decode, list[_Place]] = _left_behind(folder)
        self._path = Path(path)
        self._file = os.fdopen(handle, "r+b", buffering=0)
        self._changing = threading.Lock()
        self._free: list[int] = []
        self._unused = itertools.count()

    @contextmanager
    def held(self, decode: Decode) -> Iterator[None]:
        """Note a decode for the time of the block."""
        line = json.dumps(list(vars(decode).values())).encode() + b"\n"
        with self._changing:
            slot = self._free.pop() if self._free else next(self._unused)
            self._write(slot, line if len(line) <= _SLOT_BYTES else _ERASED)
        try:
            yield
        finally:
            with self._changing:
                self._write(slot, _ERASED)
                self._free.append(slot)

    def close(self, lifted: Collection[Decode], confirmed: Collection[Decode]) -> None:
        """Let the file go, forget suspicions that were lifted, and renew those that were confirmed."""
        with self._changing:
            self._file.close()
        with contextlib.suppress(OSError), _alone_in(self._folder):
            self._path.unlink()
            for path, slot in self._places(lifted):
                with path.open("r+b") as file:
                    os.pwrite(file.fileno(), _ERASED, slot * _SLOT_BYTES)
            for path, _ in self._places(confirmed):
                os.utime(path)

    def _write(self, slot: int, content: bytes) -> None:
        # A thread may be at work after the end of the block, and a disk may be full: no reason not to decode.
        with contextlib.suppress(OSError, ValueError):
            os.pwrite(self._file.fileno(), content, slot * _SLOT_BYTES)

    def _places(self, decodes: Collection[Decode]) -> Iterator[_Place]:
        """Where the notes of suspects lie that nobody has removed meanwhile."""
        for decode in decodes:
            yield from (place for place in self.left_behind[decode] if place[0].exists())


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until nobody else opens or closes notes in a folder, and keep others waiting."""
    with (folder / _LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _left_behind(folder: Path) -> dict[Decode, list[_Place]]:
    """The notes whose process is gone. Files without any, and old ones, are removed."""
    left: dict[Decode, list[_Place]] = {}
    for path in sorted(folder.glob(f"*{_NOTES}")):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            notes = _read(file)
            if not notes or time.time() - os.fstat(file.fileno()).st_mtime > _KEPT_SECONDS:
                path.unlink()
                continue
        for slot, decode in notes:
            left.setdefault(decode, []).append((path, slot))
    return left


def _read(file: BinaryIO) -> list[tuple[int, Decode]]:
    notes: list[tuple[int, Decode]] = []
    for slot in itertools.count():
        piece = file.read(_SLOT_BYTES)
        if not piece:
            return notes
        line, end, _ = piece.partition(b"\n")
        # A process may have died while it wrote: then that decode had not begun.
        with contextlib.suppress(ValueError, TypeError):
            if end:
                notes.append((slot, Decode(*json.loads(line))))
    return notes
