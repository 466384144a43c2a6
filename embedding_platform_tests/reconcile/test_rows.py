"""The rows that a source should have."""

import numpy as np

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


def test_the_sample_is_the_one_that_is_judged(lake, monkeypatch):
    monkeypatch.setattr(sampled, "MOST", 12)
    for number in range(40):
        lake.path(f"more{number}").write_text(f"{number % 20} more")
    judged = lake.run()[2].judged
    assert len(judged.sample.contents) == 12
    assert lake.live().sample().contents == judged.sample.contents
