"""Looking at all sources of a modality beside the caller, who waits for as long as it likes.

A tick of a sensor has a minute. Listing a large lake, or one on a disk that has stopped to answer, takes
longer: a round goes on between ticks, and each tick takes what has been seen by then.
"""

import threading
import time
from collections.abc import Set
from dataclasses import dataclass, field

from embedding_platform.errors import PlatformError
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import listed_sources, listing_age
from embedding_platform.sights import Sight


@dataclass(frozen=True)
class Look:
    """What was seen of one source.

    `age` marks the listing that it was compared with. `is_unplaced` tells whether some space's
    collection does not hold it as it is listed, `is_left` whether it holds no media now though a
    listing or rows of it are left.
    """

    sight: Sight
    age: str
    is_unplaced: bool
    is_left: bool


@dataclass
class Round:
    """One look at every source: what has been seen so far, what could not be, and where it is.

    `error` is what keeps from looking at any source. `taken` counts the looks that `take` has given.
    """

    looks: dict[str, Look] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    error: str = ""
    sources: int = 0
    at: str = ""
    started: float = field(default_factory=time.monotonic)
    taken: int = 0
    is_whole: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def is_under_way(self) -> bool:
        """Whether sources are still being looked at."""
        return not self.ended.is_set()

    def take(self) -> dict[str, Look]:
        """The looks since the last call, each given once: one that led to a run is out of date when that has ended."""
        new = list(self.looks.items())[self.taken :]
        self.taken += len(new)
        return dict(new)


class Watch:
    """The rounds over one modality, one after the other."""

    def __init__(self, modality: str) -> None:
        self._modality = modality
        self._round: Round | None = None

    def look(self, platform: Platform, known: Set[str], seconds: float) -> Round:
        """Begin a round where none is under way, and return it when it has ended or `seconds` are over.

        Sources are those under the media root, those listed before, and those `known`.

        Raises:
            RuntimeError: if the round broke off by a fault of ours, whose trace is in the process's log.
        """
        if self._round is None:
            self._round = Round()
            # Not waited for when the process ends: a disk that is away may hold it for ever.
            threading.Thread(target=self._carry_out, args=(self._round, platform, known), daemon=True).start()
        current = self._round
        if current.ended.wait(seconds):
            self._round = None
            if not (current.is_whole or current.error):
                raise RuntimeError(f"looking at {self._modality} source {current.at} broke off; see this process's log")
        return current

    def _carry_out(self, current: Round, platform: Platform, known: Set[str]) -> None:
        modality, store = self._modality, platform.store
        try:
            current.at = platform.settings.media_url
            present = platform.present(modality)
            listed = listed_sources(store, modality)
            sources = sorted({*present, *known, *listed})
            current.sources = len(sources)
            unplaced = platform.unplaced(modality)
            for source in sources:
                current.at = source
                try:
                    age = listing_age(store, modality, source)
                    sight = platform.sight(modality, source)
                    is_missing = source in known and not sight.holds
                    is_left = is_missing and not platform.is_gone(modality, source, len(listed))
                    current.looks[source] = Look(sight, age, source in unplaced, is_left)
                except PlatformError as error:
                    current.problems[source] = str(error)
            current.is_whole = True
        except PlatformError as error:
            current.error = str(error)
        finally:
            current.ended.set()
