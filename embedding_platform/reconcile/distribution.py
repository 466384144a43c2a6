"""How a source's vectors are distributed, against what they were when its checks last passed.

A model that silently gives other vectors, a decoder that turns everything grey, or a source that
fills with something else moves the centre of the vectors, or changes how far they scatter. How
much of that is usual is known from the source's own history: of each change that was accepted,
one line is kept, and of the last one the centre. A source that is new is held against the space's
other sources, and one with few changes to what is usual of them.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError
from embedding_platform.vectors.judged import Judged
from embedding_platform.vectors.judgement import Distribution, distribution, normalise

FIGURES = ("shift", "spread_change", "norm_change")
"""How far a distribution is from another: distance of the centres of the directions, change of the
spread, and relative change of the mean norm."""

FEWEST = 10
"""Vectors from which on a distribution can be told."""

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

MOST_OUTLIERS = 10

MOST_OTHERS = 50
"""Other sources of a space whose histories are read."""

_NOTHING: dict[str, Any] = {"accepted": [], "centre": "", "waiting": None}


@dataclass(frozen=True)
class Change:
    """How far the distribution of a source's vectors is from the last accepted one.

    `figures` and `limits` are by FIGURES; both are empty where there is nothing to compare with
    yet, or too few vectors. `accepted` counts the changes that the limits come from; `others` the
    sources of the space that a new one is compared with, 0 where it is compared with itself.
    `outliers` are the contents farthest from the accepted centre and their cosines with it, the
    farthest first, none while the change is within its limits. `is_new` tells whether the vectors
    are others than when last accepted.
    """

    vectors: int
    spread: float
    mean_norm: float
    figures: dict[str, float]
    limits: dict[str, float]
    accepted: int
    outliers: list[tuple[str, float]]
    is_new: bool
    others: int = 0

    @property
    def exceeded(self) -> list[str]:
        """The figures that are above their limit."""
        return [name for name in self.figures if not self.figures[name] <= self.limits[name]]


def compare_distribution(
    store: str, space_key: str, fingerprint: str, source: str, judged: Judged, data_version: str, usual: float
) -> Change:
    """Compare a sample of the stored vectors with the last accepted distribution; see `limit_of` for the limits.

    What is not within its limits is written down as waiting, so that a person can accept it, until it is again.
    `usual` is the largest change that is taken for usual while there is no history.

    Raises:
        PlatformError: if the history cannot be read, or not be written.
    """
    url = layout.distribution_url(store, space_key, fingerprint, source)
    kept = _read(url)
    now = distribution(judged.sample.vectors)
    last = kept["accepted"][-1] if kept["accepted"] else None
    is_new = last is None or last["data_version"] != data_version
    # The first has nothing of its own that it was compared with.
    history = kept["accepted"][1:]
    others = _others(url) if is_new and now.count >= FEWEST and len(history) < FEWEST_ACCEPTED else []
    figures: dict[str, float] = {}
    limits: dict[str, float] = {}
    before = None
    if last is not None and now.count >= FEWEST:
        before = _last_of(kept)
        figures, noises = _figures(now, before), _noises(now, before)
        if len(history) < FEWEST_ACCEPTED:
            history = [*history, *(line for other in others for line in other["accepted"][1:])]
        limits = {name: limit_of([one[name] for one in history], noises[name], usual) for name in FIGURES}
    elif last is None and len(others) >= FEWEST_ACCEPTED:
        before, figures, limits = _beside(now, [_last_of(other) for other in others], usual)
    change = Change(
        vectors=now.count,
        spread=now.spread,
        mean_norm=now.mean_norm,
        figures=figures,
        limits=limits,
        accepted=len(history),
        outliers=[],
        is_new=is_new,
        others=len(others) if last is None and figures else 0,
    )
    if before is None:
        return change
    waiting = kept["waiting"]
    if not change.exceeded:
        if waiting is not None:
            # The vectors that waited are there no more: accepting them now would tell of those that are.
            _write(url, {**kept, "waiting": None})
        return change
    if waiting is None or waiting["data_version"] != data_version:
        kept["waiting"] = {**_line(now, figures, data_version), "centre": _encoded(now.centre)}
        _write(url, kept)
    return Change(**{**vars(change), "outliers": _outliers(judged, before)})


def accept_distribution(
    store: str, space_key: str, fingerprint: str, source: str, judged: Judged, change: Change, data_version: str
) -> None:
    """Take the present distribution for the one that later runs are compared with; the others of them passed.

    Nothing is written where the vectors are those that were accepted last, or are too few.

    Raises:
        PlatformError: if the history cannot be read or written.
    """
    if not change.is_new or change.vectors < FEWEST:
        return
    url = layout.distribution_url(store, space_key, fingerprint, source)
    now = distribution(judged.sample.vectors)
    _accept(url, _read(url), _line(now, change.figures, data_version), _encoded(now.centre))


def accept_waiting(store: str, space_key: str, fingerprint: str, source: str) -> str:
    """Accept a change that a check warned of; returns the time at which it was first met.

    Raises:
        PlatformError: if no change waits to be accepted.
    """
    url = layout.distribution_url(store, space_key, fingerprint, source)
    kept = _read(url)
    waiting = kept["waiting"]
    if waiting is None:
        raise PlatformError(
            f"no change of {space_key}, source {source}, waits to be accepted; see the check distribution in the web UI"
        )
    line = {name: value for name, value in waiting.items() if name != "centre"}
    _accept(url, kept, line, waiting["centre"])
    return str(waiting["at"])


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


def _others(url: str) -> list[dict[str, Any]]:
    """What is kept of the space's other sources, of at most MOST_OTHERS of those that have anything accepted."""
    folder, own = url.rsplit("/", 1)
    names = sorted(storage.shard_marks(folder, ".json").keys() - {own})
    step = max(1, len(names) // MOST_OTHERS)
    kept = (_read(storage.join(folder, name)) for name in names[::step][:MOST_OTHERS])
    return [one for one in kept if one["accepted"]]


def _last_of(kept: dict[str, Any]) -> Distribution:
    """The distribution that was accepted last."""
    last = kept["accepted"][-1]
    return Distribution(last["vectors"], _decoded(kept["centre"]), last["mean_norm"])


def _beside(
    now: Distribution, others: Sequence[Distribution], usual: float
) -> tuple[Distribution, dict[str, float], dict[str, float]]:
    """All others as one, how far a new source is from them, and how far it may be, after how far each of them is.

    Sources are of one kind and yet of other things, so that `usual` is allowed at least.
    """
    centre = np.mean([other.centre for other in others], axis=0)
    together = Distribution(
        sum(other.count for other in others), centre, float(np.median([other.mean_norm for other in others]))
    )
    spread = float(np.median([other.spread for other in others]))

    def far(one: Distribution) -> dict[str, float]:
        # The centre of all scatters more than any source does by itself.
        return {**_figures(one, together), "spread_change": abs(one.spread - spread)}

    figures, noises = far(now), _noises(now, together)
    history = [far(other) for other in others]
    for one in history:
        # Each has a part in the centre of all; this is its distance from the centre of the rest.
        one["shift"] *= len(others) / (len(others) - 1)
    limits = {name: max(limit_of([one[name] for one in history], noises[name], usual), usual) for name in FIGURES}
    return together, figures, limits


def _figures(now: Distribution, before: Distribution) -> dict[str, float]:
    return {
        "shift": float(np.linalg.norm(now.centre - before.centre)),
        "spread_change": abs(now.spread - before.spread),
        "norm_change": abs(now.mean_norm / before.mean_norm - 1.0),
    }


def _noises(now: Distribution, before: Distribution) -> dict[str, float]:
    """NOISE times what two samples of one distribution differ by, in the root of the mean square, by FIGURES.

    The variance of the mean of n unit vectors is (1 - R²) / n, where R is the length of their mean.
    """
    samples = 1 / now.count + 1 / before.count
    scatter = max(1.0 - (1.0 - now.spread) ** 2, 0.0)
    of_centre = NOISE * float(np.sqrt(scatter * samples))
    of_norm = NOISE * now.norm_deviation / before.mean_norm * float(np.sqrt(samples))
    return {"shift": of_centre, "spread_change": of_centre, "norm_change": of_norm}


def _outliers(judged: Judged, before: Distribution) -> list[tuple[str, float]]:
    centre = before.centre / max(float(np.linalg.norm(before.centre)), 1e-12)
    cosines = normalise(judged.sample.vectors) @ centre
    return [(judged.sample.contents[place], float(cosines[place])) for place in np.argsort(cosines)[:MOST_OUTLIERS]]


def _line(now: Distribution, figures: dict[str, float], data_version: str) -> dict[str, Any]:
    """One line of the history; a first one differs from nothing."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_version": data_version,
        "vectors": now.count,
        "spread": now.spread,
        "mean_norm": now.mean_norm,
        **{name: figures.get(name, 0.0) for name in FIGURES},
    }


def _accept(url: str, kept: dict[str, Any], line: dict[str, Any], centre: str) -> None:
    # The first is kept apart from the others by its place, so that one more is kept than counts.
    accepted = [*kept["accepted"], line][-MOST_ACCEPTED - 1 :]
    _write(url, {"accepted": accepted, "centre": centre, "waiting": None})


def _encoded(centre: np.ndarray) -> str:
    return base64.b64encode(centre.astype("<f4").tobytes()).decode()


def _decoded(centre: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(centre), "<f4").astype(np.float64)


def _read(url: str) -> dict[str, Any]:
    payload = storage.read_bytes(url)
    if payload is None:
        return dict(_NOTHING)
    try:
        kept = json.loads(payload)
        return {name: kept[name] for name in _NOTHING}
    except (ValueError, LookupError, TypeError) as error:
        raise PlatformError(
            f"cannot read {url}: {error}; remove this file and run again: the vectors as they are then are accepted"
        ) from error


def _write(url: str, kept: dict[str, Any]) -> None:
    storage.write_bytes(url, json.dumps(kept).encode())
