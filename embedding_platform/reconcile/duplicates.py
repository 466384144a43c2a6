"""How many segments of a source repeat another's content, against how many did when its checks last passed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from embedding_platform import layout
from embedding_platform.reconcile import history
from embedding_platform.reconcile.history import FEWEST_ACCEPTED, LEAST_LIMIT, MOST_ACCEPTED, NOISE, limit_of

_NOTHING: dict[str, Any] = {"accepted": [], "waiting": None}


@dataclass(frozen=True)
class Repetition:
    """The share of segments that repeat another's content, and the largest that is not remarkable.

    `accepted` counts the shares that the limit comes from, those of the space's other sources among them where
    the source has few.
    """

    duplicates: int
    segments: int
    limit: float
    accepted: int

    @property
    def share(self) -> float:
        """Of all segments; 0 where there are none."""
        return self.duplicates / self.segments if self.segments else 0.0

    @property
    def exceeded(self) -> bool:
        """Whether the share is above its limit."""
        return self.share > self.limit


def compare_duplicates(
    store: str, space_key: str, fingerprint: str, source: str, duplicates: int, segments: int, usual: float
) -> Repetition:
    """Compare the share with the accepted ones; see `_limit`. One above its limit waits for a person to accept it.

    `usual` is the largest share that is not remarkable while there is no history.

    Raises:
        PlatformError: if the history cannot be read, or not be written.
    """
    url = layout.duplicates_url(store, space_key, fingerprint, source)
    kept = history.read(url, _NOTHING)
    own = [_share(one) for one in kept["accepted"]]
    others: list[float] = []
    if len(own) < FEWEST_ACCEPTED and _is_new(kept, duplicates, segments):
        others = [_share(other["accepted"][-1]) for other in history.read_others(url, _NOTHING)]
    limit = _limit(own, others, segments, usual)
    found = Repetition(duplicates, segments, limit, len(own) + len(others))
    waiting = kept["waiting"]
    if not found.exceeded:
        if waiting is not None:
            history.write(url, {**kept, "waiting": None})
    elif waiting is None or (waiting["duplicates"], waiting["segments"]) != (duplicates, segments):
        history.write(url, {**kept, "waiting": _line(found)})
    return found


def accept_duplicates(store: str, space_key: str, fingerprint: str, source: str, found: Repetition) -> None:
    """Add a share to those that later ones are compared with; nothing is written where it is the last of them.

    Raises:
        PlatformError: if the history cannot be read or written.
    """
    url = layout.duplicates_url(store, space_key, fingerprint, source)
    kept = history.read(url, _NOTHING)
    if found.segments and _is_new(kept, found.duplicates, found.segments):
        _accept(url, kept, _line(found))


def accept_waiting_duplicates(store: str, space_key: str, fingerprint: str, source: str) -> str | None:
    """Accept a share that the check warned of; returns the time at which it was first met, None if none waits.

    Raises:
        PlatformError: if the history cannot be read or written.
    """
    url = layout.duplicates_url(store, space_key, fingerprint, source)
    kept = history.read(url, _NOTHING)
    waiting = kept["waiting"]
    if waiting is None:
        return None
    _accept(url, kept, waiting)
    return str(waiting["at"])


def _limit(own: Sequence[float], others: Sequence[float], segments: int, usual: float) -> float:
    """The largest share that is not remarkable after the accepted ones, the last one at the end.

    It is that of `limit_of`, and above the last one, whoever accepted it, by LEAST_LIMIT and the sampling error
    at least. Others of the space widen what is `usual` of a source that has few of its own.
    """
    above_last = own[-1] + max(LEAST_LIMIT, _noise(own[-1], segments)) if own else 0.0
    return min(1.0, limit_of(own, above_last, max(usual, limit_of(others, 0.0, usual))))


def _noise(share: float, segments: int) -> float:
    """NOISE standard errors of a share among so many, by the rule of succession, since none so far is not never."""
    expected = (share * segments + 1) / (segments + 2)
    return NOISE * float(np.sqrt(expected * (1 - expected) / max(segments, 1)))


def _is_new(kept: dict[str, Any], duplicates: int, segments: int) -> bool:
    last = kept["accepted"][-1] if kept["accepted"] else {}
    return (last.get("duplicates"), last.get("segments")) != (duplicates, segments)


def _share(line: dict[str, Any]) -> float:
    return float(line["duplicates"] / line["segments"])


def _line(found: Repetition) -> dict[str, Any]:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {"at": at, "duplicates": found.duplicates, "segments": found.segments}


def _accept(url: str, kept: dict[str, Any], line: dict[str, Any]) -> None:
    history.write(url, {"accepted": [*kept["accepted"], line][-MOST_ACCEPTED:], "waiting": None})
