import numpy as np
import pytest

from embedding_platform.search.fusion import fused

VECTOR = np.array([1, 0], np.float32)


def near(*ids):
    return [{"id": name, "score": 0.9 - place / 10} for place, name in enumerate(ids)]


def worded(*ids):
    return [{"id": name, "score": 9.0 - place, "vector": [0.6, 0.8]} for place, name in enumerate(ids)]


def scores(rows):
    return {row["id"]: row["score"] for row in rows}


def test_a_score_is_the_sum_over_the_lists_that_have_the_row():
    rows = fused(near("a", "b", "c"), worded("c", "d"), VECTOR, "COSINE", 10)
    assert scores(rows) == {
        "c": pytest.approx(1 / 63 + 1 / 61),
        "a": pytest.approx(1 / 61),
        "b": pytest.approx(1 / 62),
        "d": pytest.approx(1 / 62),
    }
    assert [row["id"] for row in rows][:2] == ["c", "a"]


def test_the_limit_is_of_the_fused_list():
    assert [row["id"] for row in fused(near("a", "b"), worded("b"), VECTOR, "COSINE", 1)] == ["b"]


@pytest.mark.parametrize(("found", "order"), [((near(), worded("x")), ["x"]), ((near("x"), []), ["x"]), (([], []), [])])
def test_a_list_may_be_empty(found, order):
    assert [row["id"] for row in fused(*found, VECTOR, "COSINE", 5)] == order


@pytest.mark.parametrize(("metric", "likeness"), [("COSINE", 0.6), ("IP", 1.2), ("L2", 0.2**2 + 1.6**2)])
def test_a_row_that_its_words_brought_has_the_score_of_its_vector_too(metric, likeness):
    row = {"id": "x", "score": 9.0, "vector": [1.2, 1.6]}
    (found,) = fused([], [row], VECTOR, metric, 5)
    assert found["vector_score"] == pytest.approx(likeness)


def test_a_row_near_by_keeps_what_milvus_said_of_its_vector():
    (found,) = fused(near("x"), worded("x"), VECTOR, "COSINE", 5)
    assert (found["vector_score"], found["score"]) == (0.9, pytest.approx(2 / 61))
