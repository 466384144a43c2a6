"""The contents that came since a source's vectors were last accepted, and how their vectors lie by themselves.

A few hundred spoilt files among a hundred thousand sound ones move the centre of all by next to nothing. What came
is therefore noted before it is embedded, and its vectors are held against the accepted ones. Files of another topic
lie elsewhere too, so that neither the distance of their centre nor a smaller spread tells much. What is told is what a
topic does not do: have less in common with the accepted ones than almost any of them has, be almost one vector, or
have other norms than almost all.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import storage
from embedding_platform.reconcile.history import LEAST_LIMIT, NOISE, limit_of
from embedding_platform.vectors.judgement import normalise, norms_of, spread
from embedding_platform.vectors.sampled import least_distinct

FIGURES = ("increment_cosine_change", "increment_alikeness", "increment_norm_change")
"""Of the vectors that came: how far their cosines with accepted vectors are from what those have with each other,
which part of the distance between two accepted vectors is missing between two of them (0 none, 1 all), and the
relative change of the mean norm."""

FEWEST = 10
"""Vectors from which on they can be told apart from others; fewer wait for those that come next."""

COMMON = 99
"""Percent of the accepted vectors that are nearer to the mean of a figure than its limit: a topic of which even the
mean is farther comes less often than one in a hundred, where topics come as those that were accepted."""

MOST_ALIKE = 0.95
"""Part of the usual distance that may be missing. At a twentieth of it, vectors are those of copies: for media
whose pairs have a cosine of 0.4, it is 0.97."""

QUARTER = 25
"""Percent of the accepted vectors that a vector has a lower cosine with than the one that counts: those of its own
topic, which one of a new topic has not among them, are seldom so many that they move it."""

MOST_COMPARED = 500
"""Vectors of each side whose cosines are taken."""

LEAST_DISTANCE = 1e-6
"""Of two vectors of float32: nearer ones are the same."""

_NOTED = pa.schema([("content_hash", pa.string())])


def note(url: str, contents: pd.Index) -> None:
    """Add contents to those noted at `url`, before any of their vectors is stored.

    Of many the least hashes are kept, as many as a sample has; nothing is written where that changes nothing.
    """
    if not len(contents):
        return
    known = noted(url)
    least = least_distinct(pa.chunked_array([pa.array(contents, pa.string()), known]))
    if not least.equals(known):
        _write(url, least)


def noted(url: str) -> pa.Array:
    """The hashes that are noted at `url`, sorted."""
    column = storage.read_table(url, _NOTED)["content_hash"]
    return pa.concat_arrays([pa.array([], pa.string()), *column.chunks])


def forget(url: str, contents: Sequence[str]) -> None:
    """Take contents whose vectors were accepted out of those noted at `url`.

    Contents that have no vector yet, or are gone for the time being, stay noted: they are compared when they have one.
    """
    known = noted(url)
    left = known.filter(pc.invert(pc.is_in(known, value_set=pa.array(contents, pa.string()))))
    if not len(left):
        storage.remove(url)
    elif len(left) < len(known):
        _write(url, left)


def compare(
    arrived: np.ndarray, accepted: np.ndarray, history: Mapping[str, Sequence[float]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of the vectors float32 [n, d] that came, and their limits, both by FIGURES.

    `accepted` is a sample [m, d] of the others, and `history` has the accepted values of each figure: they may
    widen a limit, never narrow it, since the first other topic of a source that had one so far is no fault.
    Both answers are empty where either vectors are fewer than FEWEST, without those that are zero or not finite.
    """
    arrived, accepted = _usable(arrived), _usable(accepted)
    if min(len(arrived), len(accepted)) < FEWEST:
        return {}, {}
    cosines, usual_cosines = _cosines(arrived, accepted), _cosines(accepted, accepted)
    norms, usual_norms = norms_of(arrived), norms_of(accepted)
    mean_norm = float(usual_norms.mean())
    figures = {
        "increment_cosine_change": abs(float(cosines.mean() - usual_cosines.mean())),
        "increment_alikeness": _alikeness(arrived, accepted),
        "increment_norm_change": abs(float(norms.mean()) / mean_norm - 1.0),
    }
    limits = {
        "increment_cosine_change": _common(usual_cosines, len(cosines)),
        # So few as FEWEST different ones are not that much alike by chance.
        "increment_alikeness": MOST_ALIKE,
        "increment_norm_change": _common(usual_norms / mean_norm, len(arrived)),
    }
    return figures, {name: limit_of(history[name], limit, limit) for name, limit in limits.items()}


def _cosines(vectors: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """Of each of at most MOST_COMPARED vectors, the first QUARTER of its cosines with as many accepted ones."""
    products = normalise(vectors[:MOST_COMPARED]) @ normalise(accepted[:MOST_COMPARED]).T
    found: np.ndarray = np.percentile(products, QUARTER, axis=1)
    return found


def _alikeness(arrived: np.ndarray, accepted: np.ndarray) -> float:
    """Of the median distance of random pairs, which a few odd ones among those that came do not move."""
    distance, usual = (max(LEAST_DISTANCE, 1.0 - _median_cosine(vectors)) for vectors in (arrived, accepted))
    return max(0.0, 1.0 - distance / usual)


def _median_cosine(vectors: np.ndarray) -> float:
    found = spread(vectors)
    assert found is not None
    return found.median


def _usable(vectors: np.ndarray) -> np.ndarray:
    norms = norms_of(vectors)
    return vectors[np.isfinite(norms) & (norms > 0)]


def _common(accepted: np.ndarray, count: int) -> float:
    """How far from the mean of all COMMON percent of the values are, and the sampling error of a mean of `count`."""
    farthest = float(np.percentile(np.abs(accepted - accepted.mean()), COMMON))
    error = float(accepted.std() * np.sqrt(1 / count + 1 / len(accepted)))
    return max(farthest + NOISE * error, LEAST_LIMIT)


def _write(url: str, contents: pa.Array) -> None:
    storage.write_table(url, pa.table([contents], schema=_NOTED))
