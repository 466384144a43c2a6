"""The limits of decoding one file, and how a rejection tells what it met and whether that still holds."""

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from embedding_platform.errors import RejectedError
from embedding_platform.settings import DecodingSettings

USUAL_LIMITS = DecodingSettings()

_NAMED_LIMIT = re.compile(r"decoding\.(\w+) = ([0-9.]+)")
_NOT_NOW = "cannot be read now"
_CRASH = "ends the process that decodes it"

_SECONDS_PER_MINUTE = 60.0
_SECONDS_PER_HOUR = 3600.0

_awaited_until: ContextVar[float] = ContextVar("awaited_until", default=math.inf)


@contextmanager
def awaited(seconds: float) -> Iterator[None]:
    """Let all decodes of the block together have so many seconds, whatever they play: somebody waits for them."""
    former = _awaited_until.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _awaited_until.reset(former)


class Deadline:
    """The time by which one decode has to be done: it grows as sound or a video is seen to play.

    A film takes longer than a song, and a damaged header may claim any length; so a decode
    has `max_seconds`, and as much again for every minute that was decoded so far. One that is
    `awaited` has no more than those who wait.
    """

    def __init__(self, limits: DecodingSettings) -> None:
        self._limits = limits
        self._started = time.monotonic()
        self._played = 0.0
        self._awaited_until = _awaited_until.get()

    def restart(self) -> None:
        """Begin anew, for a reader that waited for whoever takes its contents."""
        self._started = time.monotonic()

    def check(self, played: float = 0.0) -> None:
        """Go on, if there is time left after `played` decoded seconds.

        Raises:
            RejectedError: if there is none, or if that is longer than anything may play.
        """
        self._played = max(self._played, played)
        if played > self._limits.max_hours * _SECONDS_PER_HOUR:
            raise over(self._limits, "max_hours", f"plays for more than {self._limits.max_hours:g} hours")
        allowed = self._limits.max_seconds * (1 + self._played / _SECONDS_PER_MINUTE)
        now = time.monotonic()
        if now > self._awaited_until:
            raise RejectedError("takes too long to decode while somebody waits for it; send a shorter piece of it")
        if now - self._started > allowed:
            raise over(self._limits, "max_seconds", "takes too long to decode")


def over(limits: DecodingSettings, name: str, what: str) -> RejectedError:
    """The rejection of a file for the limit called `name`."""
    value = getattr(limits, name)
    return RejectedError(f"{what}: the limit is decoding.{name} = {int(value) if value == int(value) else value}")


def not_now(error: OSError) -> RejectedError:
    """The rejection of a file that a disk, a network or missing permission keeps from being read."""
    mend = "permit it" if isinstance(error, PermissionError) else "see to its disk or network"
    return RejectedError(f"{_NOT_NOW}: {error.strerror or error}; {mend}, and a later run takes it up")


def cut_off(what: str) -> RejectedError:
    """The rejection of a file whose decoding was ended from outside."""
    return RejectedError(f"{_NOT_NOW}: {what}; a later run takes it up")


def crashed(cause: str) -> RejectedError:
    """The rejection of a file that ends the process which decodes it; `cause` is a signal or a status."""
    return RejectedError(f"{_CRASH}, {cause}: it is damaged or hostile; remove it, or save it anew by another program")


def is_crash(reason: str) -> bool:
    """Whether a reason is that of `crashed`."""
    return _CRASH in reason


def check_size(limits: DecodingSettings, modality: str, size: int) -> None:
    """Compare the bytes of a file with what is read of its modality.

    Raises:
        RejectedError: if there are more.
    """
    name = "max_document_megabytes" if modality == "text" else "max_megabytes"
    if size > getattr(limits, name) * 2**20:
        raise over(limits, name, f"is too large, {size / 2**20:.0f} MiB")


def not_readable_now(reason: str) -> bool:
    """Whether a reason is that of `not_now`, which says nothing about the file itself."""
    return _NOT_NOW in reason


def check_duration(limits: DecodingSettings, seconds: float | None) -> None:
    """Compare what a file says of its length with the longest that is decoded.

    Raises:
        RejectedError: if it says more.
    """
    if seconds is not None and seconds > limits.max_hours * _SECONDS_PER_HOUR:
        raise over(limits, "max_hours", f"declares to play for {seconds / _SECONDS_PER_HOUR:.0f} hours")


def stands(reason: str, limits: DecodingSettings) -> bool:
    """Whether a rejection still holds for the same bytes and the same code.

    It does not where the file could not be read at that moment, nor where it was over a limit
    that has been raised since.
    """
    if not_readable_now(reason):
        return False
    named = _NAMED_LIMIT.search(reason)
    return named is None or getattr(limits, named[1], 0) <= float(named[2])
