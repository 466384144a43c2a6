import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedding_platform.spaces import Model, Space
from embedding_platform.vectors.judgement import FAULTS, exact_neighbours, explain, faults, normalise, norms_of, spread

SPACE = Space("image", "small", Model("small", "small", 4, ("image",), "none", "drawn"), norm_band=(0.5, 2.0))
METRICS = ["COSINE", "IP", "L2"]


def vector(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float32)


@pytest.mark.parametrize(
    ("vectors", "fault"),
    [
        (vector(1, 0, 0, 0), None),
        (vector(1, 0, 0), "dimension"),
        (vector(1, 0, 0, 0, 0), "dimension"),
        (vector(np.nan, 0, 0, 0), "finite"),
        (vector(np.inf, 0, 0, 0), "finite"),
        (vector(-np.inf, np.inf, 1, 0), "finite"),
        (vector(np.nan, np.nan, np.nan, np.nan), "finite"),
        (vector(0, 0, 0, 0), "zero"),
        (vector(-0.0, 0, 0, 0), "zero"),
        (vector(3e38, 3e38, 3e38, 3e38), "norm"),
        (vector(1e-40, 0, 0, 0), "norm"),
        (vector(0.5, 0, 0, 0), None),
        (vector(2.0, 0, 0, 0), None),
        (np.nextafter(vector(0.5, 0, 0, 0), 0), "norm"),
        (np.nextafter(vector(2, 0, 0, 0), 9), "norm"),
    ],
)
def test_each_fault_is_named_and_explained(vectors, fault):
    assert faults(vectors, SPACE) == [fault]
    if fault:
        assert fault in FAULTS
        sentence = explain(fault, vectors[0], SPACE)
        assert "small" in sentence
        assert "\n" not in sentence


def test_vectors_are_judged_one_by_one():
    vectors = np.concatenate([vector(1, 0, 0, 0), vector(0, 0, 0, 0), vector(np.nan, 0, 0, 0), vector(9, 0, 0, 0)])
    assert faults(vectors, SPACE) == [None, "zero", "finite", "norm"]
    assert faults(np.empty((0, 4), np.float32), SPACE) == []


@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(-1e3, 1e3, width=32)))
def test_a_vector_that_is_not_zero_is_sound_once_normalised(vectors):
    band = dataclasses.replace(SPACE, norm_band=(0.999, 1.001))
    for verdict, norm in zip(faults(normalise(vectors), band), norms_of(vectors), strict=True):
        assert verdict == (None if norm > 0 else "zero")


def test_what_has_no_direction_stays_as_it_is():
    vectors = np.concatenate([vector(0, 0, 0, 0), vector(np.nan, 1, 0, 0), vector(np.inf, 1, 0, 0), vector(3, 4, 0, 0)])
    found = normalise(vectors)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:3], vectors[:3])
    np.testing.assert_allclose(found[3], [0.6, 0.8, 0, 0])


def test_norms_do_not_overflow():
    assert norms_of(vector(3e38, 0, 0, 0)) == pytest.approx(3e38)


def test_a_collapsed_set_has_no_width_and_a_random_one_has():
    generator = np.random.default_rng(0)
    one = generator.normal(size=(1, 64))
    collapsed = spread((one + 1e-6 * generator.normal(size=(300, 64))).astype(np.float32))
    random = spread(generator.normal(size=(300, 64)).astype(np.float32))
    assert collapsed.high - collapsed.low < 1e-6
    assert collapsed.median == pytest.approx(1)
    # In d dimensions the cosine of random vectors has the deviation 1/sqrt(d); 5 to 95 % span 3.29 of it.
    assert random.high - random.low == pytest.approx(3.29 / 8, rel=0.1)
    assert random.low < 0 < random.high
    assert abs(random.median) < 0.05


@pytest.mark.parametrize(("count", "pairs"), [(0, None), (1, None), (2, 1), (3, 3), (200, 1000)])
def test_spread_takes_pairs_of_different_vectors(count, pairs):
    found = spread(np.eye(200, dtype=np.float32)[:count], most_pairs=1000)
    assert (found and found.pairs) == pairs
    if found:
        assert found.high == 0


def test_spread_is_repeatable():
    vectors = np.random.default_rng(1).normal(size=(500, 8)).astype(np.float32)
    assert spread(vectors) == spread(vectors) != spread(vectors, seed=1)


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 6), max_size=5),
    queries=st.integers(1, 3),
    k=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_neighbours_over_batches_equal_brute_force_over_all(metric, sizes, queries, k, seed):
    generator = np.random.default_rng(seed)
    batches = [generator.normal(size=(size, 4)).astype(np.float32) for size in sizes]
    asked = generator.normal(size=(queries, 4)).astype(np.float32)
    everything = np.concatenate([np.empty((0, 4), np.float32), *batches])
    score = {
        "IP": lambda query, other: float(query @ other),
        "COSINE": lambda query, other: float(query @ other / np.linalg.norm(query) / np.linalg.norm(other)),
        "L2": lambda query, other: float(((query - other) ** 2).sum()),
    }[metric]
    expected = [
        sorted((score(query, other) for other in everything), reverse=metric != "L2")[:k]
        for query in asked.astype(np.float64)
    ]
    found = exact_neighbours(asked, batches, k, metric)
    assert found.shape == (queries, min(k, len(everything)))
    np.testing.assert_allclose(found, np.array(expected).reshape(found.shape), atol=1e-9)
