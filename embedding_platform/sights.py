"""What sensors see of the media. One look serves the sensors of all modalities, lest each lists the whole lake."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

_Answer = TypeVar("_Answer")

SHARE_OF_INTERVAL = 0.5
"""For which part of `sensor_seconds` a look serves others than who made it. Sensors that were started together tick
within a few seconds of each other and share all looks; where they have drifted apart, a change is noticed by so much
later at most."""


@dataclass(frozen=True)
class Sight:
    """The files of one modality that a source holds.

    `state` is a hash of all of them, `holds` whether there are any, `differs` whether they
    differ from the last listing. Times are in seconds since 1970: `looked_at` is when the look began, so that
    no later change is in it; `changed_at` when the newest of all the source's files changed, None without
    files, and where the file system does not tell. `other_at` is when this process last began a look that saw other
    files in the source, None where it has made none: what has come since then changed later.
    """

    state: str
    holds: bool
    differs: bool
    looked_at: float
    changed_at: float | None = None
    other_at: float | None = None


@dataclass(frozen=True)
class Sights:
    """What one look at a source saw, by modality. None of it grows with the source.

    `ages` marks its last listings, of all modalities, and `files` the names, sizes and times of its files. The times
    are those of each `Sight`.
    """

    ages: str
    files: str
    looked_at: float
    other_at: float | None
    of: Mapping[str, Sight]


class Shared(Generic[_Answer]):
    """The last answer to a question that several ask, for those who have not had it.

    Who asks again has it answered anew, while the others wait for that answer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answer: _Answer | None = None
        self._found_at = -math.inf
        self._had_by: set[str] = set()

    def of(
        self,
        asker: str,
        seconds: float,
        find: Callable[[_Answer | None], _Answer],
        holds: Callable[[_Answer], bool] = lambda answer: True,
    ) -> _Answer:
        """The last answer, if `asker` has not had it, it is younger than `seconds`, and it still `holds`.

        Otherwise it is what `find` makes of the last one.

        Raises:
            Exception: what `find` raises, for this asker alone: the next one has it answered anew.
        """
        with self._lock:
            answer = self._answer
            is_young = time.monotonic() - self._found_at < seconds
            if answer is None or asker in self._had_by or not is_young or not holds(answer):
                self._found_at = -math.inf
                answer = self._answer = find(answer)
                self._found_at, self._had_by = time.monotonic(), set()
            self._had_by.add(asker)
            return answer
