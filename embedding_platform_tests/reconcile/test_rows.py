"""The rows that a source should have."""

import numpy as np
import pytest

from embedding_platform.vectors import sampled
from embedding_platform_tests.inference.small_encoder import vector_of


def test_a_sample_has_the_content_of_each_vector_and_contents_have_their_segments(lake, monkeypatch):
    monkeypatch.setattr(sampled, "MOST", 3)
    sample = lake.live().sample()
    contents, vectors = sample.contents, sample.vectors
    assert len(contents) == len(set(contents)) == 3
    segment_of = {segment.content_hash: segment for segment in lake.live().segments_of(contents)}
    assert segment_of.keys() == set(contents)
    for vector, content in zip(vectors, contents, strict=True):
        text = (lake.media / "one" / segment_of[content].path).read_text()
        np.testing.assert_array_equal(vector, vector_of(text))


def test_of_a_content_that_many_segments_share_one_is_named(lake):
    for number in range(9):
        lake.path(f"copy{number}").write_text(lake.path("n0").read_text())
    lake.run()
    contents = lake.live().sample().contents
    found = lake.live().segments_of([*contents, "no such content"])
    assert sorted(segment.content_hash for segment in found) == sorted(contents)
    assert len(contents) == 5


def stretches(lake, most: int, count: int, after: str = "") -> list[list[str]]:
    found = []
    for _ in range(count):
        ids, after = lake.live().stretch(most, after)
        found.append(ids.to_list())
    return found


@pytest.mark.parametrize("most", [1, 2, 3, 7, 19])
def test_stretch_after_stretch_meets_every_row_once_in_a_round(lake, most):
    # Of 20 rows, 12 share a content.
    for number in range(11):
        lake.path(f"copy{number}").write_text(lake.path("n0").read_text())
    for number in range(5, 9):
        lake.write(f"n{number}", number)
    lake.run()
    rows = sorted(lake.live().versions.index)
    assert len(rows) == 20
    full = 20 // most
    met = stretches(lake, most, full + 1)
    assert all(len(ids) == most for ids in met[:full])
    assert sorted(row for ids in met[:full] for row in ids) == sorted({row for ids in met[:full] for row in ids})
    assert {row for ids in met for row in ids} == set(rows)
    # A further round meets all of them again, wherever the first one ended.
    again = stretches(lake, most, 2 * full + 4)
    assert {row for ids in again[-(full + 2) :] for row in ids} == set(rows)


def test_no_row_and_all_rows_need_no_place_to_go_on_from(lake):
    assert [len(ids) for ids in stretches(lake, 0, 2)] == [0, 0]
    ids, after = lake.live().stretch(5, "wherever")
    assert (sorted(ids), after) == (sorted(lake.live().versions.index), "")


def test_a_stretch_begins_anew_where_the_content_that_it_follows_is_gone(lake):
    (first,), (other,) = stretches(lake, 1, 2)
    assert first != other
    assert stretches(lake, 1, 1, after=f"{'0' * 64} {first}") == [[first]]


def test_new_rows_do_not_keep_older_ones_from_their_turn(lake):
    before = set(lake.live().versions.index)
    met, after = set(), ""
    for number in range(20):
        ids, after = lake.live().stretch(2, after)
        met |= set(ids)
        lake.write(f"late{number}", 100 + number)
        lake.run()
        if before <= met:
            break
    assert before <= met


def test_the_sample_is_the_one_that_is_judged(lake, monkeypatch):
    monkeypatch.setattr(sampled, "MOST", 12)
    for number in range(40):
        lake.path(f"more{number}").write_text(f"{number % 20} more")
    judged = lake.run()[2].judged
    assert len(judged.sample.contents) == 12
    assert lake.live().sample().contents == judged.sample.contents
