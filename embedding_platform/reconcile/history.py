"""What was accepted of a source before, one small JSON file for each kind of figure, and what is usual after it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embedding_platform import storage
from embedding_platform.errors import PlatformError

FEWEST_ACCEPTED = 5
"""Accepted changes from which on they, and not the settings, tell what is usual."""

MOST_ACCEPTED = 20
"""Accepted changes that are kept, the last ones."""

DEVIATIONS = 3.5
"""How many robust standard deviations above its median a change is an outlier: the modified
z-score of Iglewicz & Hoaglin 1993 (NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.5.17)."""

TO_STANDARD_DEVIATION = 1.4826
"""What a median absolute deviation is multiplied by to estimate a standard deviation (Leys et al. 2013)."""

LEAST_LIMIT = 0.01
"""Smaller changes are never told, however steady a source was."""

NOISE = 3.0
"""How many times the sampling error a change has to be, so that few vectors are not taken for a change."""

MOST_OTHERS = 50
"""Other sources of a space whose histories are read."""


def limit_of(history: Sequence[float], noise: float, usual: float) -> float:
    """The largest change that is not remarkable, after the changes of `history` were accepted.

    From FEWEST_ACCEPTED changes on, of the source itself or of others of its space, it is their median and
    DEVIATIONS robust standard deviations more, at least LEAST_LIMIT; before, it is `usual`. It is never below
    `noise`.
    """
    if len(history) < FEWEST_ACCEPTED:
        return max(usual, noise)
    values = np.array(history, dtype=np.float64)
    median = float(np.median(values))
    deviation = TO_STANDARD_DEVIATION * float(np.median(np.abs(values - median)))
    return max(median + DEVIATIONS * deviation, noise, LEAST_LIMIT)


def read(url: str, nothing: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept at `url`, by the names of `nothing`, which an absent file is.

    Raises:
        PlatformError: if the file is there and cannot be read.
    """
    payload = storage.read_bytes(url)
    if payload is None:
        return dict(nothing)
    try:
        kept = json.loads(payload)
        return {name: kept[name] for name in nothing}
    except (ValueError, LookupError, TypeError) as error:
        raise PlatformError(
            f"cannot read {url}: {error}; remove this file and run again: the vectors as they are then are accepted"
        ) from error


def write(url: str, kept: Mapping[str, Any]) -> None:
    """Keep this at `url`.

    Raises:
        PlatformError: if it cannot be written.
    """
    storage.write_bytes(url, json.dumps(kept).encode())


def read_others(url: str, nothing: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is kept of the space's other sources, of at most MOST_OTHERS of those that have anything accepted."""
    folder, own = url.rsplit("/", 1)
    names = sorted(storage.shard_marks(folder, ".json").keys() - {own})
    step = max(1, len(names) // MOST_OTHERS)
    kept = (read(storage.join(folder, name), nothing) for name in names[::step][:MOST_OTHERS])
    return [one for one in kept if one["accepted"]]
