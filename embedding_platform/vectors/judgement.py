"""Judging vectors: what is unsound must not reach an index."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from embedding_platform.spaces import Space

VERSION = "1"
"""Raise it when a change here changes a verdict on a single vector: stored ones are judged anew."""

DIMENSION = "dimension"
FAULTS = (DIMENSION, "finite", "zero", "norm")
"""The ways in which a single vector can be unsound, in the order in which they are tested."""


@dataclass(frozen=True)
class Spread:
    """How far apart vectors lie: percentiles of the cosine of random pairs."""

    pairs: int
    low: float
    median: float
    high: float

    @property
    def distance(self) -> float:
        """How far the most different pairs are from pointing the same way: 1 minus the 5th percentile.

        Near zero means that the model gives everything the same vector.
        """
        return 1.0 - self.low


@dataclass(frozen=True)
class Distribution:
    """Where vectors lie: the mean of their directions, float64 [d], over so many of them, and their norms.

    `norm_deviation` is the standard deviation of the norms.
    """

    count: int
    centre: np.ndarray
    mean_norm: float
    norm_deviation: float = 0.0

    @property
    def spread(self) -> float:
        """How far the directions scatter: 0 where all are one, 1 where they cancel out.

        It is the circular variance, 1 minus the mean resultant length (Mardia & Jupp 2000,
        "Directional Statistics", section 9.2.1).
        """
        return 1.0 - float(np.linalg.norm(self.centre))


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, d] divided by their Euclidean norm, float32; zero and non-finite ones stay as they are."""
    norms = norms_of(vectors)
    usable = np.isfinite(norms) & (norms > 0)
    return np.where(usable[:, None], vectors / np.where(usable, norms, 1.0)[:, None], vectors).astype(np.float32)


def norms_of(vectors: np.ndarray) -> np.ndarray:
    """Euclidean norms [n] of vectors [n, d], computed in float64."""
    return np.linalg.norm(vectors.astype(np.float64), axis=1)


def faults(vectors: np.ndarray, space: Space) -> list[str | None]:
    """For each vector of [n, d] the first fault that it has, one of FAULTS, or None if it is sound.

    A vector is sound when it has the space's dimension, all its values are finite, it is not
    zero, and its norm lies in the space's band.
    """
    if vectors.ndim != 2 or vectors.shape[1] != space.model.dimension:
        return [DIMENSION] * len(vectors)
    norms = norms_of(vectors)
    low, high = space.norm_band
    verdicts = np.full(len(vectors), None, dtype=object)
    verdicts[(norms < low) | (norms > high)] = "norm"
    verdicts[norms == 0] = "zero"
    verdicts[~np.isfinite(vectors).all(axis=1)] = "finite"
    return verdicts.tolist()


def explain(fault: str, vector: np.ndarray, space: Space) -> str:
    """One sentence on a fault for the person who owns the item."""
    if fault == DIMENSION:
        return f"{space.model.location} gave {len(vector)} dimensions where {space.key} has {space.model.dimension}"
    if fault == "finite":
        return f"{space.model.location} gave {int((~np.isfinite(vector)).sum())} values that are not finite"
    if fault == "zero":
        return f"{space.model.location} gave the zero vector, which has no direction to compare"
    norm = float(norms_of(vector[None])[0])
    return f"norm {norm:.4f} lies outside {space.key}'s band {space.norm_band[0]} to {space.norm_band[1]}"


def spread(vectors: np.ndarray, seed: int = 0, most_pairs: int = 20_000) -> Spread | None:
    """Percentiles 5, 50 and 95 of the cosine between random pairs of vectors [n, d].

    Vectors that are not finite do not count. None for fewer than two. Seeded, so that equal vectors give
    equal figures.
    """
    unit = normalise(vectors[np.isfinite(vectors).all(axis=1)])
    if len(unit) < 2:
        return None
    generator = np.random.default_rng(seed)
    count = min(most_pairs, len(unit) * (len(unit) - 1) // 2)
    left = generator.integers(0, len(unit), count)
    right = (left + generator.integers(1, len(unit), count)) % len(unit)
    cosines = np.einsum("nd,nd->n", unit[left], unit[right])
    low, median, high = np.percentile(cosines, [5, 50, 95])
    return Spread(count, float(low), float(median), float(high))


def distribution(vectors: np.ndarray) -> Distribution:
    """Where vectors [n, d] lie, n at least 1; zero and non-finite ones do not count."""
    norms = norms_of(vectors)
    usable = np.isfinite(norms) & (norms > 0)
    unit = vectors[usable].astype(np.float64) / norms[usable, None]
    count = int(usable.sum())
    if not count:
        return Distribution(0, np.zeros(vectors.shape[1]), 0.0)
    return Distribution(count, unit.mean(axis=0), float(norms[usable].mean()), float(norms[usable].std()))


def exact_neighbours(queries: np.ndarray, batches: Iterable[np.ndarray], k: int, metric: str) -> np.ndarray:
    """Scores [q, k] of the k best neighbours by exhaustive search over batches of vectors [n, d].

    Scores follow Milvus: cosine or inner product, higher is better; squared Euclidean
    distance for L2, lower is better. Fewer than k vectors in all give fewer columns.
    """
    sign = -1.0 if metric == "L2" else 1.0
    best = np.empty((len(queries), 0))
    for vectors in batches:
        scores = sign * _scores(queries.astype(np.float64), vectors.astype(np.float64), metric)
        best = np.sort(np.concatenate([best, scores], axis=1), axis=1)[:, ::-1][:, :k]
    return sign * best


def _scores(queries: np.ndarray, vectors: np.ndarray, metric: str) -> np.ndarray:
    products = queries @ vectors.T
    if metric == "IP":
        return products
    if metric == "COSINE":
        return products / np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(vectors, axis=1))
    squares = (queries**2).sum(axis=1)[:, None] + (vectors**2).sum(axis=1)[None]
    return squares - 2 * products
