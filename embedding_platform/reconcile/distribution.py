"""How a source's vectors are distributed, against what they were when its checks last passed.

A model that silently gives other vectors, a decoder that turns everything grey, or a source that
fills with something else moves the centre of the vectors, or changes how far they scatter. How
much of that is usual is known from the source's own history: of each change that was accepted,
one line is kept, and of the last one the centre. A source that is new is held against the space's
other sources, and one with few changes to what is usual of them. What came since the last of them is held
against it by itself too, see `arrivals`.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from embedding_platform import layout, storage
from embedding_platform.reconcile import arrivals, history
from embedding_platform.reconcile.history import FEWEST_ACCEPTED, MOST_ACCEPTED, NOISE, limit_of
from embedding_platform.vectors.judged import ARRIVED, Judged
from embedding_platform.vectors.judgement import Distribution, distribution, normalise
from embedding_platform.vectors.sampled import Sample, kept_url

FIGURES = ("shift", "spread_change", "norm_change")
"""How far a distribution is from another: distance of the centres of the directions, change of the
spread, and relative change of the mean norm."""

FEWEST = 10
"""Vectors from which on a distribution can be told."""

MOST_OUTLIERS = 10

_NOTHING: dict[str, Any] = {"accepted": [], "centre": "", "waiting": None}


@dataclass(frozen=True)
class Change:
    """How far the distribution of a source's vectors is from the last accepted one.

    `figures` and `limits` are by FIGURES, and by `arrivals.FIGURES` where enough came since to be compared by
    itself: `arrived` counts those of its vectors that are looked at. Both are empty where there is nothing to
    compare with yet, or too few vectors. `accepted` counts the changes that the limits come from; `others` the
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
    arrived: int = 0

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
    kept = history.read(url, _NOTHING)
    now = distribution(judged.sample.vectors)
    last = kept["accepted"][-1] if kept["accepted"] else None
    is_new = last is None or last["data_version"] != data_version
    # The first has nothing of its own that it was compared with.
    lines = kept["accepted"][1:]
    others: list[dict[str, Any]] = []
    telling = _telling(lines) if judged.arrived else lines
    if is_new and now.count >= FEWEST and len(telling) < FEWEST_ACCEPTED:
        others = history.read_others(url, _NOTHING)
    figures: dict[str, float] = {}
    limits: dict[str, float] = {}
    arrived: dict[str, float] = {}
    before = None
    if last is not None and now.count >= FEWEST:
        before = _last_of(kept)
        lines_of_others = [line for other in others for line in other["accepted"][1:]]
        arrived, limits = _of_arrivals(judged, lines, lines_of_others)
        if len(lines) < FEWEST_ACCEPTED:
            lines = [*lines, *lines_of_others]
        figures, noises = _figures(now, before), _noises(now, before)
        limits |= {name: limit_of([one[name] for one in lines], noises[name], usual) for name in FIGURES}
    elif last is None and len(others) >= FEWEST_ACCEPTED:
        before, figures, limits = _beside(now, [_last_of(other) for other in others], usual)
    change = Change(
        vectors=now.count,
        spread=now.spread,
        mean_norm=now.mean_norm,
        figures={**figures, **arrived},
        limits=limits,
        accepted=len(lines),
        outliers=[],
        is_new=is_new,
        others=len(others) if last is None and figures else 0,
        arrived=len(judged.arrived.contents) if judged.arrived and arrived else 0,
    )
    if before is None:
        return change
    waiting = kept["waiting"]
    if not change.exceeded:
        if waiting is not None:
            # The vectors that waited are there no more: accepting them now would tell of those that are.
            history.write(url, {**kept, "waiting": None})
        return change
    if waiting is None or waiting["data_version"] != data_version:
        line = _line(now, change.figures, data_version)
        kept["waiting"] = {**line, "centre": _encoded(now.centre), "arrived": _arrived(judged)}
        history.write(url, kept)
    # Those that came may be too few to be among a sample of all.
    offending = judged.sample if set(change.exceeded) & set(FIGURES) else judged.arrived
    return Change(**{**vars(change), "outliers": _outliers(offending or judged.sample, before)})


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
    place = (store, space_key, fingerprint, source)
    url = layout.distribution_url(*place)
    kept = history.read(url, _NOTHING)
    now = distribution(judged.sample.vectors)
    # Of a first distribution all are a part. Later ones that are too few to be compared wait for those to come.
    compared = _arrived(judged) if change.arrived or not kept["accepted"] else []
    _accept(url, kept, _line(now, change.figures, data_version), _encoded(now.centre))
    _forget(*place, compared)


def accept_waiting_distribution(store: str, space_key: str, fingerprint: str, source: str) -> str | None:
    """Accept a change that the check warned of; returns the time at which it was first met, None if none waits.

    Raises:
        PlatformError: if the history cannot be read or written.
    """
    place = (store, space_key, fingerprint, source)
    url = layout.distribution_url(*place)
    kept = history.read(url, _NOTHING)
    waiting = kept["waiting"]
    if waiting is None:
        return None
    line = {name: value for name, value in waiting.items() if name not in ("centre", "arrived")}
    _accept(url, kept, line, waiting["centre"])
    _forget(*place, waiting.get("arrived", []))
    return str(waiting["at"])


def _of_arrivals(
    judged: Judged, lines: Sequence[dict[str, Any]], lines_of_others: Sequence[dict[str, Any]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of what came since the last distribution was accepted, and their limits."""
    if judged.arrived is None:
        return {}, {}
    came = set(judged.arrived.contents)
    rest = [content not in came for content in judged.sample.contents]
    telling = _telling(lines)
    if len(telling) < FEWEST_ACCEPTED:
        telling += _telling(lines_of_others)
    usual = {name: [line[name] for line in telling] for name in arrivals.FIGURES}
    return arrivals.compare(judged.arrived.vectors, judged.sample.vectors[rest], usual)


def _telling(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The accepted changes that tell of what came by itself as well; those of too few, or kept long ago, do not."""
    return [line for line in lines if arrivals.FIGURES[0] in line]


def _arrived(judged: Judged) -> list[str]:
    return judged.arrived.contents if judged.arrived else []


def _forget(store: str, space_key: str, fingerprint: str, source: str, contents: Sequence[str]) -> None:
    """What was compared need not be again, now that it is accepted."""
    if contents:
        arrivals.forget(layout.arrived_url(store, space_key, fingerprint, source), contents)
        storage.remove(kept_url(layout.vectors_folder(store, space_key, fingerprint, source), ARRIVED))


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


def _outliers(sample: Sample, before: Distribution) -> list[tuple[str, float]]:
    centre = before.centre / max(float(np.linalg.norm(before.centre)), 1e-12)
    cosines = normalise(sample.vectors) @ centre
    return [(sample.contents[place], float(cosines[place])) for place in np.argsort(cosines)[:MOST_OUTLIERS]]


def _line(now: Distribution, figures: dict[str, float], data_version: str) -> dict[str, Any]:
    """One line of the history; a first one differs from nothing."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_version": data_version,
        "vectors": now.count,
        "spread": now.spread,
        "mean_norm": now.mean_norm,
        **dict.fromkeys(FIGURES, 0.0),
        **figures,
    }


def _accept(url: str, kept: dict[str, Any], line: dict[str, Any], centre: str) -> None:
    # The first is kept apart from the others by its place, so that one more is kept than counts.
    accepted = [*kept["accepted"], line][-MOST_ACCEPTED - 1 :]
    history.write(url, {"accepted": accepted, "centre": centre, "waiting": None})


def _encoded(centre: np.ndarray) -> str:
    return base64.b64encode(centre.astype("<f4").tobytes()).decode()


def _decoded(centre: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(centre), "<f4").astype(np.float64)
